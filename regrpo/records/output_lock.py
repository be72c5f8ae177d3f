"""Observer: the outputs of a stage have one writer at a time, whatever its parameters are.

DVC's own lock ends with dvc, also where a `kill -9` left the stage behind; a second `dvc repro`
then starts beside it. The lock lies in the user's repository, one per workspace and stage. A
process that was stopped before it took the lock, and whose dvc is gone, is looked for besides.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files, processes
from regrpo.core.dvc import state_folder
from regrpo.records.journal import is_alive

if TYPE_CHECKING:
    import psutil


@contextlib.contextmanager
def held(
    stage: str, process: Sequence[float], dvc: Sequence[float] | None, outputs: Iterable[str]
) -> Iterator[None]:
    """Be the only writer of a stage's outputs in this workspace.

    `process` and `dvc` are [id, start time in seconds] of this stage and of its dvc. A holder whose
    dvc is gone is ended; any other is waited for. What lies at the outputs then is removed: DVC
    has removed its own before, so that it is an orphan's. Without a dvc everything stays.
    """
    _end_stopped(stage)
    with processes.locked(_file(stage), partial(_wait, stage)) as lock:
        os.truncate(lock, 0)
        os.pwrite(lock, json.dumps({"process": process, "dvc": dvc}).encode(), 0)
        if dvc:
            for output in outputs:
                files.remove(Path(output))
        yield


def _file(stage: str) -> Path:
    """The lock file of a stage in this workspace; those that kills left behind are removed."""
    folder = state_folder("writers")
    processes.sweep_locks(folder)
    workspace = files.sha256_text(str(Path.cwd().resolve()))
    return folder / f"{stage}-{workspace[:16]}.lock"


def _wait(stage: str, lock: int, tries: int) -> None:
    """Another holds the lock: end it if it is an orphan, else say so."""
    holder = _holder(lock)
    if holder.get("dvc") and not is_alive(holder["dvc"]):
        print(f"{stage}: ending a run of this stage whose dvc is gone ...", flush=True)
        _end(holder["process"])
    elif tries == 1:
        number = int(holder.get("process", [0])[0]) or "another"
        print(
            f"{stage}: process {number} is at work on the same outputs; waiting for it ...",
            flush=True,
        )


def _holder(lock: int) -> dict[str, Any]:
    """What the holder wrote: {process, dvc}. Empty in the moment before it has."""
    try:
        found = json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _end(process: Sequence[float]) -> None:
    """End a process: SIGTERM, and SIGKILL for one that does not answer."""
    if not is_alive(process):  # its id may be another's by now
        return
    until = time.monotonic() + processes.TIME_TO_END
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process[0]), signal.SIGTERM)
        while is_alive(process):
            if time.monotonic() > until:
                os.kill(int(process[0]), signal.SIGKILL)
            time.sleep(0.1)


# --- processes without their dvc ------------------------------------------------------------------


def dvc_of(process: psutil.Process) -> psutil.Process | None:
    """The dvc that started a stage's process, through a shell or not. None if it has ended.

    Whoever adopts an orphan is not to be taken for it: a reaper of another session, or a process 1
    whose command line does not name dvc: an init, a shell, a container's own Python program.
    """
    import psutil

    # A process has just ended, or is another user's.
    with contextlib.suppress(psutil.Error, OSError):
        for one in process.parents():
            # DVC sets it for what it starts, in its own session.
            if "DVC_STAGE" in one.environ():
                continue
            is_reaper = one.pid == 1 and "dvc" not in [Path(word).name for word in one.cmdline()]
            same_session = os.getsid(one.pid) == os.getsid(process.pid)
            return one if same_session and not is_reaper else None
    return None


def _end_stopped(stage: str) -> None:
    """End processes of this stage and workspace that stand still (SIGSTOP) without their dvc.

    Stopped before any code of ours ran, such a one has no watcher and holds no lock. One with a
    terminal is left to whoever stopped it there. Needs /proc (Linux).
    """
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            # After the name: state, parent, group, session, terminal (proc(5)).
            status = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            if (status[0], status[4]) != ("T", "0"):
                continue
            is_this_stage = f"-m stages.{stage} " in f"{' '.join(process.cmdline())} "
            is_here = Path(process.cwd()) == Path.cwd() and "DVC_STAGE" in process.environ()
            if is_this_stage and is_here and dvc_of(process) is None:
                print(f"{stage}: ending a stopped run of this stage whose dvc is gone ...")
                process.kill()
