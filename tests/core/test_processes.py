"""Signals that end a process."""

from __future__ import annotations

import subprocess
import sys

ENDED_IN_A_CALLBACK = """
import os, signal, time, weakref
from regrpo.core import processes

class Thing:
    pass

def forget(reference):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)

processes.exit_on(signal.SIGTERM)
thing = Thing()
reference = weakref.ref(thing, forget)
try:
    del thing
    time.sleep(20)
    print("lived on")
finally:
    print("cleared up", flush=True)
"""

OTHER_ERRORS = """
import signal, weakref
from regrpo.core import processes

class Thing:
    def __del__(self):
        raise ValueError("in a destructor")

processes.exit_on(signal.SIGTERM)
processes.exit_on(signal.SIGHUP)
Thing()
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_signal_in_a_callback_of_the_collector_ends_the_process_all_the_same() -> None:
    """What a weak reference's callback raises, Python drops."""
    done = run(ENDED_IN_A_CALLBACK)
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleared up\n", "")


def test_other_errors_that_nobody_catches_are_shown_as_before() -> None:
    done = run(OTHER_ERRORS)
    assert done.returncode == 0
    assert done.stderr.count("ValueError: in a destructor") == 1
