"""Whether the same came out when a run was made again, and where it departs.

Three verdicts: *identical* (every output's SHA-256 is the recorded one), *equivalent* (the same
parameters, evaluation values within a tolerance, and the tests find nothing), *different*. Which is
to be expected depends on what the bits depend on (`sources_of_difference`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from regrpo.audit.evidence import by_section, unequal_environments
from regrpo.audit.file_differences import compare_evaluations, compare_file
from regrpo.audit.worktree import Worktree, unequal_files
from regrpo.core.files import ABSENT, file_hashes
from regrpo.evaluate.results import (
    ANSWERS,
    METRICS,
    SAMPLES,
    parse_metrics,
    read_answers,
    read_samples,
)

if TYPE_CHECKING:
    import pandas as pd

Json = dict[str, Any]
Verdict = Literal["identical", "equivalent", "different"]

CARD = "reports/model_card/README.md"
CARD_HASH = "reports/model_card/metrics.json"
"""An output that holds the hash of the card without the block that varies from run to run."""
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
    "safetensors",
    "reasoning-gym",
    "math-verify",
    "scipy",
    "statsmodels",
    "sacrebleu",
    "matplotlib",
    "pillow",
    "jinja2",
    "huggingface-hub",
)
"""Packages whose version may change bits."""


def judge(
    worktree: Worktree,
    beside: Worktree,
    originals: Mapping[str, Json],
    made: Mapping[str, Json],
    changed: list[Json],
    tolerance: float,
) -> Json:
    """Compare what was made in a worktree with the original, restored in the one `beside` it.

    `originals` and `made` are the records of both, by stage; `changed` are the parameters that are
    not the original's. Returns the verdict with its reasons.
    """
    notes: list[str] = []
    stages = []
    for name, record in originals.items():
        stages.append(_compare_stage(worktree, record, made[name]))
    numbers = {
        "files": sum(stage["files"] for stage in stages),
        "files_differing": sum(len(stage["differing"]) for stage in stages),
    }
    departed = next((stage for stage in stages if stage["differing"]), None)
    verdict: Verdict = "identical"
    first = evaluation = None
    sources: dict[str, None] = {}
    if departed is not None:
        # Of the first alone: later stages read something else than the original's did.
        _explain(worktree, beside, departed)
        first = _first_difference(departed)
        verdict = "different"
        evaluation = _compare_evaluation(worktree, beside, originals, tolerance, notes)
        if evaluation is not None:
            numbers["largest_value_difference"] = evaluation["largest_difference"]
            if evaluation["equivalent"] and not is_another_experiment(changed):
                verdict = "equivalent"
        if is_another_experiment(changed):
            notes.append("another experiment, not another outcome: the parameters differ")
        for name, record in originals.items():
            sources |= dict.fromkeys(sources_of_difference(record, made[name]))
    environment = next(iter(made.values()))["environment"]
    return {
        "verdict": verdict,
        "stages": stages,
        "first_difference": first,
        "evaluation": evaluation,
        "parameters": changed,
        "environment": environment_differences(originals.values(), environment),
        "sources_of_difference": list(sources),
        "notes": notes,
        "numbers": numbers,
    }


# --- files ----------------------------------------------------------------------------------------


def _compare_stage(worktree: Worktree, original: Json, made: Json) -> Json:
    """{stage, original and reproduction (which runs), files (how many), differing}.

    `differing` is [{path, original, reproduction}] with both SHA-256; None for a file that is
    missing.
    """
    count = 0
    differing = []
    for out in original["outputs"]:
        found = worktree.fingerprint(out["path"])
        before, after = file_hashes(out), file_hashes(found)
        count += len(before | after)
        for path in unequal_files(out, found):
            differing.append(
                {"path": path, "original": before.get(path), "reproduction": after.get(path)}
            )
    if CARD_HASH not in [entry["path"] for entry in differing]:
        # But for its block that varies from run to run, the card is the same.
        differing = [entry for entry in differing if entry["path"] != CARD]
    return {
        "stage": original["stage"],
        "original": {name: original[name] for name in ("run", "key", "mlflow_run_id", "seconds")},
        "reproduction": {name: made[name] for name in ("run", "key", "seconds")},
        "files": count,
        "differing": differing,
    }


def _explain(worktree: Worktree, beside: Worktree, stage: Json) -> None:
    """Add to each file of a stage that differs how it does (`how`)."""
    for entry in stage["differing"]:
        how: Json
        if entry["original"] is None:
            how = {"what": "is not in the original"}
        elif entry["reproduction"] is None:
            how = {"what": "was not made"}
        elif original := beside.restored(entry["path"]):
            how = compare_file(original, worktree.tree / entry["path"])
        else:
            what = "another SHA-256 (the original's bytes are in no cache, or damaged there)"
            how = {"what": what}
        entry["how"] = how


def _first_difference(stage: Json) -> Json:
    """{stage, file, tensor, step, what}: where the reproduction departs."""
    tensors: list[str] = []
    steps: list[int] = []
    for entry in stage["differing"]:
        how = entry["how"]
        tensors += [tensor["name"] for tensor in how.get("tensors", [])]
        if "step" in how:
            steps.append(how["step"])
    first = stage["differing"][0]
    return {
        "stage": stage["stage"],
        "file": first["path"],
        "what": first["how"]["what"],
        "tensor": next(iter(tensors), None),
        "step": min(steps, default=None),
    }


# --- evaluation -----------------------------------------------------------------------------------


def _compare_evaluation(
    worktree: Worktree,
    beside: Worktree,
    originals: Mapping[str, Json],
    tolerance: float,
    notes: list[str],
) -> Json | None:
    """`compare_evaluations` of both runs. Returns None, with a note why, if it cannot be done."""
    if "evaluate" not in originals:
        notes.append("equivalence was not judged: evaluate was not among the stages")
        return None
    metrics = beside.restored(METRICS)
    if metrics is None:
        notes.append(f"equivalence was not judged: {METRICS} is not the one that was recorded")
        return None
    answers = _answers_of_both(worktree, beside)
    if answers is None:
        notes.append(
            "judged by an unpaired test of the committed counts, which sees less than a paired one "
            "of the same questions: the original's answers are neither in git, nor in the cache, "
            "nor on the remote"
        )
    return compare_evaluations(
        parse_metrics(metrics.read_bytes()),
        parse_metrics((worktree.tree / METRICS).read_bytes()),
        answers,
        tolerance=tolerance,
    )


def _answers_of_both(
    worktree: Worktree, beside: Worktree
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The original's answers and the reproduction's, of git or else of samples.parquet."""
    readers: dict[str, Callable[[bytes], pd.DataFrame]]
    readers = {ANSWERS: read_answers, SAMPLES: read_samples}
    for path, read in readers.items():
        original, found = beside.restored(path), worktree.tree / path
        if original is not None and found.is_file():
            return read(original.read_bytes()), read(found.read_bytes())
    return None


