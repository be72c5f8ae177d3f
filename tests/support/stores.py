"""Journals as stages leave them, and what an MLflow store says of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES
from regrpo.records.journal import Journal
from tests.support.pipelines import digest, lock_entry, record

if TYPE_CHECKING:
    from mlflow.entities import Run

    from regrpo.tracking.store import Store

DEAD = [2**22 + 1, 1.0]
"""A process id and start time that no process has."""
MYSELF = [os.getpid(), psutil.Process().create_time()]


def open_journal(root: Path, stage: str = "sft", **changes: Any) -> Journal:
    """A journal as regrpo.records.stage_run opens it, of a process that lives.

    `changes` are facts in place of the usual ones.
    """
    entry = lock_entry(stage)
    sections: dict[str, dict[str, Any]] = {name: {"seed": 0} for name in STAGES[:-1]}
    sections["model_card"] = {"model_name": "Tiny-1.5"}
    facts = {
        "stage": stage,
        "run": f"{stage}-0",
        "key": stage_key(entry),
        "entry": entry,
        "code": {"revision": "c" * 40, "dirty": True, "diff_sha256": digest("diff")},
        "diff": "--- a/stages/sft.py",
        "process": MYSELF,
        "execution": None,
        "experiment": None,
        "baseline": None,
        "profile": "params.yaml",
        "sections": sections,
        "workspace": str(root),
        "started": time.time() - 5,
    }
    return Journal(facts | changes)


def finished_journal(root: Path, stage: str, **changes: Any) -> Journal:
    """The journal of a stage that finished."""
    journal = open_journal(root, stage, **changes)
    run = changes.get("run", f"{stage}-0")
    journal.close("FINISHED", record(stage, run=run))
    return journal


def runs(store: Store, **tags: str) -> list[Run]:
    """The experiment's runs with these tags, oldest first."""
    found = store.client.search_runs([store.experiment_id], order_by=["attributes.start_time ASC"])
    wanted = {f"regrpo.{name}": value for name, value in tags.items()}
    return [run for run in found if wanted.items() <= run.data.tags.items()]


def only(store: Store, **tags: str) -> Run:
    """The one run with these tags."""
    (run,) = runs(store, **tags)
    return run


def artifacts(store: Store, run: Run, folder: str | None = None) -> set[str]:
    """The paths of a run's artifact files."""
    paths = set()
    for item in store.client.list_artifacts(run.info.run_id, folder):
        if item.is_dir:
            paths |= artifacts(store, run, item.path)
        else:
            paths.add(item.path)
    return paths
