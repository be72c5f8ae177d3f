"""Which of the processes that train together this one is, and how processes wait for one another.

A lock file is held by one process at a time. None is left behind, and no forked child keeps one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from regrpo.core.hardware import ACCEPTED_VERSIONS

FOLDER = "REGRPO_LAUNCH"
"""Names the folder that a stage's processes (regrpo.train.launch) exchange by; set in them only."""
PARENT = "REGRPO_LAUNCH_PARENT"
"""Names the id of the process that started this one."""
OUTER = (
    "DVC_",
    "MLFLOW_",
    "REGRPO_",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
)
"""How the variables begin that a hook or a stage around this process would pass on."""
TIME_TO_END = 10.0
"""Seconds that a stage has from a signal that asks it to end until it is killed."""
SENT_AGAIN_AFTER = 0.05
"""Seconds until a signal that was lost in a callback is sent again."""
LOCK_TRIED_EVERY = 0.05
"""Seconds between two tries."""
_hooks: list[Callable[[sys.UnraisableHookArgs], object]] = []
"""What was said before of an exception that nobody can catch."""
_locks: set[int] = set()
"""The descriptors of this process's locks."""
T = TypeVar("T")


def clean_environment(python: str = sys.executable, **variables: str) -> dict[str, str]:
    """The environment of the project's commands in another folder, with these variables besides.

    `python` is the first on PATH, and nothing of an outer DVC, git or MLflow is left.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
    if ACCEPTED_VERSIONS in os.environ:
        kept[ACCEPTED_VERSIONS] = os.environ[ACCEPTED_VERSIONS]
    path = f"{Path(python).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | variables


def is_worker() -> bool:
    """Whether a stage started this process to train with others."""
    return FOLDER in os.environ


def rank() -> int:
    """This process's number among all that train together; 0 if it trains alone."""
    return int(os.environ.get("RANK", "0")) if is_worker() else 0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if is_worker() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()


def gathered(values: list[T]) -> list[T]:
    """The lists of all processes, one after the other by rank; each process must call it."""
    if world_size() == 1:
        return values
    import torch.distributed

    parts: list[list[T]] = [[]] * world_size()
    torch.distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def exit_on(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Let these signals end the process as Ctrl+C does, so that it clears up.

    The exit code is 128 + number. A signal that is ignored stays so: `nohup` has SIGHUP
    ignored. Returns the handlers before, for whoever puts them back.
    """

    def leave(number: int, _: object) -> None:
        raise Ended(number)

    if sys.unraisablehook is not _end_again:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _end_again
    before = {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, leave)
    return before


class Ended(SystemExit):
    """What a signal of `exit_on` raises."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def _end_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again that came in a callback of the garbage collector.

    Python drops what is raised there, and the process would live on.
    """
    error = unraisable.exc_value
    if not isinstance(error, Ended):
        _hooks[-1](unraisable)
        return
    again = threading.Timer(SENT_AGAIN_AFTER, os.kill, (os.getpid(), error.number))
    again.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread starts any more: the process ends by itself
        again.start()


def end_with_parent() -> None:
    """Be killed as soon as the parent dies, however it dies (prctl(2), PR_SET_PDEATHSIG; Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parent = str(os.getppid())
    if os.environ.get(PARENT, parent) != parent:  # it died before the call
        os._exit(1)


# --- lock files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[int, int], None]) -> Iterator[int]:
    """Be the only one who holds the lock file at `path`, which is removed in the end.

    Yields its descriptor. While another process (or thread) has the lock, `on_wait` gets the
    descriptor and the number of tries so far, before each further one.
    """
    while True:
        with _opened(path) as lock:
            tries = 0
            while not _taken(lock):
                tries += 1
                on_wait(lock, tries)
                time.sleep(LOCK_TRIED_EVERY)
            # Its holder removes it in the end: who waited has the lock of no file, and goes on.
            if _is_at(lock, path):
                try:
                    yield lock
                finally:
                    _remove(path)
                return


def sweep_locks(folder: Path) -> None:
    """Remove the lock files that nobody holds: those of processes that were killed."""
    for path in folder.glob("*.lock"):
        with contextlib.suppress(OSError), _opened(path) as lock:
            if _taken(lock) and _is_at(lock, path):
                path.unlink()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _locks.add(lock)
    try:
        yield lock
    finally:
        _locks.discard(lock)
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(lock: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), path.stat())
    return False


def _remove(path: Path) -> None:
    """Remove the file; on a file system that has become read-only it stays, and hurts nobody."""
    with contextlib.suppress(OSError):
        path.unlink()


def _in_child() -> None:
    """Close what a forked child has of its parent's locks: it would hold them beyond its parent."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_in_child)
