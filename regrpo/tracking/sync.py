"""MLflow brought up to date in the foreground (`regrpo sync`), or opened for a command."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from regrpo.core.dvc import dvc_root
from regrpo.core.errors import CannotCheck, RegrpoError
from regrpo.records.find import require_git, workspace
from regrpo.records.follower_process import start_following
from regrpo.records.journal import enabled, pending
from regrpo.tracking import state
from regrpo.tracking.address import KEPT, LATER, cure, shown_uri, tracking_uri
from regrpo.tracking.passes import open_store, sync_once
from regrpo.tracking.store import Store


def sync(patience: float = 60.0) -> list[dict[str, str]]:
    """Bring MLflow up to date. Returns the rows made or ended, as {kind, name, status, run_id}.

    Raises CannotCheck outside a repository or in a broken one, if MLflow cannot be reached or
    refuses something, and if the follower is busy for `patience` seconds.
    """
    root = workspace(dvc_root()).snapshot.root
    require_git(root)
    if not enabled():
        return []
    deadline = time.monotonic() + patience
    waited = False
    while not state.up_to_date():
        with state.locked(2) as held:
            # The follower may have done it all while the lock was waited for.
            changed = _sync_locked() if held and not state.up_to_date() else []
        if held:
            if any(journal.live for journal in pending()):
                start_following()  # a stage that began meanwhile saw the lock taken
            return changed
        if not waited:
            print("sync: waiting for the tracker in the background to finish ...", file=sys.stderr)
            waited = True
        if time.monotonic() > deadline:
            raise CannotCheck(
                "MLflow",
                expected="the tracker in the background to be done",
                found=f"it is still sending after {patience:.0f} s",
                remedy="Look at .regrpo/tracking.log, or run `regrpo sync` again later.",
            )
    return []


def _sync_locked() -> list[dict[str, str]]:
    with _refusing(LATER):
        done = sync_once(open_store())
    if done.failures:
        raise CannotCheck(
            shown_uri(),
            expected="MLflow to take everything",
            found="; ".join(done.failures),
            remedy=" ".join([*dict.fromkeys(done.cures), KEPT]) if done.cures else LATER,
        )
    return done.changed


@contextlib.contextmanager
def opened(
    create: bool = True,
    remedy: str = "Start the server or set MLFLOW_TRACKING_URI; `--no-mlflow` does without.",
) -> Iterator[Store]:
    """The store, for a command to read or write besides what the journals hold.

    Raises CannotCheck for whatever MLflow raises (with what cures it, or `remedy`), and without
    `create` if the database is not there.
    """
    database = Path(tracking_uri().removeprefix("sqlite:///"))
    if not create and tracking_uri().startswith("sqlite:") and not database.exists():
        raise CannotCheck(
            shown_uri(),
            expected="an MLflow store",
            found="no such file",
            remedy="Set MLFLOW_TRACKING_URI to the store.",
        )
    with _refusing(remedy):
        # Two processes that make a database at once break it.
        with state.locked(60) if create else contextlib.nullcontext():
            store = open_store()
        yield store


@contextlib.contextmanager
def _refusing(remedy: str) -> Iterator[None]:
    """Turn whatever MLflow raises into CannotCheck; its chatter goes to the log."""
    with state.log_stderr():
        try:
            yield
        except RegrpoError:
            raise
        except Exception as error:  # MLflow, its database layer and its HTTP client raise their own
            raise CannotCheck(
                shown_uri(),
                expected="an MLflow store",
                found=state.log_error(error),
                remedy=cure(error) or remedy,
            ) from error
