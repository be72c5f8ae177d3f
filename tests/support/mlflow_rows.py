"""Whether MLflow holds a finished pipeline whole: every step once, no run left open."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

from regrpo.core import files

Points = dict[str, dict[int, float]]


def problems_in_mlflow(database: Path, experiment: str, folder: Path) -> list[str]:
    """What is wrong in an experiment's runs, by the curves (history.csv) that lie in `folder`."""
    problems = []
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        query = (
            "select run_uuid, runs.name, status from runs join experiments using (experiment_id) "
            "where experiments.name = ?"
        )
        runs = db.execute(query, [experiment]).fetchall()
        tags: dict[str, dict[str, str]] = {run: {} for run, _, _ in runs}
        for run, key, value in db.execute("select run_uuid, key, value from tags"):
            tags.get(run, {})[key] = value
        points: dict[str, list[tuple[str, int, float]]] = {run: [] for run, _, _ in runs}
        for run, key, step, value in db.execute("select run_uuid, key, step, value from metrics"):
            if not key.startswith("system/"):
                points.get(run, []).append((key, step, value))
    for run, name, status in runs:
        if status == "RUNNING":
            problems.append(f"MLflow: {name} is still running")
        counted = Counter((key, step) for key, step, _ in points[run])
        doubled = [f"{key} at {step}" for (key, step), times in counted.items() if times > 1]
        if doubled:
            problems.append(f"MLflow: {name} holds twice: {', '.join(doubled[:5])}")
    ended = {run: tags[run] for run, _, status in runs if status == "FINISHED"}
    if not any(one.get("regrpo.kind") == "pipeline" for one in ended.values()):
        problems.append("MLflow: no pipeline finished")
    for run, one in ended.items():
        problems += _gaps(one, _curves(points[run]), folder)
    return problems


def _curves(points: list[tuple[str, int, float]]) -> Points:
    found: Points = {}
    for key, step, value in points:
        found.setdefault(key, {})[step] = value
    return found


def _gaps(tags: dict[str, str], found: Points, folder: Path) -> list[str]:
    """Where a finished run's curves are not those of history.csv."""
    stage = tags.get("regrpo.stage")
    prefix = ""
    if tags.get("regrpo.kind") == "pipeline":
        stage, prefix = "grpo", "GRPO/"
    if stage not in ("sft", "grpo"):
        return []
    expected: Points = {}
    for row in files.parse_history((folder / f"reports/{stage}/history.csv").read_bytes()):
        step = int(row.pop("step"))
        for name, value in row.items():
            expected.setdefault(name, {})[step] = value
    # A pipeline's row carries some of the curves.
    names = ["reward", "loss", "dev_accuracy"] if prefix else list(expected)
    return [
        f"MLflow: {prefix}{name} is not as in history.csv"
        for name in names
        if found.get(prefix + name) != expected[name]
    ]
