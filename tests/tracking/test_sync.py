"""`regrpo sync`: with a server and without one, with something to do and without it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regrpo import cli
from regrpo.core.errors import CannotCheck
from regrpo.records import follower_process
from regrpo.records.journal import JournalReader
from regrpo.tracking import follower, state, sync
from tests.support.pipelines import write_pipeline
from tests.support.stores import finished_journal

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


def test_with_the_server_down_the_journal_waits_and_is_sent_later(
    root: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    journal = finished_journal(root, "sft")
    started = time.monotonic()
    with pytest.raises(CannotCheck) as caught:
        sync.sync()
    follower.follow_until_idle()
    assert time.monotonic() - started < 45
    assert "secret" not in str(caught.value)
    assert "error" in JournalReader(journal.folder).tracker_notes
    assert journal.mlflow_run_id(follower_process.is_following) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert [row["status"] for row in sync.sync()] == ["FINISHED"]
    assert JournalReader(journal.folder).tracker_notes["run_id"] == journal.mlflow_run_id(
        follower_process.is_following
    )


def test_a_sync_with_nothing_to_do_loads_no_mlflow(root: Path, store: Store) -> None:
    write_pipeline(root)
    assert len(sync.sync()) == 1
    code = (
        "import sys; from regrpo.cli import main; assert main(['sync']) == 0; "
        "assert 'mlflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FINISHED" in done.stdout


def test_sync_outside_a_repository_says_so(root: Path) -> None:
    (root / "dvc.yaml").unlink()
    with pytest.raises(CannotCheck, match=r"dvc\.yaml"):
        sync.sync()
    assert not (root / ".regrpo").exists()


def test_a_long_error_keeps_its_end_where_an_http_client_tells_the_cause() -> None:
    told = state.log_error(RuntimeError(f"API request {'x' * 1000} (Caused by 503)"))
    assert len(told) == 300
    assert told.startswith("RuntimeError: API request")
    assert told.endswith("(Caused by 503)")


@pytest.mark.parametrize("name", ["open.json", "closed.json", "mlflow.json"])
@pytest.mark.parametrize("left", [b"", b'{"stage": "sf', b"\xff\xfe\x00", b"[]", b"7"])
def test_a_damaged_journal_is_set_aside_and_the_others_go_on(
    name: str, left: bytes, root: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, whole = finished_journal(root, "sft"), finished_journal(root, "grpo")
    (damaged.folder / name).write_bytes(left)
    assert [row["name"] for row in sync.sync()] == ["grpo"]
    assert not damaged.folder.exists()
    assert (root / ".regrpo/journal-damaged" / damaged.folder.name / name).read_bytes() == left
    assert JournalReader(whole.folder).tracker_notes["run_id"]
    assert cli.main(["sync", "--quiet"]) == 0
    said = capsys.readouterr().err
    assert (
        f"sync: 1 journal cannot be read and will not be in MLflow: {damaged.folder.name}" in said
    )


def test_a_garbled_line_of_metrics_leaves_the_others(root: Path) -> None:
    journal = finished_journal(root, "sft")
    whole = b'{"step": %d, "time": 0, "values": {}}\n'
    lines = whole % 1 + b"\x00\x00\xff\n" + whole % 2
    (journal.folder / "metrics.jsonl").write_bytes(lines)
    found, offset = JournalReader(journal.folder).metrics_from(0)
    assert [line["step"] for line in found] == [1, 2]
    assert offset == len(lines)
