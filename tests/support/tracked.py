"""Pipelines with everything that MLflow shows: reports as stages write them, journals to replay."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regrpo.core import files
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import Estimate, Evaluation, Pair, Task
from regrpo.records.journal import Journal
from regrpo.tracking.address import sqlite_uri
from regrpo.train import doctor
from tests.support.pipelines import MAKES, READS, digest, record
from tests.support.stores import DEAD

SECTIONS: dict[str, dict[str, Any]] = {name: {"seed": 0} for name in STAGES[:-1]}
SECTIONS |= {"grpo": {"seed": 0, "learning_rate": 3e-4}, "model_card": {"model_name": "tiny-sums"}}
RIGHT = {"base": "0000", "sft": "1100", "grpo": "1011"}
"""Which of four questions each model answers right."""
SPLITS = {"sft": ("sft",), "grpo": ("train", "dev"), "evaluate": ("eval",)}
"""The splits that stages read."""


@contextlib.contextmanager
def repository(root: Path, database: str | None = None) -> Iterator[None]:
    """Be in an empty repository told to a database (its own mlflow.db), under its own name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "REGRPO_"))
        ]:
            patch.delenv(name)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("MLFLOW_TRACKING_URI", database or sqlite_uri(root / "mlflow.db"))
        patch.setenv("MLFLOW_EXPERIMENT_NAME", root.name)
        patch.chdir(root)
        (root / "dvc.yaml").write_text("stages: {}\n")
        (root / ".dvc").mkdir()
        (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
        yield


def evaluation(grpo: float = 0.75) -> Evaluation:
    """evaluate's metrics.json, with GRPO's accuracy."""
    models = {}
    for model, value in {"base": 0.0, "sft": 0.5, "grpo": grpo}.items():
        models[model] = Estimate(value=value, ci95=(value / 2, (1 + value) / 2))
    pair = Pair(
        difference=grpo - 0.5,
        ci95=(grpo - 0.7, grpo - 0.3),
        p_mcnemar=0.25,
        gained=2,
        lost=1,
        minimum_detectable_effect=0.4,
    )
    task = Task(
        metric="exact",
        kind="binary",
        n=4,
        role="headline",
        description="",
        models=models,
        pairs={"sft_grpo": pair},
    )
    tasks = {"asked": task.model_copy(update={"role": "control"}), "heldout": task}
    return Evaluation(headline="heldout", tasks=tasks)


def answers(prompt: Any = None) -> pd.DataFrame:
    """evaluate's samples.parquet of two tasks; without a prompt, each question has its own."""
    rows = []
    for task in ("asked", "heldout"):
        for model, scores in RIGHT.items():
            for index, right in enumerate(scores):
                row = {
                    "task": task,
                    "model": model,
                    "id": f"q{index}",
                    "prompt": prompt or f"{index}+5-7=",
                    "completion": f"{model} on {task} {index}",
                    "answer": "2",
                    "value": float(right),
                }
                rows.append(row)
    return pd.DataFrame(rows)


def completions(steps: int = 3, group: int = 4, prompt: Any = "4+5-7=") -> pd.DataFrame:
    """grpo's samples.parquet: `group` completions of one prompt at steps 0, 10, 20, …"""
    rows = []
    for step in range(steps):
        for index in range(group):
            row = {
                "step": 10 * step,
                "id": "q",
                "prompt": prompt,
                "completion": f"step {step}, {index} <b>&",
                "answer": "2",
                "reward": float(index % 2),
                "exact_answer": float(index % 2),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def history(steps: int = 8, speed: float = 1.0) -> pd.DataFrame:
    """grpo's history.csv: dev accuracy before the first step and after the last.

    A slow run has a KL term.
    """
    rows: list[dict[str, float]] = [{"step": 0, "dev_accuracy": 0.25}]
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "reward": speed * step / steps,
            "entropy": 1 / step,
            "loss": 0.0,
            "completions/mean_length": 5 + step,
            "grad_norm": 1.0,
        }
        if speed < 1:
            row["kl"] = 0.01
        rows.append(row)
    rows[-1]["dev_accuracy"] = speed * 0.75
    return pd.DataFrame(rows)


def present(row: Mapping[str, float]) -> dict[str, float]:
    """A row of history.csv without its empty cells."""
    return {name: value for name, value in row.items() if pd.notna(value)}


def png(path: Path, text: str) -> None:
    """A small picture with a word in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.text(0.3, 0.5, text)
    figure.savefig(path)


def write_results(root: Path, grpo: float = 0.75, speed: float = 1.0) -> None:
    """The stages' reports and prepared data, in a repository."""
    reports = {stage: root / "reports" / stage for stage in STAGES}
    for folder in (*reports.values(), root / "data/prepared"):
        folder.mkdir(parents=True, exist_ok=True)
    for split in ("sft", "train", "dev", "eval"):
        columns = {
            "id": [f"{split}-{index}" for index in range(4)],
            "question": ["4+5-7="] * 4,
            "source_row": range(4),
        }
        files.write_parquet(root / f"data/prepared/{split}.parquet", pd.DataFrame(columns))
    files.write_json(reports["evaluate"] / "metrics.json", evaluation(grpo).model_dump(mode="json"))
    files.write_parquet(reports["evaluate"] / "samples.parquet", answers())
    files.write_parquet(reports["grpo"] / "samples.parquet", completions())
    curve = history(speed=speed)
    curve.to_csv(reports["grpo"] / "history.csv", index=False)
    logged = [present(row) for row in curve.to_dict("records")]
    files.write_json(reports["grpo"] / "health.json", doctor.examine(logged))
    files.write_json(reports["grpo"] / "metrics.json", {"steps": 8, "reward_last": speed})
    for stage, name in (("grpo", "curves"), ("evaluate", "comparison")):
        png(reports[stage] / f"{name}.png", name)
    (reports["validate"] / "report.html").write_text(
        "<!doctype html><title>gate</title><h1>The gate passed</h1>"
    )
    (reports["model_card"] / "README.md").write_text("# tiny-sums\n")


def write_journals(
    root: Path,
    name: str,
    execution: list[float],
    sections: Mapping[str, Mapping[str, Any]] = SECTIONS,
    started: float = 60.0,
    **facts: Any,
) -> None:
    """Write records and dvc.lock over `root`'s reports, and a closed journal of each stage.

    The first stage began `started` seconds ago, the others a second after one another.
    """
    lock: dict[str, Any] = {"stages": {}}
    for number, stage in enumerate(STAGES):
        entry = _entry(stage, sections)
        made = _record(root, stage, f"{name}-{stage}", entry)
        report = root / "reports" / stage / "run.json"
        files.write_json(report, [made])
        outs = [{"path": path, "md5": digest(path)[:32]} for path in MAKES.get(stage, [])]
        md5 = hashlib.md5(report.read_bytes()).hexdigest()
        outs.append({"path": f"reports/{stage}/run.json", "md5": md5})
        lock["stages"][stage] = entry | {"outs": outs}
        usual = {
            "stage": stage,
            "run": made["run"],
            "key": made["key"],
            "entry": entry,
            "code": made["code"],
            "diff": "",
            "process": DEAD,
            "execution": execution,
            "experiment": None,
            "baseline": None,
            "profile": "params.yaml",
            "sections": sections,
            "workspace": str(root),
            "started": time.time() - started + number,
        }
        journal = Journal(usual | facts)
        _fill_journal(journal, report.parent)
        journal.close("FINISHED", made)
    files.write_json(root / "dvc.lock", lock)


def _entry(stage: str, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A stage's entry in dvc.lock, without its outputs."""
    reads = [path for path in READS.get(stage, []) if not path.startswith("data/prepared/")]
    return {
        "cmd": f"python -m stages.{stage}",
        "deps": [{"path": path, "md5": digest(path)[:32]} for path in reads],
        "params": {"params.yaml": {stage: dict(sections[stage])}},
    }


def _record(root: Path, stage: str, run: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's record, whose splits are those that lie in `root`."""
    made = record(stage, run=run, key=stage_key(dict(entry)), parameters=entry["params"])
    made["inputs"] = [item for item in made["inputs"] if not item["path"].endswith(".parquet")]
    for split in SPLITS.get(stage, ()):
        path = f"data/prepared/{split}.parquet"
        made["inputs"].append({"path": path, "sha256": files.sha256(root / path), "size": 9})
    if stage == "prepare":
        splits = sorted((root / "data/prepared").glob("*.parquet"))
        made["outputs"][0]["files"] = {path.name: files.sha256(path) for path in splits}
    return made


def _fill_journal(journal: Journal, reports: Path) -> None:
    """Log grpo's curves, and keep a stage's reports."""
    curves = reports / "history.csv"
    if curves.exists():
        for row in pd.read_csv(curves).to_dict("records"):
            values = present(row)
            step = int(values.pop("step"))
            journal.metrics(values, step)
    for file in sorted(reports.iterdir()):
        if file.name != "run.json":
            journal.keep(file, file.name)