# --- what the bits depend on ----------------------------------------------------------------------


def settings(record: Mapping[str, Any]) -> Json:
    """A stage's parameters from its record, in which they stand under profile and section."""
    found: Json = {}
    for section in by_section(record["parameters"]).values():
        found |= section
    return found


def environment_differences(originals: Iterable[Json], found: Json) -> list[Json]:
    """[{what, recorded, found}]: packages by name, Python, system and processor that differ.

    Where the stages' records differ among themselves, the first that is not as `found` counts.
    """
    differences: dict[str, Json] = {}
    for record in originals:
        for what, before, after in unequal_environments(record["environment"], found):
            difference = {"what": what, "recorded": before or ABSENT, "found": after or ABSENT}
            differences.setdefault(what, difference)
    differences.pop("cuda", None)  # it is among the sources of difference
    return list(differences.values())


def is_another_experiment(changed: Iterable[Json]) -> bool:
    """Whether parameters that are not the original's decide more than the order of sums."""
    return any(not one["name"].endswith(".threads") for one in changed)


def foresee(
    originals: Iterable[Json], here: Json, changed: Iterable[Json], installed: bool = False
) -> tuple[Verdict, list[str]]:
    """The verdict that is to be expected in the environment `here`, and why it is no better one.

    `originals` are the records of the stages, `changed` the parameters that are not theirs. With
    `installed` the stages run with the packages of the record.
    """
    reasons: dict[str, None] = {}
    for record in originals:
        found = dict(here)
        if installed:
            found["packages"] = record["environment"]["packages"]
        reasons |= dict.fromkeys(sources_of_difference(record, record | {"environment": found}))
    for one in changed:
        if not is_another_experiment([one]):
            reasons[f"{one['name']}: {one['recorded']} → {one['commit']}"] = None
    return ("equivalent" if reasons else "identical"), list(reasons)


def sources_of_difference(original: Json, found: Json) -> list[str]:
    """What may make a stage's bits differ though code and parameters are the same."""
    before, after = original["environment"], found["environment"]
    before_settings, after_settings = settings(original), settings(found)
    sources = []
    if before["cuda"] or after["cuda"]:
        devices = ", ".join(before["cuda"]) or "no CUDA device"
        devices_now = ", ".join(after["cuda"]) or "no CUDA device"
        sources.append(_change("device", devices, devices_now) or f"device: {devices}")
        if not before_settings.get("deterministic"):
            sources.append(
                "CUDA kernels: atomic additions come in another order each time "
                "(deterministic: false)"
            )
    if processor := _change("processor", before["cpu"], after["cpu"]):
        sources.append(f"{processor} (vector units add up in another order)")
    sources.append(
        _change("thread count", before_settings.get("threads"), after_settings.get("threads"))
    )
    if before_settings.get("use_vllm"):
        sources.append(
            "vLLM: a completion depends on the batch it is generated in, unless batch-invariant"
        )
    for name in COMPUTING:
        versions = [side["packages"].get(name, ABSENT) for side in (before, after)]
        sources.append(_change(name, *versions))
    sources.append(_change("Python", before["python"], after["python"]))
    return [source for source in sources if source]


def _change(name: str, before: Any, after: Any) -> str:
    """`name: before → after`, or nothing if they are equal."""
    if before == after:
        return ""
    return f"{name}: {before} → {after}"
