"""One pass over journals, DVC experiments and workspace: MLflow gets what it does not hold yet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from regrpo.core.dvc import dvc_root
from regrpo.core.git import experiments
from regrpo.core.pipeline import Snapshot
from regrpo.records.journal import JournalReader, damaged_folder, pending, read_notes
from regrpo.tracking import pipeline_rows, state, writer
from regrpo.tracking.address import cure, experiment_name, sentence, store_id, tracking_uri
from regrpo.tracking.store import Store

GRACE = 20.0
"""Seconds after a DVC experiment's process ended in which DVC may still write its reference."""


@dataclass
class Pass:
    """What one pass did, and what it left."""

    changed: list[dict[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cures: list[str] = field(default_factory=list)
    """What to do about those of the failures that waiting does not cure."""
    waiting: bool = False


def open_store() -> Store:
    """The user's experiment, which is made if it is new (imports mlflow: seconds)."""
    return Store(tracking_uri(), experiment_name(), dvc_root() / "mlartifacts")


def sync_once(store: Store, show: Callable[[str], None] = lambda _: None) -> Pass:
    """Write to MLflow everything that the files hold and it does not; `show` gets the progress."""
    done = Pass()
    store.changed = done.changed
    executions: dict[str, list[JournalReader]] = {}
    journals = list(pending())
    for number, journal in enumerate(journals):
        show(f"{number} of {len(journals)} journals are sent, {journal.folder.name} is next")
        with _collecting_failures(done, journal.folder.name, journal):
            writer.write_journal(store, journal)
        if journal.execution:
            executions.setdefault(journal.execution, []).append(journal)
    for number, stages in enumerate(executions.values()):
        over = [not journal.live and journal.tracker_notes.get("ended") for journal in stages]
        if all(over):
            name = stages[0].facts["experiment"] or "repro"
            show(f"{number} of {len(executions)} executions are ended, {name} is next")
            with _collecting_failures(done, f"execution of {name}"):
                _finish(store, stages, done)
    for folder in damaged_folder().glob("*"):
        with _collecting_failures(done, folder.name):
            _end_damaged(store, folder)
    _ensure_rows(store, done, show)
    return done


@contextlib.contextmanager
def _collecting_failures(
    done: Pass, what: str, journal: JournalReader | None = None
) -> Iterator[None]:
    """One journal that MLflow refuses must not keep the others from it."""
    try:
        yield
    except Exception as error:  # MLflow, its database layer and its HTTP client raise their own
        problem, remedy = state.log_error(error), cure(error)
        done.failures.append(f"{what}: {problem}")
        if remedy:
            done.cures.append(remedy)
        if journal is not None:
            journal.answer_with_error(problem, sentence(error))
    else:
        if journal is not None and journal.tracker_notes.get("stuck"):
            journal.note(stuck=None)


def _end_damaged(store: Store, folder: Path) -> None:
    """End the runs of a journal that was set aside: nothing more of it will come."""
    if (folder / "sent").exists():
        return
    notes = read_notes(folder)
    open_runs = [notes.get("run_id"), notes.get("parent_run_id")]
    for journal in pending():
        if journal.tracker_notes.get("parent_run_id") == open_runs[1]:
            open_runs[1] = None  # the others of the execution end it
    for run_id in filter(None, open_runs):
        if store.is_running(run_id):
            store.end_run(run_id, "KILLED", time.time(), "stage", folder.name)
    (folder / "sent").touch()


# --- executions that are over ---------------------------------------------------------------------


def _finish(store: Store, journals: list[JournalReader], done: Pass) -> None:
    status, snapshot = _outcome(journals)
    if status is None:
        if _reference_may_come(journals[-1]):
            done.waiting = True
            return
        status = "FINISHED" if journals[-1].stage == "model_card" else "KILLED"
    pipeline_rows.finish_execution(store, journals, status, snapshot)
    state.remember(latest=done.changed[-1])
    for journal in journals:
        journal.mark_sent()


def _outcome(journals: list[JournalReader]) -> tuple[str | None, Snapshot | None]:
    """(status, where the results lie) of an execution that is over.

    The status is None if the execution's reference is still missing.
    """
    statuses = [(journal.closed or {})["status"] for journal in journals]
    for status in ("KILLED", "FAILED"):
        if status in statuses:
            return status, None
    last = journals[-1]
    experiment, workspace = last.facts["experiment"], Path(last.facts["workspace"])
    for snapshot in _places(experiment, workspace):
        if all(snapshot.holds(journal.stage, journal.facts["run"]) for journal in journals):
            return "FINISHED", snapshot
    if experiment:
        return None, None
    # dvc.lock without the run of a stage that finished: dvc died first, or a later run of the stage
    # took its place.
    record = Snapshot(workspace).record(last.stage)
    replaced = record is not None and record["run"] != last.facts["run"]
    return ("FINISHED" if replaced else "KILLED"), None


def _places(experiment: str | None, workspace: Path) -> Iterator[Snapshot]:
    """Where an execution's results may lie: its experiment's references, or its workspace."""
    if experiment is None:
        yield Snapshot(workspace)
        return
    root = dvc_root()
    for one in experiments(root):
        if one.name == experiment:
            yield Snapshot(root, one.commit)


def _reference_may_come(journal: JournalReader) -> bool:
    """Whether an execution was first seen to be over less than GRACE seconds ago."""
    now = time.time()
    since = journal.tracker_notes.get("over_since", now)
    if since >= now:  # not noted yet, or garbled
        since = now
        journal.note(over_since=now)
    return bool(now < since + GRACE)


# --- pipelines that no execution of ours made -----------------------------------------------------


def _ensure_rows(store: Store, done: Pass, show: Callable[[str], None]) -> None:
    """Rows for experiments and a workspace that were restored from DVC's cache, or fetched."""
    before, root = state.synced(), dvc_root()
    if before.get("stamp") == state.stamp():
        return
    unfinished = [journal.facts for journal in pending()]
    running = [facts["experiment"] for facts in unfinished]
    where = store_id()
    known = before.get("experiments", {}) if before.get("where") == where else {}
    for one in experiments(root):
        if known.get(one.ref) == one.commit or one.name in running:
            continue
        show(f"the row of experiment {one.name} is next")
        with _collecting_failures(done, one.ref):
            pipeline_rows.ensure_row(store, Snapshot(root, one.commit), one.name, one.baseline)
            known[one.ref] = one.commit
    if str(root) not in [facts["workspace"] for facts in unfinished]:
        with _collecting_failures(done, "workspace"):
            pipeline_rows.ensure_row(store, Snapshot(root), None)
    if done.failures:
        return
    state.remember(stamp=state.stamp(), where=where, experiments=known)
    rows = [row for row in done.changed if row["kind"] == "pipeline"]
    if rows:
        state.remember(latest=rows[-1])
