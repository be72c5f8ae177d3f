"""The outputs of a stage have one writer, and nothing of an orphan stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from regrpo.records import output_lock

HOLDER = """
import json, sys, time
from regrpo.records import output_lock
with output_lock.held("sft", json.loads(sys.argv[1]), json.loads(sys.argv[2]), ["out"]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""
GONE = [2**22 + 1, 1.0]
"""A process that there is not."""


def identity(process: int) -> list[float]:
    return [process, psutil.Process(process).create_time()]


def start(dvc: Sequence[float] | None, seconds: float) -> subprocess.Popen[str]:
    """A stage that holds the lock, of a dvc, for so many seconds; it knows its own id."""
    code = f"import os, psutil\nme = [os.getpid(), psutil.Process().create_time()]\n{HOLDER}"
    code = code.replace("json.loads(sys.argv[1])", "me")
    command = [sys.executable, "-c", code, "", repr(dvc or "null").replace("'", ""), str(seconds)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
    return holder


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def take(dvc: Sequence[float] | None) -> float:
    """Hold the lock once; returns the seconds that it took to get it."""
    started = time.monotonic()
    with output_lock.held("sft", identity(os.getpid()), dvc, ["out", "file.txt"]):
        return time.monotonic() - started


def test_a_holder_whose_dvc_is_gone_is_ended_and_what_it_wrote_is_removed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    orphan = start(GONE, 60)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_text("an orphan's")
    (tmp_path / "file.txt").write_text("an orphan's")
    take(identity(os.getppid()))
    assert orphan.wait(20) != 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "file.txt").exists()
    assert "sft: ending a run of this stage whose dvc is gone" in capfd.readouterr().out


@pytest.mark.parametrize("with_dvc", [True, False])
def test_a_holder_that_is_nobodys_orphan_is_waited_for(
    with_dvc: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    holder = start(identity(os.getpid()) if with_dvc else None, 1)
    take(identity(os.getppid()))
    assert holder.wait(20) == 0
    said = f"sft: process {holder.pid} is at work on the same outputs; waiting for it ..."
    assert said in capfd.readouterr().out


def test_a_stage_started_by_hand_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    take(None)
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_another_stage_and_another_workspace_have_locks_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = start(identity(os.getpid()), 60)
    with output_lock.held("grpo", identity(os.getpid()), None, []):
        pass
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert take(None) < 5
    holder.kill()
    holder.wait()


def test_the_lock_goes_and_so_do_those_that_kills_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / ".regrpo/writers"
    holder = start(identity(os.getpid()), 60)
    holder.kill()
    holder.wait()
    (folder / "grpo-0123456789abcdef.lock").write_text("of a workspace that is gone")
    assert len(list(folder.iterdir())) == 2
    take(None)
    assert list(folder.iterdir()) == []


def test_a_process_that_took_the_id_of_a_holder_gets_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = []
    monkeypatch.setattr(os, "kill", lambda *signal: sent.append(signal))
    output_lock._end([os.getpid(), 1.0])
    assert sent == []
