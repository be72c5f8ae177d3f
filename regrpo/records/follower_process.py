"""Observer: the tracker's process as a stage sees it: whether it runs, and how it is started.

What it does is regrpo.tracking.follower's, which a stage never imports.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

from regrpo.core.dvc import dvc_root, state_folder
from regrpo.records.journal import enabled

_followers: list[subprocess.Popen[bytes]] = []
"""Kept, so that Python does not warn of a process that is forgotten while it runs."""


def state_file(name: str) -> Path:
    """A file of the tracker's own in the user's repository: its lock, its log, what it has done."""
    return state_folder() / name


def is_following() -> bool:
    """Whether another process holds the tracker's lock."""
    with state_file("tracking.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start_following() -> None:
    """Start the tracker, unless one is there or tracking is off.

    Takes milliseconds and never fails a stage.
    """
    # One tracker serves many stages and experiments: it must not take itself for one of them.
    not_its_own = ("DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in not_its_own}
    with contextlib.suppress(OSError):
        if not enabled() or is_following():
            return
        root = dvc_root()
        # Another may have been started and not have its lock yet: its words stay.
        with state_file("tracking.log").open("ab") as log:
            follower = subprocess.Popen(
                [sys.executable, "-m", "regrpo.tracking.follower", "--follow"],
                cwd=root,
                env=environment | {"DVC_ROOT": str(root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _followers.append(follower)
