"""Observer: one background process per repository that tells MLflow what the stages journal.

A stage never imports mlflow: it writes its journal, and the first one starts `python -m
regrpo.tracking.follower --follow`. That process holds a lock, tells MLflow about every second, and
ends with the last pipeline. `regrpo sync` does one such pass in the foreground. Files are the
record: with no server in reach the journals wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files
from regrpo.core.dvc import dvc_root
from regrpo.core.errors import CannotCheck, RegrpoError
from regrpo.core.git import EXPERIMENT, experiment_refs
from regrpo.core.pipeline import LOCK, Snapshot
from regrpo.records.find import require_git, workspace
from regrpo.records.follower_process import start_following, state_file
from regrpo.records.journal import JournalReader, enabled, is_dvc, journal_folder, pending
from regrpo.tracking.address import (
    experiment_name,
    name_error,
    shown_uri,
    tracking_uri,
    without_password,
)

if TYPE_CHECKING:
    from regrpo.tracking.writer import Store

EVERY = 1.0
"""Seconds between two passes of the follower."""
RETRY = 10.0
"""Seconds until it tries again after MLflow could not be reached."""
GRACE = 20.0
"""Seconds after the end of a DVC experiment's process in which DVC may still write its reference."""


# --- the lock -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(patience: float) -> Iterator[bool]:
    """Hold the tracker's lock.

    Yields False where another process kept it for `patience` seconds.
    """
    with state_file("tracking.lock").open("a") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.05)
            else:
                yield True
                return


# --- what is to be done ---------------------------------------------------------------------------


def _stamp() -> str:
    """A digest of everything that a pass looks at, without MLflow."""
    root, lock = dvc_root(), dvc_root() / LOCK
    database = tracking_uri().removeprefix("sqlite:///")
    return files.sha256_json(
        [
            [tracking_uri(), experiment_name(), "://" in database or _is_sqlite(Path(database))],
            files.sha256(lock) if lock.exists() else None,
            experiment_refs(root),
            [journal.folder.name for journal in pending()],
        ]
    )


def _is_sqlite(database: Path) -> bool:
    """Whether a file is there and begins as every SQLite database does."""
    try:
        with database.open("rb") as f:
            return f.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def _synced() -> dict[str, Any]:
    """What passes left.

    The last complete one's stamp, the experiments' references with their rows, the latest row.
    """
    path = state_file("synced.json")
    return files.read_json(path) if path.exists() else {}


def _remember(**left: Any) -> None:
    files.write_json(state_file("synced.json"), _synced() | left)


def latest_pipeline() -> dict[str, str] | None:
    """The pipeline row that was made or ended last ({kind, name, status, run_id})."""
    return _synced().get("latest")


def up_to_date() -> bool:
    """Whether MLflow holds everything but what is still running."""
    return all(journal.live for journal in pending()) and _synced().get("stamp") == _stamp()


# --- one pass -------------------------------------------------------------------------------------


