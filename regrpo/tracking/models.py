"""Trained models as MLflow's logged models: pointers to DVC's bytes that hold none themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from regrpo.evaluate.results import MODELS, Evaluation
from regrpo.records.journal import JournalReader
from regrpo.tracking import notes, rows
from regrpo.tracking.store import LONGEST, Store

SCORED_ROLES = ("headline", "main")
"""The tasks whose scores the evaluated models carry, so that MLflow's Models tab compares them."""
QUESTIONS = "data/prepared/eval.parquet"
"""What evaluate asks in them."""


def log_model(store: Store, journal: JournalReader, record: Mapping[str, Any]) -> str | None:
    """Log the model that a stage made. Returns its id, or None if the stage makes none."""
    import mlflow
    from mlflow.entities import LoggedModelOutput

    outputs = [out for out in record["outputs"] if out["path"].startswith("models/")]
    known: str | None = journal.tracker_notes.get("model_id")
    if known or not outputs:
        return known
    output = outputs[0]
    run_id, sections = journal.tracker_notes["run_id"], journal.facts["sections"]
    params = {"path": output["path"], "sha256": output["sha256"], "size": str(output["size"])}
    for key, value in rows.stage_params(record["parameters"]).items():
        params[key] = value[:LONGEST]
    product = sections["model_card"].get("model_name", "model")
    name = f"{product}-{PurePosixPath(output['path']).name}"
    model = mlflow.create_external_model(
        re.sub("[/:.%\"']", "-", name),  # what MLflow does not take
        source_run_id=run_id,
        tags=_model_tags(output, record),
        params=params,
        experiment_id=store.experiment_id,
    )
    model_id = str(model.model_id)
    store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    journal.note(model_id=model_id)
    return model_id


def _model_tags(output: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    path, sha256 = output["path"], output["sha256"]
    tags = {
        "mlflow.user": "regrpo",
        "mlflow.source.name": record["command"],
        "mlflow.source.type": "LOCAL",
        # MLflow would fill these in from the repository around this process: a remote's address
        # may say too much.
        "mlflow.source.git.branch": "",
        "mlflow.source.git.repoURL": "",
        "regrpo.path": path,
        "regrpo.sha256": sha256,
        "regrpo.key": record["key"],
        "regrpo.run": record["run"],
        notes.NOTE: f"`{path}`, SHA-256 `{sha256}`. DVC keeps the bytes; none are here.",
    }
    return tags | rows.code_tags(record["code"])


def log_scores(
    store: Store, run_id: str, record: Mapping[str, Any], evaluation: Evaluation, ended: float
) -> None:
    """Log evaluate's headline and main scores as metrics of each model, on the questions it got.

    The task's name is the metric's, for every model alike: it is by their names that MLflow
    compares models.
    """
    from mlflow.entities import LoggedModelInput, Metric

    inputs = {item["path"]: item["sha256"] for item in record["inputs"]}
    dataset = {}
    if QUESTIONS in inputs:
        digest = inputs[QUESTIONS][:32]  # as datasets.log_datasets names it
        dataset = {"dataset_name": PurePosixPath(QUESTIONS).name, "dataset_digest": digest}
    at = int(ended * 1000)
    metrics, evaluated = [], set()
    # A model's place is the metric's step in the run, whose latest value so is grpo's.
    for step, model in enumerate(MODELS):
        path = f"models/{model}"
        model_id = _find_model(store, path, inputs[path]) if path in inputs else None
        if model_id is None:
            continue
        evaluated.add(model_id)
        for name, task in evaluation.tasks.items():
            if task.role in SCORED_ROLES and model in task.models:
                key, value = rows.mlflow_name(name), task.models[model].value
                metrics.append(Metric(key, value, at, step, model_id, **dataset))
    store.log_metrics(run_id, metrics)
    present = {one.model_id for one in store.client.get_run(run_id).inputs.model_inputs}
    new = [LoggedModelInput(model_id) for model_id in sorted(evaluated - present)]
    if new:
        store.client.log_inputs(run_id, models=new)


def link_models(store: Store, run_id: str, hashes: Mapping[str, str]) -> None:
    """Show a row's trained models (`hashes`: path → SHA-256) beside it, whoever made them."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(run_id).outputs
    linked = {one.model_id for one in outputs.model_outputs} if outputs else set()
    new = []
    for path, sha256 in hashes.items():
        model_id = _find_model(store, path, sha256) if path.startswith("models/") else None
        if model_id and model_id not in linked:
            new.append(LoggedModelOutput(model_id, step=0))
    if new:
        store.client.log_outputs(run_id, new)


def _find_model(store: Store, path: str, sha256: str) -> str | None:
    """The id of the newest logged model of these bytes. Returns None if there is none."""
    found = store.client.search_logged_models(
        [store.experiment_id],
        f"tags.`regrpo.sha256` = '{sha256}' AND tags.`regrpo.path` = '{path}'",
        max_results=1,
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    return str(found[0].model_id) if found else None
