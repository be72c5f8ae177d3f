"""MLflow's table of pipelines: one row for each execution, and for what DVC restored or fetched."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from regrpo.core.dvc import dvc_root
from regrpo.core.files import Json
from regrpo.core.pipeline import Snapshot
from regrpo.records.journal import JournalReader
from regrpo.tracking import datasets, models, notes, rows
from regrpo.tracking.store import Point, Store


def finish_execution(
    store: Store, journals: Sequence[JournalReader], status: str, snapshot: Snapshot | None
) -> None:
    """End an execution's row, filled from `snapshot` if that is a whole pipeline.

    A row of less than a whole pipeline is filled from the journals.
    """
    first = journals[0]
    if snapshot is not None and snapshot.pipeline_key() is not None:
        row = rows.from_snapshot(snapshot)
    else:
        row = rows.from_journals(journals)
    identity = row.tags.get("regrpo.pipeline_key", str(first.execution))
    name = first.facts["experiment"] or rows.row_name(row.params, identity)
    ended = max((journal.closed or {"ended": time.time()})["ended"] for journal in journals)
    run_id = first.tracker_notes["parent_run_id"]
    store.client.update_run(run_id, name=name)
    _fill_and_end(store, run_id, row, status, ended, name)


def ensure_row(
    store: Store, snapshot: Snapshot, experiment: str | None, baseline: str | None = None
) -> None:
    """Make a row for a whole pipeline that no process of ours was seen to make.

    An experiment has a row of its own; for the workspace (None) any row of the same pipeline will
    do.
    """
    key = snapshot.pipeline_key()
    if key is None:
        return
    wanted = {"regrpo__pipeline_key": key}
    if experiment:
        wanted["regrpo__experiment"] = experiment
    if store.find_run(**wanted):
        return
    tags = {"regrpo.kind": "pipeline", "regrpo.restored": "true", "mlflow.source.name": "dvc.yaml"}
    tags |= rows.experiment_tags(
        experiment, baseline, snapshot.profile(), snapshot.params(), snapshot.root
    )
    last = snapshot.record("model_card") or {}
    tags |= rows.code_tags(last.get("code") or {})
    row = rows.from_snapshot(snapshot)
    name = experiment or rows.row_name(row.params, key)
    _fill_and_end(store, store.create_run(name, tags), row, "FINISHED", time.time(), name)


def _fill_and_end(
    store: Store, run_id: str, row: rows.Row, status: str, ended: float, name: str
) -> None:
    changed = store.client.get_run(run_id).data.tags.get("regrpo.changed")
    note = notes.describe_row(row, changed, store.experiment_id, run_id)
    store.log_params(run_id, row.params)
    store.log_tags(run_id, row.tags | row.stage_tags | {notes.NOTE: note})
    store.log_final_metrics(run_id, row.metrics, ended)
    # The curves too, so that pipelines compare by them, restored ones among them.
    points: list[Point] = []
    for metric, steps in row.curves.items():
        points += [(metric, value, ended, step) for step, value in steps.items()]
    store.log_metrics(run_id, points)
    splits = [item for item in row.datasets if item["path"].endswith(".parquet")]
    datasets.log_datasets(store, run_id, splits, dvc_root())
    models.link_models(store, run_id, row.hashes)
    store.log_json(run_id, row.hashes, rows.OUTPUTS)
    # The UI's comparison opens with the first table: evaluate's.
    for path, table in sorted(row.tables.items()):
        store.log_table(run_id, table, path)
    _log_files(store, run_id, row.artifacts)
    store.end_run(run_id, status, ended, "pipeline", name)
    store.level_parameters("pipeline")


def _log_files(store: Store, run_id: str, contents: Mapping[str, bytes]) -> None:
    """Log files by path: reports/grpo/curves.png becomes grpo/curves.png."""
    with tempfile.TemporaryDirectory() as folder:
        for path, data in contents.items():
            target = Path(folder) / PurePosixPath(path).relative_to("reports")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        store.client.log_artifacts(run_id, folder)


def add_reproduction(store: Store, verdict: Json) -> str:
    """A run for `regrpo reproduce`'s verdict, tagged with what it reproduced. Returns its id."""
    key, original = verdict["pipeline_key"], verdict["mlflow_run_id"]
    if original is None and key:
        original = store.find_run(regrpo__pipeline_key=key, regrpo__kind="pipeline")
    tags = {
        "regrpo.kind": "reproduction",
        "regrpo.verdict": verdict["verdict"],
        "regrpo.expected": verdict["expected"],
        "regrpo.revision": verdict["revision"],
        "mlflow.source.name": "regrpo reproduce",
        "mlflow.source.git.commit": verdict["revision"],
    }
    if original:
        tags["regrpo.reproduces"] = original
    if key:
        tags["regrpo.reproduces_key"] = key
    for one in verdict["stages"]:
        stage, made = one["stage"], one["original"]
        tags[f"regrpo.reproduces.{stage}"] = made["mlflow_run_id"] or made["run"]
        tags[f"regrpo.reproduces_key.{stage}"] = made["key"]
    run_id = store.create_run(f"reproduction of {verdict['asked']}", tags, verdict["started"])
    store.log_json(run_id, verdict, "verdict.json")
    ended = verdict["ended"]
    store.log_final_metrics(run_id, verdict["numbers"], ended)
    store.end_run(run_id, "FINISHED", ended, "reproduction", verdict["verdict"])
    return run_id
