"""`regrpo sync`: with a server and without one, with something to do and without it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.core.errors import CannotCheck
from regrpo.records import follower_process
from regrpo.records.journal import JournalReader, pending
from regrpo.tracking import follower, passes, state, sync
from tests.support.pipelines import write_pipeline
from tests.support.stores import DEAD, finished_journal, only, open_journal, runs

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


WRONG_TYPES = {
    "open.json": ["process", "entry", "sections", "started", "run", "workspace", "code", "stage"],
    "closed.json": ["status", "ended", "record"],
}
GARBAGE = [
    b"",
    b'{"stage": "sf',
    b"\xff\xfe\x00",
    b"[]",
    b"7",
    b"[" * 100_000,
    b'{"stage": ' + b"9" * 10_000 + b"}",
    random.Random(1).randbytes(100_000),
]


def damages() -> Iterator[Any]:
    """(file, what it holds) of journals that cannot be read; None for a key of a wrong type."""
    for name, keys in WRONG_TYPES.items():
        for number, left in enumerate(GARBAGE):
            yield pytest.param(name, left, None, id=f"{name} {number}")
        for key in keys:
            yield pytest.param(name, None, key, id=f"{name} {key}")


@pytest.mark.parametrize(("name", "left", "key"), list(damages()))
def test_a_damaged_journal_is_set_aside_and_the_others_go_on(
    name: str, left: bytes | None, key: str | None, root: Path
) -> None:
    damaged, whole = finished_journal(root, "sft").folder, finished_journal(root, "grpo").folder
    if left is None:
        content = files.read_json(damaged / name) | {key: ["no such thing"]}
        left = json.dumps(content).encode()
    (damaged / name).write_bytes(left)
    assert [journal.folder for journal in pending()] == [whole]
    assert not damaged.exists()
    assert (root / ".regrpo/journal-damaged" / damaged.name / name).read_bytes() == left


@pytest.mark.parametrize("seed", range(40))
def test_a_byte_that_became_another_one_ends_nothing(seed: int, root: Path) -> None:
    draw = random.Random(seed)
    journal, whole = finished_journal(root, "sft"), finished_journal(root, "grpo")
    journal.metrics({"loss": 1.0}, 1)
    JournalReader(journal.folder).note(run_id="a" * 32, offset=7)
    path = draw.choice([file for file in sorted(journal.folder.iterdir()) if file.is_file()])
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 5, 50])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)
    found = list(pending())
    assert found[-1].folder == whole.folder
    for one in found:
        assert set(one.closed or {}) >= {"status", "ended", "record"}
        for _, end in one.metrics_from(one.tracker_notes.get("offset", 0)):
            assert end <= (one.folder / "metrics.jsonl").stat().st_size
        assert isinstance(one.live, bool)
        assert one.execution is None


def test_damaged_journals_are_named_and_their_open_runs_end(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = open_journal(root, execution=DEAD)
    passes.sync_once(store)
    (damaged.folder / "open.json").write_bytes(b"")
    finished_journal(root, "grpo")
    assert [row["name"] for row in sync.sync()] == ["grpo", *[damaged._name] * 2]
    assert {run.info.status for run in runs(store)} == {"FINISHED", "KILLED"}
    assert sync.sync() == []
    assert cli.main(["sync", "--quiet"]) == 0
    said = capsys.readouterr().err
    assert f"sync: 1 journal cannot be read and will not be in MLflow: {damaged._name}" in said
    damaged.metrics({"loss": 1.0}, 1)  # the stage that writes it goes on
    damaged.close("FINISHED", None)
    assert (root / ".regrpo/journal-damaged" / damaged._name / "closed.json").exists()


@pytest.mark.parametrize("left", GARBAGE)
def test_garbled_notes_of_the_tracker_are_made_again(left: bytes, root: Path, store: Store) -> None:
    journal = open_journal(root)
    journal.metrics({"loss": 1.0}, 1)
    passes.sync_once(store)
    (journal.folder / "mlflow.json").write_bytes(left)
    assert journal.trouble() is None
    journal.metrics({"loss": 0.5}, 2)
    passes.sync_once(store)
    run = only(store)
    assert JournalReader(journal.folder).tracker_notes["run_id"] == run.info.run_id
    points = store.client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]


def test_a_garbled_line_of_metrics_leaves_the_others(root: Path) -> None:
    journal = finished_journal(root, "sft")
    whole = b'{"step": %d, "time": 0, "values": {"loss": NaN, "passed": true}}\n'
    garbled = [
        b"\x00\x00\xff",
        b'{"step": 1, "time": 0, "val',
        b"[1]",
        b'{"step": "1", "time": 0, "values": {}}',
        b'{"step": 1, "time": 0, "values": [1]}',
        b'{"step": 1, "time": 0, "values": {"loss": "low"}}',
        b'{"step": 1e300, "time": 0, "values": {}}',
        b'{"step": 3, "time": 0, "values": {"' + b"x" * 2**20 + b'": 1}}',
        b"[" * 100_000,
    ]
    lines = whole % 1 + b"\n".join(garbled) + b"\n" + whole % 2
    (journal.folder / "metrics.jsonl").write_bytes(lines)
    batches = list(JournalReader(journal.folder).metrics_from(0))
    assert [line["step"] for found, _ in batches for line in found] == [1, 2]
    assert batches[-1][1] == len(lines)


@pytest.mark.parametrize("left", GARBAGE)
def test_a_garbled_note_of_what_was_synced_is_made_again(
    left: bytes, root: Path, store: Store
) -> None:
    finished_journal(root, "sft")
    sync.sync()
    (root / ".regrpo/synced.json").write_bytes(left)
    assert sync.sync() == []
    assert files.read_json(root / ".regrpo/synced.json")["stamp"] == state.stamp()


def test_a_damaged_journal_of_a_run_that_mlflow_has_not_ends_nothing(
    root: Path, store: Store
) -> None:
    damaged = open_journal(root, execution=DEAD)
    passes.sync_once(store)
    (damaged.folder / "open.json").write_bytes(b"")
    files.write_json(damaged.folder / "mlflow.json", {"run_id": "0" * 32})
    assert passes.sync_once(store).failures == []
    assert (damaged.folder / "sent").exists()
