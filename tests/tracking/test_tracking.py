"""What becomes of journals and whole pipelines in MLflow (a real sqlite store), and the tracker (a real process)."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.core import files
from regrpo.core.dvc import entry_now
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.pipeline import Snapshot, stage_key
from regrpo.core.profiles import SECTIONS, STAGES
from regrpo.core.settings import Section
from regrpo.records import follower_process, stage_run
from regrpo.records.journal import JournalReader, is_alive, pending
from regrpo.tracking import follower as follower_module
from regrpo.tracking import rows
from tests.support.pipelines import commit, digest, lock_entry, record, write_pipeline, write_stage
from tests.support.stores import DEAD, MYSELF, artifacts, finished_journal, only, open_journal, runs

if TYPE_CHECKING:
    from regrpo.tracking.writer import Store


def append(path: Path, text: str) -> None:
    with path.open("a") as f:
        f.write(text)


# --- names and values -----------------------------------------------------------------------------


def test_parameters_are_flattened_by_section_with_lists_and_empty_mappings_as_leaves() -> None:
    section = {
        "lr": 1e-4,
        "lora": None,
        "source": {"kind": "local", "config": {}},
        "layers": ["a", 1],
        "bf16": False,
    }
    assert rows.parameters({"grpo": section}) == {
        "grpo.lr": "0.0001",
        "grpo.lora": "null",
        "grpo.source.kind": "local",
        "grpo.source.config": "{}",
        "grpo.layers": '["a",1]',
        "grpo.bf16": "false",
    }


def test_evaluations_have_short_names_and_nothing_but_numbers_is_a_metric() -> None:
    pair = {"difference": 0.5, "ci95": [0.4, 0.6], "p_mcnemar": None}
    grpo = {"value": 0.9, "ci95": [0.8, None]}
    task = {
        "metric": "exact",
        "n": 3,
        "version": 1,
        "models": {"grpo": grpo},
        "pairs": {"sft_grpo": pair},
    }
    report = {
        "tasks": {"held|out": task},
        "gain": {"total": 0.5, "total_ci95": [0.4, 0.6]},
        "checks": [1],
        "passed": True,
    }
    assert dict(rows.numbers(report)) == {
        "held_out.n": 3.0,
        "held_out.grpo": 0.9,
        "held_out.sft_grpo.difference": 0.5,
        "held_out.sft_grpo.ci95_low": 0.4,
        "held_out.sft_grpo.ci95_high": 0.6,
        "gain.total": 0.5,
        "gain.total_ci95_low": 0.4,
        "gain.total_ci95_high": 0.6,
        "passed": 1.0,
    }


# --- stage runs -----------------------------------------------------------------------------------


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
    assert [row["status"] for row in follower_module.sync_once(store).changed] == ["FINISHED"]

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


def test_a_running_stage_is_watched_live_and_no_line_is_sent_twice(
    root: Path, store: Store
) -> None:
    journal = open_journal(root)
    journal.metrics({"reward": 0.1}, 1)
    follower_module.sync_once(store)
    run_id = only(store).info.run_id
    assert only(store).info.status == "RUNNING"
    assert journal.mlflow_run_id(follower_process.is_following) == run_id
    append(journal.folder / "metrics.jsonl", '{"step": 2, "half a li')
    follower_module.sync_once(store)
    assert [metric.step for metric in store.client.get_metric_history(run_id, "reward")] == [1]
    append(
        journal.folder / "metrics.jsonl", 'ne": 0, "time": 2000000000, "values": {"reward": 0.2}}\n'
    )
    follower_module.sync_once(store)
    assert [metric.step for metric in store.client.get_metric_history(run_id, "reward")] == [1, 2]
    journal.close("FINISHED", record("sft"))


def test_telling_twice_changes_nothing_even_if_the_first_time_was_cut_off(
    root: Path, store: Store
) -> None:
    write_pipeline(root)
    journals = [finished_journal(root, stage, execution=DEAD) for stage in ("sft", "grpo")]
    follower_module.sync_once(store)
    before = {run.info.run_id for run in runs(store)}
    assert follower_module.sync_once(store).changed == []
    for journal in journals:  # as if killed before it could note anything
        (journal.folder / "sent").unlink()
        (journal.folder / "mlflow.json").unlink()
    assert follower_module.sync_once(store).failures == []
    assert {run.info.run_id for run in runs(store)} == before
    assert len(before) == 3


def test_a_stage_whose_process_vanished_was_killed(root: Path, store: Store) -> None:
    journal = open_journal(root, process=DEAD)
    journal.metrics({"loss": 1.0}, 1)
    follower_module.sync_once(store)
    assert only(store).info.status == "KILLED"
    assert only(store).data.metrics == {"loss": 1.0}


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    assert is_alive(MYSELF)
    assert not is_alive([MYSELF[0], MYSELF[1] - 60])
    assert not is_alive(None)


def test_a_journal_that_mlflow_refuses_keeps_no_other_from_it(root: Path, store: Store) -> None:
    broken = open_journal(root, process=DEAD)
    (broken.folder / "metrics.jsonl").write_text("no JSON\n")
    finished_journal(root, "grpo")
    done = follower_module.sync_once(store)
    assert [row["name"] for row in done.changed] == ["grpo"]
    assert len(done.failures) == 1
    assert not (broken.folder / "sent").exists()


def test_runs_of_one_stage_all_have_the_same_parameter_names(root: Path, store: Store) -> None:
    for run, section in {"one": {"beta": 0.1}, "two": {"lora": None}}.items():
        entry = lock_entry("grpo") | {"params": {"params.yaml": {"grpo": section}}}
        finished_journal(root, "grpo", run=run, entry=entry)
        follower_module.sync_once(store)
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


# --- pipeline rows --------------------------------------------------------------------------------


def test_a_finished_execution_is_one_row_with_the_whole_pipeline(root: Path, store: Store) -> None:
    write_pipeline(root)
    write_stage(
        root, "prepare", mlflow_run_id="the run that made it"
    )  # restored: no process ran in this execution
    (root / "reports" / "grpo" / "curves.png").write_bytes(b"png")
    for stage in STAGES[1:]:
        finished_journal(root, stage, execution=DEAD)
    follower_module.sync_once(store)

    row = only(store, kind="pipeline")
    key = str(Snapshot(root).pipeline_key())
    assert (row.info.run_name, row.info.status) == (f"pipeline {key[:12]}", "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(store, kind="stage")} == {
        row.info.run_id
    }
    assert {f"{stage}.seed" for stage in STAGES} <= set(row.data.params)
    assert row.data.metrics == {
        "grpo.steps": 80.0,
        "grpo.reward_last": 0.9,
        "grpo.health.fired": 0.0,
        "evaluate.heldout.n": 300.0,
        "evaluate.heldout.grpo": 0.9,
        "evaluate.heldout.grpo.ci95_low": 0.86,
        "evaluate.heldout.grpo.ci95_high": 0.93,
        "headline/grpo": 0.9,
    }
    expected = {
        "regrpo.pipeline_key": key,
        "regrpo.stage.prepare": "the run that made it",
        "regrpo.stage.grpo": "grpo-0",
        "regrpo.output.models/grpo": digest("models/grpo 0"),
        "regrpo.health": "healthy",
        "regrpo.complete": "true",
    }
    assert expected.items() <= row.data.tags.items()
    assert artifacts(store, row) == {"grpo/curves.png", "outputs.json"}
    models = {
        model.name: model.tags["regrpo.dvc_md5"]
        for model in store.client.search_logged_models([store.experiment_id])
    }
    assert models == {
        f"Tiny-1-5-{name}": digest(f"models/{name} 0")[:32] for name in ("base", "sft", "grpo")
    }


def test_an_execution_that_failed_shows_nothing_of_an_earlier_one(root: Path, store: Store) -> None:
    write_pipeline(root)
    failed = open_journal(root, "grpo", execution=DEAD, run="another")
    failed.close("FAILED", None)
    follower_module.sync_once(store)
    row = only(store, complete="false")
    assert (row.info.status, row.data.metrics) == ("FAILED", {})
    assert row.data.tags["regrpo.stage.grpo"] == only(store, run="another").info.run_id
    assert "regrpo.pipeline_key" not in row.data.tags


def test_an_execution_whose_dvc_lives_is_left_running_and_one_that_died_before_dvc_lock_was_killed(
    root: Path, store: Store
) -> None:
    write_stage(root, "sft")
    finished_journal(root, "sft", execution=MYSELF)
    finished_journal(root, "grpo", execution=DEAD)
    follower_module.sync_once(store)
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
    over_since: dict[str, float] = {}
    assert follower_module.sync_once(store, over_since).waiting
    assert only(store, kind="pipeline", experiment="lively-one").info.status == "RUNNING"
    monkeypatch.setattr(follower_module, "GRACE", 0.0)
    assert not follower_module.sync_once(store, over_since).waiting
    assert only(store, kind="pipeline", experiment="lively-one").info.status == "KILLED"


def test_an_experiment_is_read_from_its_reference_when_its_workspace_is_gone(
    root: Path, store: Store
) -> None:
    write_pipeline(root)
    commit(root, f"refs/exps/{'a' * 2}/{'b' * 38}/lively-one")
    write_pipeline(root, 1)
    finished_journal(root, "evaluate", execution=DEAD, experiment="lively-one", workspace="/gone")
    follower_module.sync_once(store)
    row = only(store, kind="pipeline", experiment="lively-one")
    assert (row.info.status, row.data.params["sft.seed"], row.info.run_name) == (
        "FINISHED",
        "0",
        "lively-one",
    )


def test_pipelines_restored_from_cache_have_one_row_each(root: Path, store: Store) -> None:
    write_pipeline(root)
    commit(root, f"refs/exps/{'a' * 2}/{'b' * 38}/restored")
    follower_module.sync_once(
        store
    )  # the workspace holds the same pipeline: no row besides the experiment's
    row = only(store)
    assert (row.info.run_name, row.info.status) == ("restored", "FINISHED")
    assert {
        "regrpo.restored": "true",
        "regrpo.baseline": "a" * 2 + "b" * 38,
    }.items() <= row.data.tags.items()
    assert row.data.metrics["evaluate.heldout.grpo"] == 0.9
    write_pipeline(root, 1)
    follower_module.sync_once(store)
    key = str(Snapshot(root).pipeline_key())
    assert {run.info.run_name for run in runs(store)} == {"restored", f"pipeline {key[:12]}"}
    (root / ".regrpo" / "synced.json").unlink()
    assert follower_module.sync_once(store).changed == []


def test_a_pipeline_that_does_not_fit_together_has_no_row(root: Path, store: Store) -> None:
    write_pipeline(root)
    write_stage(root, "prepare", 1)
    assert follower_module.sync_once(store).changed == []


# --- sync, the tracker, and their lock ------------------------------------------------------------


def test_with_the_server_down_the_journal_waits_and_is_sent_later(
    root: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    journal = finished_journal(root, "sft")
    started = time.monotonic()
    with pytest.raises(CannotCheck) as caught:
        follower_module.sync()
    follower_module._follow_until_idle()
    assert time.monotonic() - started < 45
    assert "secret" not in str(caught.value)
    assert "error" in JournalReader(journal.folder).tracker_notes
    assert journal.mlflow_run_id(follower_process.is_following) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert [row["status"] for row in follower_module.sync()] == ["FINISHED"]
    assert JournalReader(journal.folder).tracker_notes["run_id"] == journal.mlflow_run_id(
        follower_process.is_following
    )


def test_a_sync_with_nothing_to_do_loads_no_mlflow(root: Path, store: Store) -> None:
    write_pipeline(root)
    assert len(follower_module.sync()) == 1
    code = "import sys; from regrpo.cli import main; assert main(['sync']) == 0; assert 'mlflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FINISHED" in done.stdout


def test_sync_outside_a_repository_says_so(root: Path) -> None:
    (root / "dvc.yaml").unlink()
    with pytest.raises(CannotCheck, match=r"dvc\.yaml"):
        follower_module.sync()
    assert not (root / ".regrpo").exists()


def test_the_lock_is_held_by_one(root: Path) -> None:
    assert not follower_process.is_following()
    with follower_module._locked(0) as first:
        assert first
        assert follower_process.is_following()
        with follower_module._locked(0) as second:
            assert not second
        follower_process.start_following()
        assert not follower_process._followers
    assert not follower_process.is_following()


def test_one_tracker_answers_a_running_stage_and_ends_by_itself(root: Path, store: Store) -> None:
    journal = open_journal(root)
    follower_process.start_following()
    (follower,) = follower_process._followers
    try:
        assert (
            journal.mlflow_run_id(follower_process.is_following, patience=60)
            == only(store).info.run_id
        )
        assert follower_process.is_following()
        second = subprocess.run(
            [sys.executable, "-m", "regrpo.tracking.follower", "--follow"], check=False, timeout=60
        )
        assert second.returncode == 0  # it went away; the first is still there
        assert follower.poll() is None
        journal.metrics({"loss": 1.0}, 1)
        journal.close("FINISHED", record("sft"))
        assert follower.wait(60) == 0
    finally:
        follower.kill()
        follower_process._followers.clear()
    assert only(store).info.status == "FINISHED"
    assert not list(pending())


def test_tracking_off_starts_nothing_and_tells_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRPO_TRACKING", "off")
    journal = finished_journal(root, "sft")
    follower_process.start_following()
    assert not follower_process._followers
    assert journal.mlflow_run_id(follower_process.is_following) is None
    assert follower_module.sync() == []
    monkeypatch.delenv("REGRPO_TRACKING")
    assert not list(pending())


# --- the stage's frame ----------------------------------------------------------------------------


class Params(Section):
    seed: int


@pytest.fixture
def stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one stage, `prepare`, whose tracker is off."""
    import signal

    monkeypatch.setenv("REGRPO_TRACKING", "off")
    monkeypatch.setattr(stage_run, "require_checked_profile", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (root / "code.py").write_text("pass\n")
    sections = {name: {"seed": 1} for name in SECTIONS}
    files.write_json(root / "params.yaml", {"profile": "params.yaml"} | sections)
    declared = {
        "cmd": "python -m stages.prepare",
        "deps": ["code.py"],
        "outs": ["out.txt", "reports/prepare/run.json"],
    }
    files.write_json(root / "dvc.yaml", {"stages": {"prepare": declared}})
    return root


def closed_status(root: Path) -> str:
    (folder,) = (root / ".regrpo" / "journal").iterdir()
    return str(files.read_json(folder / "closed.json")["status"])


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def test_a_record_tells_what_was_read_and_written_and_nothing_of_user_host_or_place(
    stage: Path,
) -> None:
    with stage_run.stage("prepare", Params) as run:
        run.log({"rows": 3})
        files.write_text(Path("out.txt"), f"seed {run.params.seed}\n")
    [written] = files.read_json(stage / "reports" / "prepare" / "run.json")
    assert written["key"] == stage_key(entry_now("prepare"))
    assert [(item["path"], item["size"]) for item in written["inputs"]] == [("code.py", 5)]
    assert [(item["path"], item["sha256"]) for item in written["outputs"]] == [
        ("out.txt", digest("seed 1\n"))
    ]
    assert written["mlflow_run_id"] is None
    said = list(texts(written))
    assert not {getpass.getuser(), platform.node()} & set(said)
    assert not [text for text in said if Path(text).is_absolute() or str(stage) in text]
    assert closed_status(stage) == "FINISHED"


def test_a_refusing_stage_ends_with_its_code_and_failed(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, stage_run.stage("prepare", Params):
        raise Refused("a row", expected="this", found="that", remedy="Mend it.")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "prepare: a row: expected this; found that. Mend it.\n"
    assert closed_status(stage) == "FAILED"
    assert not (stage / "reports" / "prepare" / "run.json").exists()


def test_a_fault_of_ours_keeps_its_traceback_and_an_interrupted_stage_was_killed(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), stage_run.stage("prepare", Params):
        raise KeyboardInterrupt
    assert closed_status(stage) == "KILLED"
    with pytest.raises(SystemExit) as caught, stage_run.stage("prepare", Params):
        raise ZeroDivisionError
    assert caught.value.code == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_long_error_keeps_its_end_where_an_http_client_tells_the_cause() -> None:
    told = follower_module._log_and_name(RuntimeError(f"API request {'x' * 1000} (Caused by 503)"))
    assert len(told) == 300
    assert told.startswith("RuntimeError: API request")
    assert told.endswith("(Caused by 503)")
