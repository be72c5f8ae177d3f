"""A stage's journal becomes its run in MLflow: made at once, fed while the stage runs, then ended.

Every step notes in the journal how far it is, so that a pass which was cut off is taken up again.
"""

from __future__ import annotations

from pathlib import Path

from regrpo.core.dvc import dvc_root
from regrpo.core.files import Json
from regrpo.records.journal import JournalReader
from regrpo.tracking import datasets, models, rows
from regrpo.tracking.store import Point, Store

SAMPLE_EVERY = 5
"""Seconds between two samples of the machine (CPU, memory, GPU)."""


def write_journal(store: Store, journal: JournalReader) -> None:
    """Bring a stage's run up to date with its journal, and end it if the stage has ended."""
    if not journal.tracker_notes.get("run_id"):
        _open_run(store, journal)
    if journal.tracker_notes.get("ended"):
        return
    _sample_machine(store, journal)
    # Asked before the metrics are read, so that none can be written in between.
    closed = journal.closed
    _send_metrics(store, journal)
    if closed is not None:
        stop_sampling(store, journal.tracker_notes["run_id"])
        _close_run(store, journal, closed)


def _open_run(store: Store, journal: JournalReader) -> None:
    """Make the run with its parameters, and its execution's if it is the first."""
    facts = journal.facts
    parent_id = _execution_run(store, journal)
    run_id = store.find_run(regrpo__run=facts["run"])
    if run_id is None:
        tags = {"regrpo.kind": "stage", "mlflow.source.name": facts["entry"]["cmd"]}
        if parent_id:
            tags["mlflow.parentRunId"] = parent_id
        # Two runs of a stage side by side are told apart by their names.
        name = f"{journal.stage} {facts['experiment'] or facts['key'][:8]}"
        run_id = store.create_run(name, tags | rows.identity_tags(facts), facts["started"])
    store.log_params(run_id, rows.stage_params(facts["entry"]["params"]))
    if diff := journal.diff():
        store.client.log_text(run_id, diff + "\n", "code.diff")
    journal.note(run_id=run_id, parent_run_id=parent_id)


def _execution_run(store: Store, journal: JournalReader) -> str | None:
    """The run of a journal's pipeline execution. Returns None for a stage run by hand."""
    execution, facts = journal.execution, journal.facts
    if execution is None:
        return None
    if known := store.find_run(regrpo__execution=execution):
        return known
    tags = {
        "regrpo.kind": "pipeline",
        "regrpo.execution": execution,
        "mlflow.source.name": "dvc.yaml",
    }
    tags |= rows.experiment_tags(
        facts["experiment"], facts["baseline"], facts["profile"], facts["sections"], dvc_root()
    )
    params = rows.parameters(facts["sections"])
    name = facts["experiment"] or rows.row_name(params, execution)
    return store.create_run(name, tags | rows.code_tags(facts["code"]), facts["started"])


def _send_metrics(store: Store, journal: JournalReader) -> None:
    """Send the metrics that the stage wrote since the last time.

    What is sent again after a kill is there once: MLflow keeps a point by name, step, value and
    time, and the time is the line's.
    """
    for lines, offset in journal.metrics_from(journal.tracker_notes.get("offset", 0)):
        points: list[Point] = []
        for line in lines:
            for name, value in line["values"].items():
                points.append((name, value, line["time"], line["step"]))
        store.log_metrics(journal.tracker_notes["run_id"], points)
        journal.note(offset=offset)


def _close_run(store: Store, journal: JournalReader, closed: Json) -> None:
    run_id, record, ended = journal.tracker_notes["run_id"], closed["record"], closed["ended"]
    model_id = None
    if record:
        store.log_tags(run_id, rows.record_tags(record))
        workspace = Path(journal.facts["workspace"])
        datasets.log_datasets(store, run_id, record["inputs"], workspace)
        store.log_json(run_id, record, "run.json")
        model_id = models.log_model(store, journal, record)
        if journal.stage == "evaluate":
            evaluation = rows.read_evaluation(journal.reports().get("metrics.json"))
            models.log_scores(store, run_id, record, evaluation, ended)
    kept = journal.folder / "files"
    if kept.is_dir():
        store.client.log_artifacts(run_id, str(kept))
    store.log_final_metrics(run_id, _summary(journal), ended, model_id)
    store.end_run(run_id, closed["status"], ended, "stage", journal.stage)
    store.level_parameters("stage", journal.stage)
    journal.note(ended=True)
    if journal.execution is None:
        journal.mark_sent()


def _summary(journal: JournalReader) -> dict[str, float]:
    """The stage's final metrics, without those of a name that it logged while it ran.

    Such a name (sft's loss) has its curve: a summary would be a second value at one of its steps.
    """
    final = rows.final_metrics(journal.reports())
    for lines, _ in journal.metrics_from(0):
        for line in lines:
            for name in line["values"]:
                final.pop(rows.mlflow_name(name), None)
    return final


# --- samples of the machine -----------------------------------------------------------------------


def _sample_machine(store: Store, journal: JournalReader) -> None:
    """Sample the machine into the run while the stage runs."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    run_id = journal.tracker_notes["run_id"]
    if journal.running and run_id not in store.monitors:
        monitor = SystemMetricsMonitor(
            run_id, SAMPLE_EVERY, resume_logging=True, tracking_uri=store.uri
        )
        monitor.start()
        store.monitors[run_id] = monitor


def stop_sampling(store: Store, run_id: str) -> None:
    """End the sampling for a run, if there is any."""
    monitor = store.monitors.pop(run_id, None)
    if monitor:
        monitor.finish()
