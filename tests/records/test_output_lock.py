"""The outputs of a stage have one writer, and nothing of an orphan stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from regrpo.records import output_lock
from regrpo.records.journal import is_alive

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


STARTED_BY_DVC = """
import os, pty, signal, subprocess, sys, time
how, command = sys.argv[1], [sys.executable, "-m", "stages.sft"]
environment = os.environ | {"DVC_STAGE": "sft"}
if how == "has a terminal":
    number, master = pty.fork()
    if number == 0:
        os.execve(command[0], command, environment)
    os.read(master, 1)
else:
    stage = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    number = stage.pid
    stage.stdout.read(1)
if how != "runs":
    os.kill(number, signal.SIGSTOP)
    os.waitpid(number, os.WUNTRACED)
print(number, flush=True)
if how in ("has its dvc", "has a terminal"):
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "how", ["is alone", "is elsewhere", "runs", "has its dvc", "has a terminal"]
)
def test_a_stopped_stage_whose_dvc_is_gone_is_ended(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stages").mkdir()
    code = "import time\nprint('x', end='', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "stages/__init__.py").touch()
    (tmp_path / "stages/sft.py").write_text(code)
    command = [sys.executable, "-c", STARTED_BY_DVC, how]
    dvc = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert dvc.stdout is not None
    with dvc.stdout:
        stage = identity(int(dvc.stdout.readline()))
    try:
        if how not in ("has its dvc", "has a terminal"):
            dvc.wait(20)
        if how == "is elsewhere":
            (tmp_path / "other").mkdir()
            monkeypatch.chdir(tmp_path / "other")
        take(None)
        until = time.monotonic() + 5
        while how == "is alone" and is_alive(stage) and time.monotonic() < until:
            time.sleep(0.01)
        assert is_alive(stage) == (how != "is alone")
        said = "sft: ending a stopped run of this stage whose dvc is gone ..."
        assert (said in capsys.readouterr().out) == (how == "is alone")
    finally:
        dvc.kill()
        dvc.wait()
        if is_alive(stage):
            os.kill(int(stage[0]), signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "is_dvc"),
    [
        (["/bin/sh", "-c", "dvc repro"], False),
        (["/usr/bin/python3.11", "serve.py"], False),
        (["/usr/bin/python3.11", "/usr/bin/dvc", "repro"], True),
        (["python", "-m", "dvc", "repro"], True),
        (["/dvc", "repro"], True),
    ],
)
def test_a_process_1_that_does_not_run_dvc_is_nobodys_dvc(
    command: list[str], is_dvc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without an init a shell, or a program, is process 1 of dvc's session."""
    first = psutil.Process()
    monkeypatch.setattr(first, "_pid", 1)
    monkeypatch.setattr(psutil.Process, "parents", lambda _: [first])
    monkeypatch.setattr(psutil.Process, "environ", lambda _: {})
    monkeypatch.setattr(os, "getsid", lambda _: 1)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: command)
    assert (output_lock.dvc_of(psutil.Process()) is first) == is_dvc


def test_a_process_that_took_the_id_of_a_holder_gets_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = []
    monkeypatch.setattr(os, "kill", lambda *signal: sent.append(signal))
    output_lock._end([os.getpid(), 1.0])
    assert sent == []
