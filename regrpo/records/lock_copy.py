"""Observer: a good copy of dvc.lock, and the mending of what a kill cut off.

DVC writes dvc.lock and .dvc/tmp/rwlock in place: killed in that instant it leaves them cut off, and
then refuses every command. The copy is made at each stage's start; what DVC had written after it
comes back from DVC's run-cache.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from regrpo.core import files, profiles
from regrpo.core.dvc import dvc_root, state_folder
from regrpo.core.errors import Refused

LOCK = Path("dvc.lock")
COPY = Path(".regrpo/dvc.lock")
OLD = Path(".regrpo/dvc.lock.damaged")
RWLOCK = Path(".dvc/tmp/rwlock")


def keep() -> None:
    """Copy dvc.lock, if it is whole. Not in the temporary workspace of an experiment."""
    if dvc_root() == Path.cwd().resolve() and LOCK.exists() and is_whole(LOCK):
        state_folder()
        with files.replacing(COPY) as temporary:
            shutil.copyfile(LOCK, temporary)


def mend() -> list[str]:
    """Put back what a kill cut off, in the current folder; returns a line for each thing done.

    Nothing is done while a dvc of this repository lives: it may be writing.
    """
    todo: list[tuple[str, Callable[[], None]]] = []
    in_merge = LOCK.exists() and b"<<<<<<< " in LOCK.read_bytes()
    if LOCK.exists() and not in_merge and not is_whole(LOCK):
        source = "set aside (git may have one, DVC's cache brings finished stages back)"
        if _has_copy():
            source = f"put back from {COPY}"
        said = f"{LOCK} cannot be read (a kill or a full disk cuts it off): {source}, "
        todo.append((f"{said}the old is {OLD}", _put_back))
    if RWLOCK.exists() and not _is_json(RWLOCK):
        todo.append((f"{RWLOCK} was cut off by a kill: removed", RWLOCK.unlink))
    if not todo or dvc_lives(Path.cwd()):
        return []
    for _, do in todo:
        do()
    return [line for line, _ in todo]


def is_whole(lock: Path) -> bool:
    """Whether the file has the form that DVC reads: stages, each with its command."""
    if lock.stat().st_size > profiles.BY_DVC.bytes:  # too large to look at; no kill makes it so
        return True
    try:
        content = profiles.read_yaml(lock, profiles.BY_DVC)
    except (Refused, OSError):
        return False
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict):
        return False
    return all(isinstance(entry, dict) and entry.get("cmd") for entry in stages.values())


def dvc_lives(root: Path) -> bool:
    """Whether a dvc process works below `root`."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        names = [Path(word).name for word in (process.info["cmdline"] or [])[:3]]
        with contextlib.suppress(psutil.Error):
            if "dvc" in names and Path(process.cwd()).is_relative_to(root.resolve()):
                return True
    return False


def _has_copy() -> bool:
    return COPY.exists() and is_whole(COPY)


def _put_back() -> None:
    OLD.parent.mkdir(exist_ok=True)
    LOCK.rename(OLD)
    if _has_copy():
        with files.replacing(LOCK) as temporary:
            shutil.copyfile(COPY, temporary)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
