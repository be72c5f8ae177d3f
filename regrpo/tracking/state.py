"""What the processes that feed MLflow share in .regrpo/: a lock, a log, and what passes left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from regrpo.core import files
from regrpo.core.dvc import dvc_root
from regrpo.core.files import Json
from regrpo.core.git import experiments
from regrpo.core.pipeline import LOCK
from regrpo.core.text import Shown
from regrpo.records.follower_process import state_file
from regrpo.records.journal import pending
from regrpo.tracking.address import database_file, name_error, store_id, tracking_uri

# --- the lock -------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(patience: float) -> Iterator[bool]:
    """Hold the tracker's lock; yields False if another process kept it for `patience` seconds."""
    with state_file("tracking.lock").open("a") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True


# --- the log --------------------------------------------------------------------------------------

LOG_BYTES = 5 * 2**20
"""Beyond this the follower's log is begun anew; the one before stays, as tracking.log.1."""


def bound_log() -> None:
    """Begin .regrpo/tracking.log anew if it is too long, and is this process's standard error."""
    log = state_file("tracking.log")
    with contextlib.suppress(OSError):
        found = log.stat()
        if found.st_size <= LOG_BYTES or not os.path.samestat(found, os.fstat(2)):
            return
        log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as new:
            os.dup2(new.fileno(), 1)
            os.dup2(new.fileno(), 2)


@contextlib.contextmanager
def log_stderr() -> Iterator[None]:
    """Send what MLflow prints to .regrpo/tracking.log."""
    with state_file("tracking.log").open("a") as log, contextlib.redirect_stderr(Shown(log)):
        yield


def log_error(error: Exception) -> str:
    """Print an error's traceback. Returns its class and first line."""
    with contextlib.suppress(OSError):  # the log may lie on a full disk
        Shown(sys.stderr).write("".join(traceback.format_exception(error)))
    return name_error(error)


# --- what passes left -----------------------------------------------------------------------------


def stamp() -> str:
    """A digest of everything that a pass looks at, without MLflow."""
    root = dvc_root()
    lock = root / LOCK
    database = database_file(tracking_uri())
    is_there = database is None or database.is_file()
    return files.sha256_json(
        [
            [store_id(), is_there],
            files.sha256(lock) if lock.exists() else None,
            experiments(root),
            [journal.folder.name for journal in pending()],
        ]
    )


def synced() -> Json:
    """The last complete pass's stamp, the experiments' references with rows, the latest row."""
    # Garbled by a power loss, it is made again.
    with contextlib.suppress(ValueError, RecursionError, FileNotFoundError):
        content = files.read_json(state_file("synced.json"))
        if isinstance(content, dict):
            return content
    return {}


def remember(**values: Any) -> None:
    """Add to what `synced` returns."""
    files.write_json(state_file("synced.json"), synced() | values)


def latest_pipeline() -> dict[str, str] | None:
    """The pipeline's row that was made or ended last, as {kind, name, status, run_id}."""
    return synced().get("latest")


def up_to_date() -> bool:
    """Whether MLflow holds everything but what is still running."""
    return synced().get("stamp") == stamp() and all(journal.live for journal in pending())
