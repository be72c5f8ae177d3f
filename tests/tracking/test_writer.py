"""A stage's journal as its run in a real MLflow store."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regrpo.core import files
from regrpo.records import follower_process
from regrpo.records.journal import JournalReader
from regrpo.tracking import passes
from tests.support.pipelines import digest, lock_entry, record, write_pipeline
from tests.support.stores import DEAD, artifacts, finished_journal, only, open_journal, runs

if TYPE_CHECKING:
    from regrpo.tracking.store import Point, Store


class Killed(BaseException):
    """Ends a pass wherever it is."""


def append(path: Path, text: str) -> None:
    with path.open("a") as f:
        f.write(text)


def test_a_finished_stage_has_its_run_with_everything(root: Path, store: Store) -> None:
    journal = open_journal(root)
    journal.metrics({"loss": 2.0, "note": "no number"}, 1)  # type: ignore[dict-item]
    journal.metrics({"loss": 1.0}, 2)
    for name, text in {
        "metrics.json": '{"steps": 1200, "loss": 0.5}',
        "history.csv": "step,loss\n",
        "gx/a.html": "",
    }.items():
        (root / "report").write_text(text)
        journal.keep(root / "report", name)
    journal.close("FINISHED", record("sft"))
    assert [row["status"] for row in passes.sync_once(store).changed] == ["FINISHED"]

    run = only(store)
    facts = JournalReader(journal.folder).facts
    assert (run.info.run_name, run.info.status, run.info.user_id) == (
        f"sft {facts['key'][:8]}",
        "FINISHED",
        "regrpo",
    )
    assert run.info.start_time == int(facts["started"] * 1000)
    assert run.data.params == {
        "profile": "params.yaml",
        "sft.seed": "0",
        "sft.source.kind": "local",
        "sft.source.names": '["a"]',
    }
    assert run.data.metrics == {"loss": 1.0, "steps": 1200.0}, (
        "the last of a curve is not its summary"
    )
    history = store.client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)], (
        "no step twice"
    )
    expected = {
        "regrpo.kind": "stage",
        "regrpo.stage": "sft",
        "regrpo.key": facts["key"],
        "regrpo.run": "sft-0",
        "regrpo.output.models/sft": digest("models/sft 0"),
        "regrpo.git.dirty": "true",
        "mlflow.source.git.commit": "c" * 40,
        "mlflow.user": "regrpo",
    }
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in run.data.tags
    assert artifacts(store, run) == {
        "code.diff",
        "run.json",
        "metrics.json",
        "history.csv",
        "gx/a.html",
    }

    (used,) = run.inputs.dataset_inputs
    whole = digest("t 0")
    assert (used.dataset.name, used.dataset.digest, used.dataset.source) == (
        "train.parquet",
        whole[:32],
        '{"uri": "data/prepared/train.parquet"}',
    )
    assert {tag.key: tag.value for tag in used.tags} == {
        "mlflow.data.context": "training",
        "sha256": whole,
    }

    (model,) = store.client.search_logged_models([store.experiment_id])
    assert (model.name, model.source_run_id, str(model.status)) == (
        "Tiny-1-5-sft",
        run.info.run_id,
        "READY",
    )
    assert (model.tags["regrpo.sha256"], model.params["path"]) == (
        digest("models/sft 0"),
        "models/sft",
    )
    assert model.params["sft.seed"] == "0"
    assert {metric.key: metric.value for metric in model.metrics} == {"steps": 1200.0}
    assert [a.path for a in store.client.list_logged_model_artifacts(model.model_id)] == ["MLmodel"]

    assert model.tags["mlflow.source.git.repoURL"] == ""
    said = json.dumps([run.data.to_dictionary(), dict(model.tags), dict(model.params)])
    assert str(root) not in said
    assert platform.node() not in said
    assert getpass.getuser() not in (run.data.tags["mlflow.user"], model.tags["mlflow.user"])


def test_a_split_that_is_no_parquet_file_is_logged_without_columns(
    root: Path, store: Store
) -> None:
    split = root / "data/prepared/train.parquet"
    split.parent.mkdir(parents=True)
    split.write_text("no Parquet")
    made = record("sft")
    item = {"path": "data/prepared/train.parquet", "sha256": files.sha256(split), "size": 10}
    made["inputs"] = [item]
    open_journal(root).close("FINISHED", made)
    assert passes.sync_once(store).failures == []
    [used] = only(store).inputs.dataset_inputs
    assert (used.dataset.schema, used.dataset.profile) == (None, None)


def test_a_running_stage_is_watched_live_and_no_line_is_sent_twice(
    root: Path, store: Store
) -> None:
    journal = open_journal(root)
    journal.metrics({"reward": 0.1}, 1)
    passes.sync_once(store)
    run_id = only(store).info.run_id
    assert only(store).info.status == "RUNNING"
    assert journal.mlflow_run_id(follower_process.is_following) == run_id
    append(journal.folder / "metrics.jsonl", '{"step": 2, "half a li')
    passes.sync_once(store)
    assert [metric.step for metric in store.client.get_metric_history(run_id, "reward")] == [1]
    append(
        journal.folder / "metrics.jsonl", 'ne": 0, "time": 2000000000, "values": {"reward": 0.2}}\n'
    )
    passes.sync_once(store)
    assert [metric.step for metric in store.client.get_metric_history(run_id, "reward")] == [1, 2]
    journal.close("FINISHED", record("sft"))


def test_telling_twice_changes_nothing_even_if_the_first_time_was_cut_off(
    root: Path, store: Store
) -> None:
    write_pipeline(root)
    journals = [finished_journal(root, stage, execution=DEAD) for stage in ("sft", "grpo")]
    passes.sync_once(store)
    before = {run.info.run_id for run in runs(store)}
    assert passes.sync_once(store).changed == []
    for journal in journals:  # as if killed before it could note anything
        (journal.folder / "sent").unlink()
        (journal.folder / "mlflow.json").unlink()
    assert passes.sync_once(store).failures == []
    assert {run.info.run_id for run in runs(store)} == before
    assert len(before) == 3


def test_metrics_go_in_batches_and_a_kill_repeats_at_most_one(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[int]] = []
    send = store.log_metrics

    def log_metrics(run_id: str, points: list[Point], **options: str) -> None:
        sent.append([step for *_, step in points])
        send(run_id, points, **options)
        if len(sent) == 2:
            raise Killed

    monkeypatch.setattr(store, "log_metrics", log_metrics)
    monkeypatch.setattr("regrpo.records.journal.METRICS_AT_ONCE", 100)
    written = open_journal(root)
    for step in range(5):
        written.metrics({"loss": 1.5}, step)
    with pytest.raises(Killed):
        passes.sync_once(store)
    assert passes.sync_once(store).failures == []
    assert sent == [[0, 1], [2, 3], [2, 3], [4]]
    history = store.client.get_metric_history(only(store).info.run_id, "loss")
    assert sorted(point.step for point in history) == [0, 1, 2, 3, 4], "no step twice"


def test_a_stage_whose_process_vanished_was_killed(root: Path, store: Store) -> None:
    journal = open_journal(root, process=DEAD)
    journal.metrics({"loss": 1.0}, 1)
    passes.sync_once(store)
    assert only(store).info.status == "KILLED"
    assert only(store).data.metrics == {"loss": 1.0}


def test_runs_of_one_stage_all_have_the_same_parameter_names(root: Path, store: Store) -> None:
    for run, section in {"one": {"beta": 0.1}, "two": {"lora": None}}.items():
        entry = lock_entry("grpo") | {"params": {"params.yaml": {"grpo": section}}}
        finished_journal(root, "grpo", run=run, entry=entry)
        passes.sync_once(store)
    assert only(store, run="one").data.params == {
        "profile": "params.yaml",
        "grpo.beta": "0.1",
        "grpo.lora": "(not set)",
    }
    assert only(store, run="two").data.params == {
        "profile": "params.yaml",
        "grpo.beta": "(not set)",
        "grpo.lora": "null",
    }
