"""Observer: the outputs of a stage have one writer at a time, whatever its parameters are.

DVC's own lock ends with dvc, also where a `kill -9` left the stage behind; a second `dvc repro`
then starts beside it. The lock lies in the user's repository, one per workspace and stage.
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
from typing import Any

from regrpo.core import files, processes
from regrpo.core.dvc import state_folder
from regrpo.records.journal import is_alive


@contextlib.contextmanager
def held(
    stage: str, process: Sequence[float], dvc: Sequence[float] | None, outputs: Iterable[str]
) -> Iterator[None]:
    """Be the only writer of a stage's outputs in this workspace.

    `process` and `dvc` are [id, start time in seconds] of this stage and of its dvc. A holder whose
    dvc is gone is ended; any other is waited for. What lies at the outputs then is removed: DVC
    has removed its own before, so that it is an orphan's. Without a dvc everything stays.
    """
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
