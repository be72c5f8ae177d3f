"""A finished pipeline's workspace, made of files alone.

What pages are built from in tests, in milliseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from regrpo.core import files
from regrpo.core.dvc import dvc_md5, entry_now
from regrpo.core.pipeline import Snapshot, stage_key
from regrpo.core.profiles import STAGES
from regrpo.records import stage_run
from regrpo.train import doctor

HOSTILE = (
    "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>"
    "{{ 7*7 }} \u202eRTL\x1b[31m\x00 " + "ا" * 40 + "x" * 5000 + "\n" * 300
)
OUTS: dict[str, list[str]] = {
    "prepare": ["data/prepared", "reports/prepare/metrics.json"],
    "base_model": ["models/base", "reports/base_model/source.json"],
    "validate": [
        "reports/validate/failures.parquet",
        "reports/validate/report.html",
        "reports/validate/verdict.json",
    ],
    "sft": ["models/sft", "reports/sft/metrics.json"],
    "select": ["data/selected", "reports/select/metrics.json"],
    "grpo": ["models/grpo", "reports/grpo/health.json", "reports/grpo/history.csv"],
    "evaluate": ["reports/evaluate/samples.parquet", "reports/evaluate/metrics.json"],
    "model_card": ["reports/model_card/README.md"],
}
DEPS: dict[str, list[str]] = {
    "prepare": ["code/prepare.py"],
    "base_model": ["code/base_model.py"],
    "validate": ["data/prepared", "models/base", "code/validate.py"],
    "sft": ["data/prepared", "models/base", "reports/validate/verdict.json", "code/sft.py"],
    "select": ["data/prepared", "models/sft", "code/select.py"],
    "grpo": ["data/selected", "models/sft", "reports/validate/verdict.json", "code/grpo.py"],
    "evaluate": ["models/base", "models/sft", "models/grpo", "code/evaluate.py"],
    "model_card": [
        "reports/evaluate/metrics.json",
        "reports/grpo/health.json",
        "code/model_card.py",
    ],
}
MODELS = ("base", "sft", "grpo")
RIGHT = {"base": [0, 0, 0, 0, 0, 0], "sft": [1, 1, 0, 0, 0, 0], "grpo": [1, 0, 1, 1, 1, 0]}
"""Which of six questions each model answers right.

One right in both, one newly wrong, three newly right.
"""


def workspace(
    folder: Path, upto: str = "model_card", text: str = "4+5-7=", history: Any = None
) -> Path:
    """Write the stages up to one.

    `text` is what questions, completions and other free text hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".dvc").mkdir()
    stages = {
        name: {
            "cmd": f"python -m stages.{name}",
            "desc": f"what {name} does",
            "deps": DEPS[name],
            "outs": OUTS[name],
        }
        for name in STAGES
    }
    for stage in stages.values():
        stage["metrics"] = [{f"reports/{stage['cmd'][17:]}/run.json": {"cache": False}}]
    params: dict[str, Any] = {"profile": "params.yaml"} | {name: {"seed": 0} for name in STAGES}
    params["model_card"] = {"model_name": text[:500]}
    for path, content in (("dvc.yaml", {"stages": stages}), ("params.yaml", params)):
        with (folder / path).open("w") as f:
            YAML(typ="safe").dump(content, f)
    for name in STAGES:
        files.write_text(folder / f"code/{name}.py", f"# {name}\n")
    rows = history if history is not None else learning(40)
    with contextlib.chdir(folder):
        for name in STAGES[: STAGES.index(upto) + 1]:
            write_outs(name, text, rows)
            finish(name)
    return folder


def learning(steps: int) -> list[dict[str, float]]:
    """A history as GRPO logs it."""
    rows: list[dict[str, float]] = [{"step": 0, "dev_accuracy": 0.2}]
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "reward": step / steps,
            "completions/mean_length": 5 + step / 20,
            "entropy": 1 / step,
        }
        rows.append(row | {"grad_norm": 12.0 if step in (7, 8, 20) else 1.0})
        if step % 10 == 0:
            rows[-1]["dev_accuracy"] = min(1.0, 0.2 + step / 50)
    return rows


def write_outs(name: str, text: str, history: Sequence[Mapping[str, float]]) -> None:
    """A stage's outputs, in the current folder."""
    reports = Path("reports") / name
    reports.mkdir(parents=True, exist_ok=True)
    for out in OUTS[name]:
        if out.startswith("models/"):
            files.write_text(Path(out) / "model.safetensors", name)
    if name == "prepare":
        files.write_json(reports / "metrics.json", {"eval": {"rows": 6}})
        dataset = {"source": text, "license": "MIT", "revision": "r1", "verifier": "exact_int"}
        files.write_json(Path("data/prepared/dataset.json"), dataset)
    elif name == "base_model":
        files.write_json(
            reports / "source.json", {"architecture": "Gemma3", "parameters": 1234, "source": text}
        )
    elif name == "validate":
        write_gate({}, text)
    elif name == "sft":
        files.write_json(reports / "metrics.json", {"steps": 1})
    elif name == "select":
        files.write_text(Path("data/selected/train.parquet"), "rows")
        shares = dict.fromkeys(("always_right", "always_wrong", "inside", "mean_pass_rate"))
        files.write_json(reports / "metrics.json", {"questions": 6, "kept": 6} | shares)
    elif name == "grpo":
        files.write_json(reports / "health.json", doctor.examine(history))
        pd.DataFrame(list(history)).to_csv(reports / "history.csv", index=False)
    elif name == "evaluate":
        write_evaluation(text)
    else:
        files.write_text(reports / "README.md", "# card\n")


