"""Whether a reproduction is the original: identical, equivalent or different, and where it departs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from regrpo.audit import file_differences
from regrpo.audit.worktree import Workspace
from regrpo.core import files
from regrpo.evaluate.results import METRICS, SAMPLES, parse_metrics, read_samples
from regrpo.report import card

Json = dict[str, Any]


Verdict = Literal["identical", "equivalent", "different"]


CARD = "reports/model_card/README.md"


COMPUTING = (
    "torch",
    "numpy",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "vllm",
    "bitsandbytes",
    "liger-kernel",
    "deepspeed",
    "triton",
    "lm-eval",
    "datasets",
    "tokenizers",
    "pandas",
    "pyarrow",
)
"""Packages whose version may change bits."""


def environment_differences(originals: Iterable[Json], found: Json) -> list[Json]:
    """[{what, recorded, found}] between the recorded environments and one.

    Packages by name, Python, system, processor.

    Where the stages' records differ among themselves the first one that differs from `found` is
    told.
    """
    told: dict[str, Json] = {}
    for record in originals:
        recorded = record["environment"]
        if recorded["sha256"] == found["sha256"]:
            continue
        pairs = {
            name: (recorded.get(name), found.get(name)) for name in ("python", "system", "cpu")
        }
        names = sorted(recorded["packages"].keys() | found["packages"].keys())
        pairs |= {
            name: (recorded["packages"].get(name), found["packages"].get(name)) for name in names
        }
        for what, (a, b) in pairs.items():
            if a != b:
                told.setdefault(what, {"what": what, "recorded": a, "found": b})
    return list(told.values())


def sources_of_difference(original: Json, found: Json) -> list[str]:
    """What may make a stage's bits differ though its code and parameters are the same, from its two records."""
    before, after = original["environment"], found["environment"]
    named = []
    if before["cuda"] or after["cuda"]:
        devices = [", ".join(side["cuda"]) or "no CUDA device" for side in (before, after)]
        named.append("device: " + (devices[0] if devices[0] == devices[1] else " → ".join(devices)))
        if not _parameter(original, "deterministic"):
            named.append(
                "CUDA kernels: atomic additions come in another order each time (deterministic: false)"
            )
    if before["cpu"] != after["cpu"]:
        named.append(
            f"processor: {before['cpu']} → {after['cpu']} (vector units add up in another order)"
        )
    threads = [_parameter(record, "threads") for record in (original, found)]
    if threads[0] != threads[1]:
        named.append(f"thread count: {threads[0]} → {threads[1]}")
    if _parameter(original, "use_vllm"):
        named.append(
            "vLLM: a completion depends on the batch it is generated in, unless batch-invariant"
        )
    for name in COMPUTING:
        versions = [side["packages"].get(name) for side in (before, after)]
        if versions[0] != versions[1]:
            named.append(f"{name}: {versions[0] or 'absent'} → {versions[1] or 'absent'}")
    if before["python"] != after["python"]:
        named.append(f"Python: {before['python']} → {after['python']}")
    return named


def _parameter(record: Json, name: str) -> Any:
    return next(
        (
            section.get(name)
            for values in record["parameters"].values()
            for section in values.values()
        ),
        None,
    )


def _judge(
    workspace: Workspace, chosen: Mapping[str, Json], changed: list[Json], tolerance: float
) -> Json:
    found = {stage: workspace.made(stage) for stage in chosen}
    notes: list[str] = []
    compared = [_compare_stage(workspace, stage, record, notes) for stage, record in chosen.items()]
    departed = [stage for stage in compared if stage["differing"]]
    evaluation, sources = None, []
    if departed:
        _explain(workspace, departed[0])
        evaluation = _evaluation(workspace, chosen, tolerance, notes)
        pairs = ((record, found[stage]) for stage, record in chosen.items())
        sources = list(
            dict.fromkeys(source for pair in pairs for source in sources_of_difference(*pair))
        )
    equivalent = evaluation is not None and evaluation["equivalent"] and not changed
    verdict: Verdict = "identical" if not departed else "equivalent" if equivalent else "different"
    if changed and departed:
        notes.append("another experiment, not another outcome of the same: the parameters differ")
    for stage in compared:
        stage["reproduction"] = {
            key: found[stage["stage"]].get(key) for key in ("run", "key", "seconds")
        }
    values = evaluation["values"] if evaluation else []
    return {
        "verdict": verdict,
        "stages": compared,
        "first_difference": _first(departed[0]) if departed else None,
        "evaluation": evaluation,
        "parameters": changed,
        "environment": environment_differences(
            chosen.values(), next(iter(found.values()))["environment"]
        ),
        "sources_of_difference": sources,
        "notes": notes,
        "numbers": {
            "files": sum(stage["files"] for stage in compared),
            "files_differing": sum(len(stage["differing"]) for stage in compared),
            **(
                {"largest_value_difference": max(abs(v["difference"]) for v in values)}
                if values
                else {}
            ),
        },
        "records": found,
    }


