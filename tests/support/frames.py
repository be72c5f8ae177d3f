"""A stage's real frame in this process: no tracker, no child process, no signal of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from regrpo.records import follower_process, stage_run
from regrpo.records.journal import Journal


@cache
def environment() -> dict[str, Any]:
    """What a record says of the environment, whose packages are listed once."""
    return stage_run.environment()


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Stages are run by their `main`; nothing of an outer DVC or MLflow reaches them."""
    known = environment()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("DVC_", "MLFLOW_", "REGRPO_")):
                patch.delenv(name)
        patch.setattr(stage_run, "require_checked_profile", lambda: None)
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr(follower_process, "start_following", lambda: None)
        patch.setattr(Journal, "mlflow_run_id", lambda *_: None)
        patch.setattr(stage_run, "environment", lambda: known)
        yield
