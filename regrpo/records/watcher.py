"""Observer: ends a stage whose dvc is gone, or that does not answer a signal.

SIGTERM to dvc (also by `timeout`, a scheduler, a closed terminal) leaves the stage running as an
orphan: it would train on, and overwrite what was made meanwhile. And a Python signal handler waits
until native code returns, which can take minutes. So a process of its own watches: it ends the
stage with SIGTERM when dvc is gone, and with SIGKILL some seconds after a signal without an answer.

Started by path and without site-packages it takes 20 ms; imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a stage to end: from a scheduler, Ctrl+C, a closed terminal."""
_pipes: set[int] = set()
"""The writing ends of this process's watchers."""
_forking = threading.local()
"""`mask`: the signals that a thread had blocked before it forks."""


@contextlib.contextmanager
def watched(dvc: int | None, patience: float) -> Iterator[None]:
    """Let a process watch this one. `dvc` is the process to end with; None watches signals only.

    `patience` is the seconds from a signal to SIGKILL. Python writes each signal's number to the
    pipe from its C handler, whatever the main thread does (signal.set_wakeup_fd). The watcher ends
    with the pipe.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = subprocess.Popen(  # noqa: S603  (no shell, and the command is ours)
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(dvc or 0), str(patience)],
        stdin=reading,
        start_new_session=True,
    )
    os.close(reading)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _pipes.add(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _pipes.remove(writing)
        os.close(writing)
        watcher.wait()


# --- forked children ------------------------------------------------------------------------------

# Their signals are not the stage's: a reward may end a child of its own after a time limit.


def _before_fork() -> None:
    """Hold signals back, so that none reaches a child that still has the pipe."""
    if _pipes:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _in_parent() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    if _pipes:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            # What a handler raises here would be lost, and the child live on.
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
    while _pipes:
        os.close(_pipes.pop())
    _in_parent()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


# --- the process ----------------------------------------------------------------------------------


def watch(stage: int, dvc: int, patience: float) -> None:
    """Wait until the stage closes its end of the pipe on stdin; end it if it must end before.

    `stage` and `dvc` are process ids (`dvc` 0: none to end with), `patience` is in seconds.
    """
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    dvc_ends = _process_end(dvc)
    if dvc_ends is not None:
        poll.register(dvc_ends, select.POLLIN)
    kill_at = None
    while True:
        timeout = None
        if kill_at is not None:
            timeout = max(0.0, kill_at - time.monotonic()) * 1000
        ready = [descriptor for descriptor, _ in poll.poll(timeout)]
        if not ready:
            os.kill(stage, signal.SIGKILL)
            return
        if dvc_ends in ready:
            poll.unregister(dvc_ends)
            dvc_ends = None
            os.kill(stage, signal.SIGTERM)
            # A stage that stands still (SIGSTOP) never hands the signal on.
            kill_at = time.monotonic() + patience
        if sys.stdin.fileno() in ready:
            signals = os.read(sys.stdin.fileno(), 4096)
            if not signals:  # the stage has ended
                return
            if kill_at is None and set(signals) & set(ENDING):
                kill_at = time.monotonic() + patience


def _process_end(process: int) -> int | None:
    """A descriptor that is readable once the process has ended (Linux 5.3), None without one."""
    if not process or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:  # it is gone already: an end of a pipe that nobody writes to
        reading, writing = os.pipe()
        os.close(writing)
        return reading
    except OSError:
        return None


if __name__ == "__main__":
    with contextlib.suppress(ProcessLookupError):
        watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