def _compare_stage(workspace: Workspace, stage: str, record: Json, notes: list[str]) -> Json:
    """{stage, original, files (how many were compared), differing.

    [{output, file, path, original, reproduction}]}.
    """
    count, differing = 0, []
    for out in record["outputs"]:
        made = workspace.fingerprint(out["path"])
        before, after = (
            out.get("files", {"": out["sha256"]}),
            made.get("files", {"": made["sha256"]}),
        )
        for name in sorted(before.keys() | after.keys()):
            a, b = before.get(name), after.get(name)
            path = f"{out['path']}/{name}" if name else out["path"]
            if a != b and path == CARD:
                a, b = _cards_without_what_varies(workspace, notes)
                if a is None:
                    continue
            count += 1
            if a != b:
                differing.append(
                    {
                        "output": out["path"],
                        "file": name,
                        "path": path,
                        "original": a,
                        "reproduction": b,
                    }
                )
    original = {key: record[key] for key in ("run", "key", "mlflow_run_id")} | {
        "seconds": record.get("seconds")
    }
    return {"stage": stage, "original": original, "files": count, "differing": differing}


def _cards_without_what_varies(
    workspace: Workspace, notes: list[str]
) -> tuple[str | None, str | None]:
    """SHA-256 of both cards without their marked block.

    The first is None where the original is in no cache.
    """
    original, found = workspace.original(CARD), workspace.tree / CARD
    if original is None:
        notes.append(
            f"not compared: {CARD} (part of it varies, and the original is neither in the cache nor remote)"
        )
        return None, None
    texts = [
        path.read_text(encoding="utf-8") if path.exists() else "" for path in (original, found)
    ]
    return files.sha256_text(card.without_varying_block(texts[0])), files.sha256_text(
        card.without_varying_block(texts[1])
    )


def _explain(workspace: Workspace, stage: Json) -> None:
    """Add to each file of a stage that differs how it does (`how`)."""
    for entry in stage["differing"]:
        made, original = (
            workspace.tree / entry["path"],
            workspace.original(entry["output"], entry["file"]),
        )
        if entry["original"] is None:
            entry["how"] = {"kind": "missing", "what": "is not in the original"}
        elif entry["reproduction"] is None:
            entry["how"] = {"kind": "missing", "what": "was not made"}
        elif original is None:
            what = "another SHA-256 (the original's bytes are in no cache, or damaged there: how they differ is unknown)"
            entry["how"] = {"kind": "unknown", "what": what}
        elif entry["path"] == CARD:
            texts = [
                card.without_varying_block(path.read_text(encoding="utf-8"))
                for path in (original, made)
            ]
            entry["how"] = file_differences.compare_lines(*texts)
        else:
            entry["how"] = file_differences.compare_file(original, made)


def _first(stage: Json) -> Json:
    """{stage, file, tensor, step, what}: where the reproduction departs."""
    how = [(entry["path"], entry["how"]) for entry in stage["differing"]]
    tensors = [tensor["name"] for _, one in how for tensor in one.get("differing", [])]
    steps = [
        one["step"]
        for path, one in how
        if path.endswith("history.csv") and one.get("step") is not None
    ]
    return {
        "stage": stage["stage"],
        "file": how[0][0],
        "what": how[0][1]["what"],
        "tensor": tensors[0] if tensors else None,
        "step": min(steps, default=None),
    }


def _evaluation(
    workspace: Workspace, chosen: Mapping[str, Json], tolerance: float, notes: list[str]
) -> Json | None:
    """What `file_differences.compare_evaluations` says.

    None (with a note why) where it cannot be said.
    """
    if "evaluate" not in chosen:
        notes.append("equivalence was not judged: evaluate was not among the stages")
        return None
    before, after = workspace.original(METRICS), workspace.tree / METRICS
    answers, answers_now = workspace.original(SAMPLES), workspace.tree / SAMPLES
    if before is None or answers is None or not after.exists() or not answers_now.exists():
        notes.append(
            "equivalence was not judged: the original's answers are neither in the cache nor on the remote"
        )
        return None
    return file_differences.compare_evaluations(
        parse_metrics(before.read_bytes()),
        parse_metrics(after.read_bytes()),
        (read_samples(answers.read_bytes()), read_samples(answers_now.read_bytes())),
        tolerance=tolerance,
    )
