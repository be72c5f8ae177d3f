"""Whatever bytes a server answers with, `regrpo sync` ends in one line and keeps the journals."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from regrpo import cli
from regrpo.records.journal import pending
from regrpo.tracking import sync
from tests.support.replies import answering, http
from tests.support.stores import finished_journal

EXPERIMENT = {"experiment_id": "1", "name": "x", "lifecycle_stage": "active", "tags": []}
REPLIES = {
    "nothing": b"",
    "no HTTP": random.Random(1).randbytes(5000),
    "garbage": http(random.Random(2).randbytes(5000)),
    "HTML": http(b"<!doctype html><h1>Log in</h1>", "200 OK", "Content-Type: text/html"),
    "HTML, 502": http(b"<html><h1>Bad gateway</h1></html>", "502 Bad Gateway"),
    "escapes": http(b"\x1b]0;mine\x07\x1b[2J", "404 Not Found"),
    "JSON list": http(b"[]"),
    "JSON null": http(b"null"),
    "JSON text": http(b'"experiment"'),
    "no experiment": http(b"{}"),
    "a wrong type": http(b'{"experiment": 7}'),
    "wrong types": http(json.dumps({"experiment": {key: [{}] for key in EXPERIMENT}}).encode()),
    "one reply for all": http(json.dumps({"experiment": EXPERIMENT, "runs": 7}).encode()),
    "a wrong error": http(b'{"error_code": [7], "message": {"a": 1}}', "400 Bad Request"),
    "deep": http(b"[" * 100_000),
    "huge": http(b"x" * 2**21),
    "huge error": http(b"x" * 2**21, "400 Bad Request"),
    "cut off": http(b"{" * 100)[:-50],
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{}",
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a redirect to itself": http(b"", "302 Found", "Location: /"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_no_reply_of_a_server_ends_sync_otherwise_than_in_one_line(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_journal(root, "sft")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(REPLIES[name]) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert cli.main(["sync"]) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("regrpo sync: ")]
    assert "Traceback" not in said
    assert line.isprintable()
    assert len(line) < 1500
    assert "The journals are kept" in line
    assert len(list(pending())) == 1


def test_a_reply_without_end_is_given_up_in_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_journal(root, "sft")
    started = time.monotonic()
    with answering(b"HTTP/1.1 200 OK\r\n\r\n{", endless=True) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("REGRPO_SYNC_SECONDS", "2")
        assert cli.main(["sync"]) == 2
    assert time.monotonic() - started < 10
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected MLflow to take everything within 2 s (REGRPO_SYNC_SECONDS); found 1 j" in line
    assert "The journals are kept" in line


def test_a_limit_that_is_no_number_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("soon", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("REGRPO_SYNC_SECONDS", wrong)
        assert cli.main(["sync"]) == 1
        assert f"REGRPO_SYNC_SECONDS: expected seconds, a number above 0; found '{wrong}'" in (
            capsys.readouterr().err
        )


def test_long_work_shows_how_far_it_is(
    root: Path, store: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync, "PROGRESS_EVERY", -1.0)
    for stage in ("sft", "grpo"):
        finished_journal(root, stage)
    assert cli.main(["sync"]) == 0
    said = capsys.readouterr().err
    assert "sync: 0 of 2 journals are sent, " in said
    assert "sync: 1 of 2 journals are sent, " in said
    finished_journal(root, "evaluate")
    assert cli.main(["sync", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