def write_gate(failed: Mapping[str, int], text: str) -> None:
    """The gate's files; `failed` checks of the split train have as many offending rows."""
    reports = Path("reports/validate")
    checks = [
        {
            "check": check,
            "split": split,
            "expectation": "expect",
            "rows": 6,
            "failed": count,
            "passed": not count,
        }
        for check in ("id_present", "question_unique", "answer_parses")
        for split in ("train", "eval")
        for count in [failed.get(check, 0) if split == "train" else 0]
    ]
    verdict = {"passed": not failed, "failed_checks": len(failed), "rows": {"train": 6, "eval": 6}}
    files.write_json(reports / "verdict.json", verdict | {"checks": checks, "not_applicable": []})
    rows = [
        {"check": check, "split": "train", "id": f"train-{index}", "value": text}
        for check, count in failed.items()
        for index in range(count)
    ]
    files.write_parquet(
        reports / "failures.parquet",
        pd.DataFrame(rows, columns=["check", "split", "id", "value"], dtype="str"),
    )
    files.write_text(
        reports / "report.html", "<!doctype html><html lang=en><title>gate</title></html>"
    )


def write_evaluation(text: str, kind: str = "binary", headline: str | None = "heldout") -> None:
    """evaluate's metrics and samples of six questions; the second task is a control."""
    tasks, rows = {}, []
    for task, role in (("heldout", "headline"), ("heldout_reasoning_prefilled", "control")):
        values = {
            model: [float(v) * (1 if kind == "binary" else 0.5) for v in RIGHT[model]]
            for model in MODELS
        }
        means = {model: sum(v) / 6 for model, v in values.items()}
        pair = {
            "ci95": [0.1, 0.6],
            "difference": means["grpo"] - means["sft"],
            "minimum_detectable_effect": 0.8,
        }
        flips = {"gained": 3, "lost": 1, "p_mcnemar": 0.625} if kind == "binary" else {}
        tasks[task] = {
            "metric": "accuracy",
            "kind": kind,
            "n": 6,
            "role": role,
            "version": 1.0,
            "description": text[:300],
            "models": {
                model: {
                    "value": mean,
                    "ci95": [max(0, mean - 0.1), min(1, mean + 0.1)],
                    "stderr": 0.1,
                }
                for model, mean in means.items()
            },
            "pairs": {"sft_grpo": {"gained": None, "lost": None, "p_mcnemar": None} | pair | flips},
        }
        rows += [
            {
                "task": task,
                "model": model,
                "id": f"q{index}",
                "prompt": text,
                "completion": f"{model}: {text}",
                "answer": "2",
                "value": value,
            }
            for model in MODELS
            for index, value in enumerate(values[model])
        ]
    gain = {"total": 0.5, "elicited": 0.3, "learned": 0.2}
    gain |= {f"{part}_ci95": [0.1, 0.6] for part in ("total", "elicited", "learned")}  # type: ignore[misc]
    reports = Path("reports/evaluate")
    content = {
        "headline": headline,
        "verifier": "exact_int",
        "tasks": tasks,
        "gain": gain if headline else None,
    }
    files.write_json(reports / "metrics.json", content)
    files.write_parquet(reports / "samples.parquet", pd.DataFrame(rows))


def finish(name: str) -> None:
    """run.json and dvc.lock as they are after a stage, in the current folder."""
    entry = entry_now(name)
    number = STAGES.index(name)
    record = {
        "schema_version": 1,
        "stage": name,
        "run": f"{number}" * 32,
        "key": stage_key(entry),
        "command": entry["cmd"],
        "parameters": entry["params"],
        "inputs": [stage_run.fingerprint(dep["path"]) for dep in entry["deps"]],
        "outputs": [stage_run.fingerprint(out) for out in OUTS[name]],
        "code": {"revision": "c" * 40, "dirty": False, "diff_sha256": None},
        "environment": {
            "packages": {"trl": "1.16.0"},
            "python": "3.11.7",
            "system": "Linux x86_64",
            "cpu": "a CPU",
            "cuda": [],
            "sha256": "e" * 64,
        },
        "started": f"2026-11-22T14:3{number}:00.000+00:00",
        "ended": f"2026-11-22T14:3{number}:30.000+00:00",
        "seconds": 30.5,
        "mlflow_run_id": f"{number}f" * 16,
    }
    files.write_json(Path(f"reports/{name}/run.json"), [record])
    lock = Snapshot(Path.cwd()).lock()
    outs = [
        {"path": out, "md5": dvc_md5(Path(out))}
        for out in [*OUTS[name], f"reports/{name}/run.json"]
    ]
    lock["stages"][name] = entry | {"outs": outs}
    with Path("dvc.lock").open("w") as f:
        YAML(typ="safe").dump({"schema": "2.0", **lock}, f)
