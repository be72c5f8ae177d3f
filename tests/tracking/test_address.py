"""Failures of the store that waiting does not cure are told with what does."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.records.journal import JournalReader
from regrpo.tracking import address, follower, passes, sync
from tests.support.stores import DEAD, finished_journal, only, open_journal

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


def refusal() -> str:
    with pytest.raises(CannotCheck) as caught:
        sync.sync()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_deleted_experiment_is_told_with_the_command_that_restores_it(
    root: Path, store: Store
) -> None:
    journal = finished_journal(root, "sft")
    store.client.delete_experiment(store.experiment_id)
    command = f"`mlflow experiments restore -x {store.experiment_id}`"
    said = refusal()
    assert command in said
    assert "or set MLFLOW_EXPERIMENT_NAME to another experiment. The journals are kept." in said
    follower.follow_until_idle()
    trouble = journal.trouble()
    assert trouble is not None
    assert command in trouble
    store.client.restore_experiment(store.experiment_id)
    assert [row["status"] for row in sync.sync()] == ["FINISHED"]
    assert journal.trouble() is None


def test_a_run_deleted_while_its_stage_runs_is_told_and_goes_on_when_it_is_back(
    root: Path, store: Store
) -> None:
    journal = open_journal(root)
    passes.sync_once(store)
    run_id = only(store).info.run_id
    store.client.delete_run(run_id)
    journal.metrics({"loss": 1.0}, 1)
    done = passes.sync_once(store)
    (remedy,) = done.cures
    assert f"mlflow runs restore --run-id {run_id}" in remedy
    assert remedy in str(journal.trouble())
    assert JournalReader(journal.folder).tracker_notes["run_id"] == run_id
    store.client.restore_run(run_id)
    assert passes.sync_once(store).failures == []
    assert journal.trouble() is None


def test_a_file_where_artifacts_belong_is_named(root: Path, store: Store) -> None:
    (root / "mlartifacts").write_text("")
    finished_journal(root, "sft", diff="--- a change")
    said = refusal()
    assert str(root / "mlartifacts") in said
    assert "Move the file of that name away" in said


def test_a_registered_name_that_a_prompt_has_is_told(root: Path, store: Store) -> None:
    name = f"taken-{root.name}"
    store.client.create_prompt(name)
    journal = finished_journal(root, "sft")
    passes.sync_once(store)
    model = JournalReader(journal.folder).tracker_notes["model_id"]
    with pytest.raises(CannotCheck, match=r"Give another model_card\.model_name"):
        store.registry().register(name, model, {})
    assert store.registry().register(f"free-{root.name}", model, {}) == "1"


def test_a_folder_of_files_as_store_is_told_with_what_is_a_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(root / "mlruns"))
    finished_journal(root, "sft")
    assert "Set MLFLOW_TRACKING_URI to a server, or to a database" in refusal()


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """A server that answers every request with the status that the fixture's value is given."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.server_port}")
    yield lambda code: status.__setitem__(0, code)
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "Correct the login: MLFLOW_TRACKING_USERNAME"),
        (403, "Ask its owner for the right to write there"),
        (507, "Free room there"),
        (404, "run `regrpo sync` again when it can be reached"),
    ],
)
def test_what_a_server_answers_decides_the_remedy(
    root: Path, server: Callable[[int], None], status: int, remedy: str
) -> None:
    finished_journal(root, "sft", process=DEAD)
    server(status)
    assert remedy in refusal()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), address.ROOM),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), address.ROOM),
        (PermissionError(errno.EACCES, "Permission denied"), address.ALLOW),
        (sqlite3.OperationalError("database or disk is full"), address.ROOM),
        (sqlite3.OperationalError("attempt to write a readonly database"), address.ALLOW),
        (RuntimeError("ClientError: (AccessDenied) when calling PutObject"), address.ASK),
        (RuntimeError("FATAL: password authentication failed for user"), address.LOGIN),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), None),
        (TimeoutError("timed out"), None),
        (RuntimeError("API request failed with error code 503 != 200"), None),
        (sqlite3.OperationalError("database is locked"), None),
    ],
)
def test_a_failure_is_cured_by_waiting_or_by_what_its_kind_needs(
    error: Exception, remedy: str | None
) -> None:
    assert address.cure(error) == remedy
    wrapped = RuntimeError("MLflow failed")
    wrapped.__cause__ = error
    assert address.cure(wrapped) == remedy


PATHS = [
    "/a/mlflow.db",
    '/a b/#1 %41 50%/what?now/проба "x"/[y]*{z}\\w/mlflow.db',
    "/a;b&c=d+e@f/m.db",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_database_of_any_path_has_an_address_that_its_library_reads_so(path: str) -> None:
    from sqlalchemy import make_url

    uri = address.sqlite_uri(Path(path))
    assert make_url(uri).database == path
    assert not make_url(uri).query
    assert address.database_file(uri) == Path(path)


def test_only_an_sqlite_address_has_a_file() -> None:
    assert address.database_file("sqlite:///mlflow.db?mode=ro") == Path("mlflow.db")
    assert address.database_file("http://127.0.0.1:5000/mlflow.db") is None


def test_a_store_in_a_folder_with_a_quoted_name_makes_no_other_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "100% sure?"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(folder / "mlflow.db"))
    before = {path.name for path in root.iterdir()}
    passes.open_store()
    assert {path.name for path in root.iterdir()} - before == {folder.name}
    assert (folder / "mlflow.db").is_file()


def test_no_password_is_left_in_what_the_tracker_keeps(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    journals = [finished_journal(root, stage) for stage in ("sft", "grpo")]
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", "http://bob:hunter2-pw@127.0.0.1:9/x?token=hunter3-pw"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter4-pw")
    said = refusal()
    follower.follow_until_idle()
    mlflow.set_tracking_uri(store.uri)
    done = passes.sync_once(store)  # the store that was opened before: all goes there
    assert done.failures == []
    synced = root / ".regrpo/synced.json"
    assert "where" in synced.read_text()
    kept = [path.read_text() for path in (root / ".regrpo").rglob("*") if path.is_file()]
    assert any("Max retries exceeded" in one for one in kept), "the log has MLflow's own words"
    assert "hunter" not in "".join([said, *kept])
    assert all(JournalReader(journal.folder).tracker_notes["run_id"] for journal in journals)


def test_another_password_is_another_store_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:one@127.0.0.1:9")
    one = address.store_id()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:two@127.0.0.1:9")
    assert address.store_id() != one
    assert len(one) == 64


def test_a_long_reply_is_looked_at_in_no_time() -> None:
    started = time.process_time()
    assert address.cure(RuntimeError("403 " * 250_000)) is None
    assert time.process_time() - started < 2
