"""Which executions and pipelines a pass finishes, waits for, or finds restored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.core.pipeline import Snapshot
from regrpo.records.journal import journal_folder
from regrpo.tracking import passes
from tests.support.pipelines import commit, record, write_pipeline, write_stage
from tests.support.stores import DEAD, MYSELF, finished_journal, only, open_journal, runs

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


def test_a_journal_that_mlflow_refuses_keeps_no_other_from_it(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run_id: str, artifact: str, path: str) -> None:
        if artifact.startswith("refused"):
            raise ConnectionResetError

    monkeypatch.setattr(store.client, "log_text", refuse)
    broken = open_journal(root, process=DEAD, diff="refused")
    finished_journal(root, "grpo")
    done = passes.sync_once(store)
    assert [row["name"] for row in done.changed] == ["grpo"]
    assert len(done.failures) == 1
    assert not (broken.folder / "sent").exists()


def test_what_has_not_changed_is_not_read_again(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        finished_journal(root, "sft", run=f"sft-{number}")
    finished_journal(root, "prepare", execution=MYSELF)
    running = open_journal(root, "grpo", execution=MYSELF)
    running.metrics({"reward": 0.5}, 1)
    for _ in range(2):
        passes.sync_once(store)
    opened: list[str] = []
    usual = Path.open

    def count(path: Path, *how: Any, **more: Any) -> Any:
        if journal_folder() in path.parents:
            opened.append(path.name)
        return usual(path, *how, **more)

    monkeypatch.setattr(Path, "open", count)
    for _ in range(3):
        assert passes.sync_once(store).failures == []
    assert opened == []
    running.metrics({"reward": 0.6}, 2)
    passes.sync_once(store)
    passes.sync_once(store)
    read = {name for name in opened if not name.startswith(".")}  # without temporary files
    assert read == {"metrics.jsonl", "mlflow.json"}
    running.close("FINISHED", record("grpo", run="grpo-0"))
    passes.sync_once(store)
    assert only(store, stage="grpo").info.status == "FINISHED"
    history = store.client.get_metric_history(only(store, stage="grpo").info.run_id, "reward")
    assert {point.step for point in history} == {1, 2}


def test_an_execution_whose_dvc_lives_is_left_running_and_one_that_died_before_dvc_lock_was_killed(
    root: Path, store: Store
) -> None:
    write_stage(root, "sft")
    finished_journal(root, "sft", execution=MYSELF)
    finished_journal(root, "grpo", execution=DEAD)
    passes.sync_once(store)
    status = {
        run.data.tags["mlflow.parentRunId"]: run.data.tags["regrpo.stage"]
        for run in runs(store, kind="stage")
    }
    assert {status[run.info.run_id]: run.info.status for run in runs(store, kind="pipeline")} == {
        "sft": "RUNNING",
        "grpo": "KILLED",
    }


def test_an_experiment_waits_for_its_reference_but_not_for_ever(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(root)
    finished_journal(root, "evaluate", execution=DEAD, experiment="lively-one")
    assert passes.sync_once(store).waiting
    assert only(store, kind="pipeline", experiment="lively-one").info.status == "RUNNING"
    monkeypatch.setattr(passes, "GRACE", 0.0)
    assert not passes.sync_once(store).waiting
    assert only(store, kind="pipeline", experiment="lively-one").info.status == "KILLED"


def test_an_experiment_is_read_from_its_reference_when_its_workspace_is_gone(
    root: Path, store: Store
) -> None:
    write_pipeline(root)
    commit(root, f"refs/exps/{'a' * 2}/{'b' * 38}/lively-one")
    write_pipeline(root, 1)
    finished_journal(root, "evaluate", execution=DEAD, experiment="lively-one", workspace="/gone")
    passes.sync_once(store)
    row = only(store, kind="pipeline", experiment="lively-one")
    assert (row.info.status, row.data.params["sft.seed"], row.info.run_name) == (
        "FINISHED",
        "0",
        "lively-one",
    )


def test_pipelines_restored_from_cache_have_one_row_each(root: Path, store: Store) -> None:
    write_pipeline(root)
    commit(root, f"refs/exps/{'a' * 2}/{'b' * 38}/restored")
    # The workspace holds the same pipeline: no row besides the experiment's.
    passes.sync_once(store)
    row = only(store)
    assert (row.info.run_name, row.info.status) == ("restored", "FINISHED")
    assert {
        "regrpo.restored": "true",
        "regrpo.baseline": "a" * 2 + "b" * 38,
    }.items() <= row.data.tags.items()
    assert row.data.metrics["evaluate.heldout.grpo"] == 0.9
    write_pipeline(root, 1)
    passes.sync_once(store)
    key = str(Snapshot(root).pipeline_key())
    assert {run.info.run_name for run in runs(store)} == {"restored", f"pipeline {key[:12]}"}
    (root / ".regrpo" / "synced.json").unlink()
    assert passes.sync_once(store).changed == []


def test_a_pipeline_that_does_not_fit_together_has_no_row(root: Path, store: Store) -> None:
    write_pipeline(root)
    write_stage(root, "prepare", 1)
    assert passes.sync_once(store).changed == []
