"""MLflow against the files, by values planted in its database and its artifacts."""

from __future__ import annotations

import contextlib
import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.evaluate.results import parse_metrics
from regrpo.records import stage_run
from regrpo.tracking import rows
from tests.support.audited import (
    assert_complete,
    audited,
    flip,
    found,
    row_id,
    run_id,
)


def sql(command: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db, db:
        assert db.execute(command, values).rowcount > 0


Planted = tuple[str | None, str, Any, Any]
"""(stage, what is accused, what the files say, what MLflow says)."""


def of_run(stage: str, what: str, recorded: Any, now: Any) -> Planted:
    return stage, f"MLflow run {run_id(stage)}: {what}", recorded, now


def of_row(what: str, recorded: Any, now: Any) -> Planted:
    return None, f"MLflow row {row_id()}: {what}", recorded, now


def code_of(stage: str) -> str:
    return str(files.read_json(Path(f"reports/{stage}/run.json"))[0]["code"]["revision"])


def output_sha(stage: str, path: str) -> str:
    (record,) = files.read_json(Path(f"reports/{stage}/run.json"))
    return str(next(out["sha256"] for out in record["outputs"] if out["path"] == path))


def accuracy() -> float:
    task = files.read_json(Path("reports/evaluate/metrics.json"))["tasks"]["heldout"]
    return float(task["models"]["grpo"]["value"])


def headline() -> str:
    evaluation = parse_metrics(Path("reports/evaluate/metrics.json").read_bytes())
    return rows.headline_tags(evaluation)["regrpo.headline"]


def shown(stage: str, metric: str, step: int) -> float:
    """A cell of history.csv."""
    with Path(f"reports/{stage}/history.csv").open() as f:
        return next(float(row[metric]) for row in csv.DictReader(f) if row["step"] == str(step))


def drop_curve(stage: str, metric: str) -> None:
    for table in ("metrics", "latest_metrics"):
        sql(f"delete from {table} where run_uuid = ? and key = ?", run_id(stage), metric)


def kept(stage: str, name: str) -> Path:
    (path,) = Path("mlartifacts").glob(f"**/{run_id(stage)}/artifacts/{name}")
    return path


def set_param(run: str, name: str, value: str) -> None:
    sql("update params set value = ? where run_uuid = ? and key = ?", value, run, name)


def set_tag(run: str, name: str, value: str) -> None:
    sql("update tags set value = ? where run_uuid = ? and key = ?", value, run, name)


def set_latest(run: str, name: str, value: float) -> None:
    sql("update latest_metrics set value = ? where run_uuid = ? and key = ?", value, run, name)


def forge_artifact() -> None:
    content = files.read_json(kept("sft", "run.json"))
    content["environment"]["packages"]["torch"] = "1.0"
    files.write_json(kept("sft", "run.json"), content)


IN_MLFLOW: dict[str, tuple[Callable[[], object], Callable[[], Planted]]] = {
    "parameter": (
        lambda: set_param(run_id("grpo"), "grpo.learning_rate", "1"),
        lambda: of_run("grpo", "params grpo.learning_rate", "0.0003", "1"),
    ),
    "parameter taken away": (
        lambda: sql("delete from params where run_uuid = ? and key = 'sft.seed'", run_id("sft")),
        lambda: of_run("sft", "params sft.seed", "0", None),
    ),
    "parameter added": (
        lambda: sql(
            "insert into params (run_uuid, key, value) values (?, 'sft.made_up', '1')",
            run_id("sft"),
        ),
        lambda: of_run("sft", "params sft.made_up", None, "1"),
    ),
    "parameter of the row": (
        lambda: set_param(row_id(), "grpo.learning_rate", "1"),
        lambda: of_row("params grpo.learning_rate", "0.0003", "1"),
    ),
    "metric": (
        lambda: set_latest(run_id("evaluate"), "heldout.grpo", 0.99),
        lambda: of_run("evaluate", "metric heldout.grpo", accuracy(), 0.99),
    ),
    "metric taken away": (
        lambda: drop_curve("grpo", "health.fired"),
        lambda: of_run("grpo", "metric health.fired", 0.0, None),
    ),
    "metric of the row": (
        lambda: set_latest(row_id(), "evaluate.heldout.grpo", 0.99),
        lambda: of_row("metric evaluate.heldout.grpo", accuracy(), 0.99),
    ),
    "headline of the row": (
        lambda: set_latest(row_id(), "headline/grpo", 0.99),
        lambda: of_row("metric headline/grpo", accuracy(), 0.99),
    ),
    "headline of the row in words": (
        lambda: set_tag(row_id(), "regrpo.headline", "99 %"),
        lambda: of_row("tags regrpo.headline", headline(), "99 %"),
    ),
    "latest value of a curve": (
        lambda: set_latest(run_id("grpo"), "reward_std", 0.99),
        lambda: of_run("grpo", "metric reward_std", shown("grpo", "reward_std", 2), 0.99),
    ),
    "hash": (
        lambda: set_tag(run_id("grpo"), "regrpo.output.models/grpo", "x"),
        lambda: of_run(
            "grpo", "tags regrpo.output.models/grpo", output_sha("grpo", "models/grpo"), "x"
        ),
    ),
    "hash taken away": (
        lambda: sql(
            "delete from tags where run_uuid = ? and key = 'regrpo.output.data/prepared'",
            run_id("prepare"),
        ),
        lambda: of_run(
            "prepare",
            "tags regrpo.output.data/prepared",
            output_sha("prepare", "data/prepared"),
            None,
        ),
    ),
    "hash of the logged model": (
        lambda: sql(
            "update logged_model_tags set tag_value = 'x' "
            "where tag_key = 'regrpo.sha256' and tag_value = ?",
            output_sha("grpo", "models/grpo"),
        ),
        lambda: of_run(
            "grpo", "logged model: tags regrpo.sha256", output_sha("grpo", "models/grpo"), "x"
        ),
    ),
    "commit": (
        lambda: set_tag(run_id("sft"), "mlflow.source.git.commit", "x"),
        lambda: of_run("sft", "tags mlflow.source.git.commit", code_of("sft"), "x"),
    ),
    "status": (
        lambda: sql("update runs set status = 'FAILED' where run_uuid = ?", run_id("sft")),
        lambda: of_run("sft", "status", "FINISHED", "FAILED"),
    ),
    "artifact": (
        lambda: flip(kept("grpo", "curves.png")),
        lambda: of_run(
            "grpo",
            "artifact curves.png",
            output_sha("grpo", "reports/grpo/curves.png"),
            files.sha256(kept("grpo", "curves.png")),
        ),
    ),
    "record": (
        forge_artifact,
        lambda: of_run(
            "sft",
            "artifact run.json: environment.packages.torch",
            stage_run.environment()["packages"]["torch"],
            "1.0",
        ),
    ),
}


def test_whatever_of_mlflow_differs_from_the_files_is_named_and_nothing_else(told: Path) -> None:
    """All at once: a store at a path of its own takes seconds to open."""
    for plant, _ in IN_MLFLOW.values():
        plant()
    result = audited(mlflow=True)
    accused = [
        (one["kind"], one["stage"], one["path"], one["recorded"], one["found"])
        for one in result["faults"]
    ]
    expected = [("mlflow", *planted()) for _, planted in IN_MLFLOW.values()]
    assert sorted(accused, key=str) == sorted(expected, key=str)
    assert (result["verdict"], result["unchecked"]) == ("broken", [])


def test_a_copied_repository_is_audited_against_its_own_artifacts(copy: Path) -> None:
    """Its store still names the original's folder."""
    (mine,) = Path("mlartifacts").glob(f"**/{run_id('grpo')}/artifacts")
    flip(mine / "curves.png")
    assert found(audited(mlflow=True)) == {
        ("mlflow", "grpo", f"MLflow run {run_id('grpo')}: artifact curves.png")
    }
    (mine / "curves.png").unlink()
    (mine / "history.csv").unlink()
    result = audited(mlflow=True)
    assert found(result, "unchecked") == {
        ("mlflow", "grpo", f"MLflow run {run_id('grpo')}: artifacts")
    }
    assert "curves.png, history.csv" in result["unchecked"][0]["text"]


def test_a_locked_or_broken_store_is_not_checkable(told: Path) -> None:
    Path("mlflow.db").write_bytes(b"no database at all" * 100)
    result = audited(mlflow=True)
    assert result["verdict"] == "not checkable"
    assert [one["kind"] for one in result["unchecked"]] == ["mlflow"]
    assert_complete(audited())
