"""The process in the background: one per repository, which ends by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regrpo.records import follower_process
from regrpo.records.journal import pending
from regrpo.tracking import address, follower, notes, state, sync
from tests.support.pipelines import record
from tests.support.stores import finished_journal, only, open_journal

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


def test_the_lock_is_held_by_one(root: Path) -> None:
    assert not follower_process.is_following()
    with state.locked(0) as first:
        assert first
        assert follower_process.is_following()
        with state.locked(0) as second:
            assert not second
        follower_process.start_following()
        assert not follower_process._followers
    assert not follower_process.is_following()


def test_one_tracker_answers_a_running_stage_and_ends_by_itself(root: Path, store: Store) -> None:
    journal = open_journal(root)
    follower_process.start_following()
    (process,) = follower_process._followers
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
        assert process.poll() is None
        journal.metrics({"loss": 1.0}, 1)
        journal.close("FINISHED", record("sft"))
        assert process.wait(60) == 0
    finally:
        process.kill()
        follower_process._followers.clear()
    assert only(store).info.status == "FINISHED"
    assert not list(pending())


def test_a_store_that_fails_is_closed_with_its_samplers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    open_store = follower.open_store

    class Sampler:
        def finish(self) -> None:
            ended.append("sampler")

    def open_and_sample() -> Store:
        opened = open_store()
        opened.monitors["run"] = Sampler()
        return opened

    def fail(store: Store) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(follower, "open_store", open_and_sample)
    monkeypatch.setattr(follower, "sync_once", fail)
    follower.follow_until_idle()
    assert ended == ["sampler"]


def test_a_second_tracker_leaves_the_words_of_the_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has its lock, a tracker that was just started is not known to be there."""
    log = root / ".regrpo/tracking.log"
    log.parent.mkdir()
    log.write_text("the first's\n")
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    follower_process.start_following()
    follower_process._followers.pop().wait(20)
    assert log.read_text().startswith("the first's\n-m regrpo.tracking.follower")


def test_a_log_that_is_too_long_is_begun_anew_once(root: Path) -> None:
    log = root / ".regrpo/tracking.log"
    log.parent.mkdir()
    code = (
        "import os\nfrom regrpo.tracking import state\nstate.LOG_BYTES = 100\n"
        "for number in range(3):\n    state.bound_log()\n"
        "    os.write(2, f'{number}\\n'.encode() * 60)\n"
    )
    with log.open("ab") as own:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=own, stderr=own)
    assert log.read_text() == "2\n" * 60
    assert (root / ".regrpo/tracking.log.1").read_text() == "1\n" * 60
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    assert log.read_text() == "2\n" * 60, "not by another process than the log's"


def test_tracking_off_starts_nothing_and_tells_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRPO_TRACKING", "off")
    journal = finished_journal(root, "sft")
    follower_process.start_following()
    assert not follower_process._followers
    assert journal.mlflow_run_id(follower_process.is_following) is None
    assert sync.sync() == []
    monkeypatch.delenv("REGRPO_TRACKING")
    assert not list(pending())


def test_make_ui_prints_addresses_that_open_the_saved_view_and_hides_the_stores(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _, *with_what: started.append(with_what))
    follower.open_ui(5001)
    ((command, variables),) = started
    uri = address.tracking_uri()
    assert "mlflow" in command
    assert uri not in " ".join(command)
    assert variables["MLFLOW_BACKEND_STORE_URI"] == uri
    _, *lines = capsys.readouterr().out.splitlines()
    shown = dict(line.split() for line in lines)
    assert shown == notes.addresses("http://127.0.0.1:5001", store.experiment_id)
    assert notes.VIEW in store.client.get_experiment(store.experiment_id).tags
