"""Complete model checkpoints of a stage's key: found, held for one run at a time, removed.

transformers writes checkpoints in place and takes the highest number, whatever it lacks. Here a
manifest with the SHA-256 of every file is written last, and a run goes on from the newest
checkpoint whose manifest holds; damaged ones are removed. Loads nothing heavy: the process that
starts others to train needs it too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from regrpo.core import files, processes

MANIFEST = "manifest.json"
STATE = "regrpo_state.json"
NEEDED = ("optimizer", "rng_state", "scheduler.pt", "trainer_state.json", STATE)
"""How the names of files begin without which transformers goes on, silently wrong.

Random states lie in a file per process, an optimizer perhaps in shards.
"""
KEPT = 2
"""How many checkpoints stay: the newest may be incomplete when a run is killed."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """A stage key's checkpoint folder, for one run at a time (a second waits); gone after success.

    A worker gets the folder that its stage's process holds.
    """
    if processes.is_worker():
        yield folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    processes.sweep_locks(folder.parent)  # those that killed runs left behind, of whatever key
    path = folder.with_suffix(".lock")

    def wait(_: int, tries: int) -> None:
        if tries == 1:
            print(
                f"{path.stem}: another run of the same key is at work; waiting for it ...",
                flush=True,
            )

    with processes.locked(path, wait):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint to go on from, if any; newer ones, incomplete or damaged, are removed.

    With REGRPO_NO_RESUME set, all are removed: the run starts from its beginning. A worker takes
    what its stage's process has left.
    """
    found = by_step(folder)
    if processes.is_worker():
        return next(iter(found), None)
    for checkpoint in found:
        if not os.environ.get("REGRPO_NO_RESUME") and is_complete(checkpoint):
            return checkpoint
        # transformers would go on from it, or count it among those to keep.
        shutil.rmtree(checkpoint)
    return None


def by_step(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step that a checkpoint folder is named for; 0 for none."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there, names all that is needed, and every file is as it says."""
    try:
        manifest = files.read_json(checkpoint / MANIFEST)
        for needed in NEEDED:
            if not any(name.startswith(needed) for name in manifest):
                return False
        return bool(manifest == digests(checkpoint))
    except (OSError, ValueError):
        return False


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a checkpoint folder but its manifest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            found[path.relative_to(folder).as_posix()] = files.sha256(path)
    return found
