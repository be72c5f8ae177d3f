"""MLflow brought up to date in the foreground (`regrpo sync`), or opened for a command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from regrpo.core.dvc import dvc_root
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.records.find import require_git, workspace
from regrpo.records.follower_process import start_following
from regrpo.records.journal import enabled, pending
from regrpo.tracking import state
from regrpo.tracking.address import KEPT, LATER, cure, database_file, shown_uri, tracking_uri
from regrpo.tracking.passes import open_store, sync_once
from regrpo.tracking.store import Store

LIMIT = "REGRPO_SYNC_SECONDS"
"""Names the seconds that a sync may take in all."""
USUAL_LIMIT = 600.0
PROGRESS_EVERY = 5.0
"""Seconds between two lines of progress."""
Show = Callable[[str], None]


class OutOfTime(BaseException):
    """Raised wherever a sync is when its time is over; no `except Exception` keeps it."""


def sync(patience: float = 60.0, quiet: bool = False) -> list[dict[str, str]]:
    """Bring MLflow up to date. Returns the rows made or ended, as {kind, name, status, run_id}.

    Says how far it is, unless `quiet`. Raises CannotCheck outside a repository or in a broken one,
    if MLflow cannot be reached or refuses something, if the follower is busy for `patience`
    seconds, and if all takes longer than REGRPO_SYNC_SECONDS says.
    """
    root = workspace(dvc_root()).snapshot.root
    require_git(root)
    if not enabled():
        return []
    with _limited(limit()):
        return _sync(patience, progress(quiet))


def limit() -> float:
    """The seconds that a sync may take in all. Raises Refused for what is no number above 0."""
    given = os.environ.get(LIMIT) or str(USUAL_LIMIT)
    with contextlib.suppress(ValueError):
        if 0 < float(given) < 1e9:
            return float(given)
    raise Refused(
        LIMIT,
        expected="seconds, a number above 0",
        found=repr(given),
        remedy=f"Correct it, or unset it for {USUAL_LIMIT:.0f}.",
    )


def progress(quiet: bool) -> Show:
    """Prints what it is given, at most every PROGRESS_EVERY seconds and not in the first ones."""
    # MLflow's own words go to the log meanwhile: this is the terminal's.
    stream, last = sys.stderr, time.monotonic()

    def show(text: str) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last > PROGRESS_EVERY:
            last = time.monotonic()
            print(f"sync: {text} ...", file=stream, flush=True)

    return show


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise CannotCheck after so many seconds, in the middle of whatever is done (main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, leave)
    # Once more every second: a library may have caught the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    except OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise CannotCheck(
            shown_uri(),
            expected=f"MLflow to take everything within {seconds:.0f} s ({LIMIT})",
            found=f"{len(list(pending()))} journals that it does not hold wholly yet",
            remedy=f"{LATER} It goes on where it was; a higher {LIMIT} gives it longer.",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _sync(patience: float, show: Show) -> list[dict[str, str]]:
    deadline = time.monotonic() + patience
    waited = False
    while not state.up_to_date():
        with state.locked(2) as held:
            # The follower may have done it all while the lock was waited for.
            changed = _sync_locked(show) if held and not state.up_to_date() else []
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


def _sync_locked(show: Show) -> list[dict[str, str]]:
    with _refusing(LATER):
        show("opening MLflow")
        with contextlib.closing(open_store()) as store:
            done = sync_once(store, show)
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
    database = database_file(tracking_uri())
    if not create and database is not None and not database.exists():
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