@dataclass
class Pass:
    """What one pass over journals, experiments and workspace did, and what it left."""

    changed: list[dict[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    waiting: bool = False


def sync_once(store: Store, over_since: dict[str, float] | None = None) -> Pass:
    """Tell MLflow everything that the files hold and it does not.

    `over_since` (execution → when it was first seen to be over) makes it wait up to GRACE seconds
    for the reference of an experiment; without it, only a dvc process at work does.
    """
    done = Pass()
    store.changed = done.changed
    executions: dict[str, list[JournalReader]] = {}
    for journal in pending():
        with _noting(done, journal.folder.name, journal):
            store.tell(journal)
        if journal.execution:
            executions.setdefault(journal.execution, []).append(journal)
    for execution, journals in executions.items():
        if any(journal.live or not journal.tracker_notes.get("ended") for journal in journals):
            continue
        with _noting(done, f"execution of {journals[0].facts['experiment'] or 'repro'}"):
            status, snapshot = _outcome(journals)
            if status is None:
                now = time.monotonic()
                if (
                    _dvc_at_work()
                    if over_since is None
                    else now < over_since.setdefault(execution, now) + GRACE
                ):
                    done.waiting = True
                    continue
                status = "FINISHED" if journals[-1].stage == "model_card" else "KILLED"
            store.finish_execution(journals, status, snapshot)
            _remember(latest=done.changed[-1])
            for journal in journals:
                journal.mark_sent()
    _ensure_rows(store, done)
    return done


@contextlib.contextmanager
def _noting(done: Pass, what: str, journal: JournalReader | None = None) -> Iterator[None]:
    """One journal that MLflow refuses must not keep the others from it."""
    try:
        yield
    except (
        Exception
    ) as error:  # MLflow, its database layer and its HTTP client raise classes of their own
        problem = _log_and_name(error)
        done.failures.append(f"{what}: {problem}")
        if journal is not None and not journal.tracker_notes.get("run_id"):
            journal.note(error=problem)


def _log_and_name(error: Exception) -> str:
    """Write an error's traceback to the log; returns its class and first line."""
    print(without_password("".join(traceback.format_exception(error))), file=sys.stderr)
    return name_error(error)


def _outcome(journals: list[JournalReader]) -> tuple[str | None, Snapshot | None]:
    """(status, where the results lie) of an execution that is over.

    (None, None) where its reference is yet missing.
    """
    statuses = {(journal.closed or {})["status"] for journal in journals}
    for status in ("KILLED", "FAILED"):
        if status in statuses:
            return status, None
    facts = journals[-1].facts
    for snapshot in _places(facts["experiment"], Path(facts["workspace"])):
        if all(snapshot.holds(journal.stage, journal.facts["run"]) for journal in journals):
            return "FINISHED", snapshot
    if facts["experiment"]:
        return None, None
    # dvc.lock without the run of a stage that finished: dvc died first; or a later run of the stage
    # took its place.
    record = Snapshot(Path(facts["workspace"])).record(journals[-1].stage)
    return ("FINISHED" if record and record["run"] != facts["run"] else "KILLED"), None


def _places(experiment: str | None, workspace: Path) -> Iterator[Snapshot]:
    """Where an execution's results may lie: its experiment's references, or its workspace."""
    root = dvc_root()
    if experiment is None:
        yield Snapshot(workspace)
    for ref, commit in experiment_refs(root).items() if experiment else ():
        if ref.endswith(f"/{experiment}"):
            yield Snapshot(root, commit)


def _dvc_at_work() -> bool:
    """Whether a dvc process runs in this repository.

    It may be about to write an experiment's reference.
    """
    import psutil

    here = (process for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cwd"])
    root = dvc_root()
    return any(
        is_dvc(one.info["cmdline"] or []) and Path(one.info["cwd"]).is_relative_to(root)
        for one in here
    )


def _ensure_rows(store: Store, done: Pass) -> None:
    """Rows for what no execution of ours made.

    Experiments and a workspace restored from DVC's cache, or fetched.
    """
    stamp, synced, root = _stamp(), _synced(), dvc_root()
    if synced.get("stamp") == stamp:
        return
    unfinished = {
        (journal.facts["experiment"], journal.facts["workspace"]) for journal in pending()
    }
    where = f"{tracking_uri()} {experiment_name()}"
    known = synced.get("experiments", {}) if synced.get("where") == where else {}
    for ref, commit in experiment_refs(root).items():
        match = EXPERIMENT.fullmatch(ref)
        if match and known.get(ref) != commit and match[3] not in {name for name, _ in unfinished}:
            with _noting(done, ref):
                store.ensure_row(Snapshot(root, commit), match[3], match[1] + match[2])
                known[ref] = commit
    if str(root) not in {workspace for _, workspace in unfinished}:
        with _noting(done, "workspace"):
            store.ensure_row(Snapshot(root), None)
    if not done.failures:
        rows = [row for row in done.changed if row["kind"] == "pipeline"]
        _remember(
            stamp=_stamp(), where=where, experiments=known, **({"latest": rows[-1]} if rows else {})
        )


def _open_store() -> Store:
    from regrpo.tracking.writer import Store

    return Store(tracking_uri(), experiment_name(), dvc_root() / "mlartifacts")


# --- the foreground: regrpo sync ------------------------------------------------------------------


def sync(patience: float = 60.0) -> list[dict[str, str]]:
    """Bring MLflow up to date; returns the rows made or ended ({kind, name, status, run_id}).

    Raises CannotCheck outside a repository or in a broken one, where MLflow cannot be reached or
    refuses something, or where the follower is busy for `patience` seconds.
    """
    root = workspace(dvc_root()).snapshot.root
    require_git(root)
    if not enabled() or up_to_date():
        return []
    deadline, told = time.monotonic() + patience, False
    while True:
        with _locked(2) as held:
            if held:
                changed = [] if up_to_date() else _sync_locked()
        if held:
            if any(journal.live for journal in pending()):
                start_following()  # a stage that began meanwhile saw the lock taken
            return changed
        if up_to_date():
            return []
        if not told:
            print("sync: waiting for the tracker in the background to finish ...", file=sys.stderr)
            told = True
        if time.monotonic() > deadline:
            raise CannotCheck(
                "MLflow",
                expected="the tracker in the background to be done",
                found=f"it is still sending after {patience:.0f} s",
                remedy="Look at .regrpo/tracking.log, or run `regrpo sync` again later.",
            )


def _sync_locked() -> list[dict[str, str]]:
    remedy = "The journals are kept: run `regrpo sync` again when it can be reached (MLFLOW_TRACKING_URI)."
    with (state_file("tracking.log")).open("a") as log, contextlib.redirect_stderr(log):
        try:
            done = sync_once(_open_store())
        except Exception as error:  # as in _noting
            problem = _log_and_name(error)
            raise CannotCheck(
                shown_uri(), expected="an MLflow store", found=problem, remedy=remedy
            ) from error
    if done.failures:
        raise CannotCheck(
            shown_uri(),
            expected="MLflow to take everything",
            found="; ".join(done.failures),
            remedy=remedy,
        )
    return done.changed


@contextlib.contextmanager
def opened(
    create: bool = True,
    remedy: str = "Start the server or set MLFLOW_TRACKING_URI; `--no-mlflow` does without.",
) -> Iterator[Store]:
    """The store, for a command to read or write besides what the journals hold.

    MLflow's chatter goes to the log.

    Raises CannotCheck (with `remedy`) for whatever MLflow raises, and without `create` where the
    database is not there.
    """
    database = Path(tracking_uri().removeprefix("sqlite:///"))
    if not create and tracking_uri().startswith("sqlite:") and not database.exists():
        raise CannotCheck(
            shown_uri(),
            expected="an MLflow store",
            found="no such file",
            remedy="Set MLFLOW_TRACKING_URI to the store.",
        )
    with (state_file("tracking.log")).open("a") as log, contextlib.redirect_stderr(log):
        try:
            with (
                _locked(60) if create else contextlib.nullcontext()
            ):  # two processes that create it kill one another
                store = _open_store()
            yield store
        except RegrpoError:
            raise
        except Exception as error:  # as in _noting
            problem = _log_and_name(error)
            raise CannotCheck(
                shown_uri(), expected="an MLflow store", found=problem, remedy=remedy
            ) from error


# --- the background -------------------------------------------------------------------------------


def follow() -> None:
    """Tell MLflow, pass after pass, until nothing runs any more; one process per repository."""
    with contextlib.suppress(OSError):
        os.nice(10)
    while True:
        with _locked(2) as held:
            if not held:
                return
            _follow_until_idle()
        # A stage that began after the last look saw the lock taken and started no follower.
        if not any(journal.live for journal in pending()):
            return


def _follow_until_idle() -> None:
    store: Store | None = None
    over_since: dict[str, float] = {}
    while True:
        alive, pause = any(journal.live for journal in pending()), EVERY
        waiting, problem = False, None
        try:
            store = store or _open_store()
            done = sync_once(store, over_since)
            waiting, pause = done.waiting, RETRY if done.failures else EVERY
        except Exception as error:  # as in _noting; a follower that dies helps nobody
            problem, store = _log_and_name(error), None
        if problem:
            _refuse_for(RETRY if alive else 0, problem)
        elif alive or waiting:
            time.sleep(pause)
        if not alive and not waiting:
            return


def _refuse_for(seconds: float, problem: str) -> None:
    """Answer every stage at once that MLflow cannot be reached, until it is time to try again."""
    until = time.monotonic() + seconds
    while True:
        for journal in pending():
            if not journal.tracker_notes:
                journal.note(error=problem)
        if time.monotonic() >= until:
            return
        time.sleep(0.2)


def print_addresses(server: str) -> None:
    """The addresses at which a UI at `server` shows the experiment as it is meant to be seen.

    Made where it is not.
    """
    from regrpo.tracking import views

    with opened() as store:
        addresses = views.addresses(server, store.experiment_id)
    for mode, address in addresses.items():
        print(f"{mode:<8} {address}", flush=True)


def main() -> None:
    match sys.argv[1:]:
        case ["--follow"]:
            if journal_folder().is_dir():
                follow()
        case ["--addresses", server]:  # for `make ui`
            try:
                print_addresses(server)
            except CannotCheck as error:
                sys.exit(str(error))
        case _:
            sys.exit(
                "usage: python -m regrpo.tracking.follower --follow  (`regrpo sync` is the command for people)"
            )


if __name__ == "__main__":
    main()
