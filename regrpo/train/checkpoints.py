"""Resuming a killed sft or grpo from complete model checkpoints only, to the same bits as a run never killed.

transformers writes checkpoints in place and takes the highest number, whatever it lacks. Here a manifest with the
SHA-256 of every file is written last, and a run goes on from the newest checkpoint whose manifest holds; damaged ones
are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from regrpo.core import files, processes

MANIFEST = "manifest.json"
STATE = "regrpo_state.json"
NEEDED = ("optimizer", "rng_state", "scheduler.pt", "trainer_state.json", STATE)
"""How files must begin without which transformers goes on, silently wrong (random states.

A file per process; an optimizer may lie in shards).
"""
KEPT = 2


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a checkpoint folder but its manifest."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in names}


def by_step(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    return sorted(
        folder.glob("checkpoint-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file is as it says."""
    try:
        manifest = files.read_json(checkpoint / MANIFEST)
        whole = all(any(name.startswith(needed) for name in manifest) for needed in NEEDED)
        return whole and bool(manifest == digests(checkpoint))
    except (OSError, ValueError):
        return False


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint to go on from; incomplete and damaged ones are removed.

    None where there is none.

    With REGRPO_NO_RESUME set, all are removed: the run starts from its beginning. A worker takes
    what its stage's process has left.
    """
    if processes.is_worker():
        return next(iter(by_step(folder)), None)
    for checkpoint in by_step(folder):
        if not os.environ.get("REGRPO_NO_RESUME") and is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """A stage key's checkpoint folder, for one run at a time (a second waits).

    Removed once the run succeeded.

    For a worker, its stage's process holds it.
    """
    if processes.is_worker():
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".lock")
    with _locked(path):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
        path.unlink()  # while it is held: whoever waits for it sees that, and makes another


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock on the file at `path`, which its holder may remove.

    Then on the one that took its place.
    """
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"{path.stem}: another run of the same key is at work; waiting for it ...",
                    flush=True,
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock.fileno(), path):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
