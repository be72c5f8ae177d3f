"""A stage ends with its dvc, and ten seconds after a signal that it does not answer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

STAGE = """
import ctypes, multiprocessing, signal, sys, time
from regrpo.records.watcher import watched
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with watched(int(sys.argv[1]) or None, patience=0.5):
    print("at work", flush=True)
    if sys.argv[2] == "native":  # a lock that is never free: no signal interrupts it
        mutex, library = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)
    elif sys.argv[2] == "child":  # a reward with a time limit
        for delay in (0, 0, 0.001, 0.01):  # from the moment of the fork on
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            time.sleep(delay)
            child.terminate()
            child.join(5)
            assert child.exitcode == -signal.SIGTERM
        time.sleep(1.5)
    elif sys.argv[2] == "wait":
        time.sleep(60)
"""


def start(dvc: int, work: str) -> subprocess.Popen[str]:
    """A stage that has begun to work. With `dvc` 0 it was started by hand."""
    command = [sys.executable, "-c", STAGE, str(dvc), work]
    stage = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert stage.stdout is not None
    with stage.stdout:
        assert stage.stdout.readline() == "at work\n"
    return stage


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("work", "code"), [("wait", 143), ("native", -signal.SIGKILL)])
def test_a_stage_ends_with_its_dvc(number: int, work: str, code: int) -> None:
    with subprocess.Popen(["sleep", "60"]) as dvc:
        stage = start(dvc.pid, work)
        dvc.send_signal(number)
        dvc.wait()
        assert stage.wait(20) == code


def test_a_stage_that_stands_still_is_killed_with_its_dvc() -> None:
    with subprocess.Popen(["sleep", "60"]) as dvc:
        stage = start(dvc.pid, "wait")
        stage.send_signal(signal.SIGSTOP)
        dvc.kill()
        dvc.wait()
        assert stage.wait(20) == -signal.SIGKILL


def test_a_dvc_that_was_gone_before_ends_the_stage_as_well() -> None:
    with subprocess.Popen(["true"]) as dvc:
        dvc.wait()
    assert start(dvc.pid, "wait").wait(20) == 143


@pytest.mark.parametrize(("work", "code"), [("wait", 143), ("native", -signal.SIGKILL)])
def test_a_stage_that_does_not_answer_a_signal_is_killed(work: str, code: int) -> None:
    stage = start(0, work)
    time.sleep(0.5)  # until it is in the native code
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(20) == code


def test_a_stage_that_is_done_ends_at_once_and_its_dvc_goes_on() -> None:
    with subprocess.Popen(["sleep", "60"]) as dvc:
        assert start(dvc.pid, "nothing").wait(20) == 0
        assert dvc.poll() is None
        dvc.kill()


def test_a_forked_child_that_is_ended_does_not_end_the_stage() -> None:
    assert start(0, "child").wait(20) == 0
