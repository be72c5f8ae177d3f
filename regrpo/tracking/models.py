"""Trained models as MLflow's logged models: pointers to DVC's bytes that hold none themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from regrpo.core.files import Json
from regrpo.evaluate.results import MODELS, Evaluation
from regrpo.records.journal import JournalReader
from regrpo.tracking import notes, rows
from regrpo.tracking.store import LONGEST, Point, Store

SCORED_ROLES = ("headline", "main")
"""The tasks whose scores the evaluated models carry, so that MLflow's Models tab compares them."""
QUESTIONS = "data/prepared/eval.parquet"
"""What evaluate asks in them."""


def log_model(store: Store, journal: JournalReader, record: Json) -> str | None:
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


def _model_tags(output: Json, record: Json) -> dict[str, str]:
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
    store: Store, run_id: str, record: Json, evaluation: Evaluation | None, ended: float
) -> None:
    """Log evaluate's headline and main scores as metrics of each model, on the questions it got.

    The task's name is the metric's, for every model alike: it is by their names that MLflow
    compares models.
    """
    from mlflow.entities import LoggedModelInput

    inputs = {item["path"]: item["sha256"] for item in record["inputs"]}
    dataset = {}
    if QUESTIONS in inputs:
        digest = inputs[QUESTIONS][:32]  # as datasets.log_datasets names it
        dataset = {"dataset_name": PurePosixPath(QUESTIONS).name, "dataset_digest": digest}
    evaluated = _find_models(store, inputs)
    tasks = evaluation.tasks.items() if evaluation else []
    # A model's place is the metric's step in the run, whose latest value so is grpo's.
    for step, model in enumerate(MODELS):
        model_id = evaluated.get(f"models/{model}")
        points: list[Point] = []
        for name, task in tasks:
            if model_id and task.role in SCORED_ROLES and model in task.models:
                points.append((name, task.models[model].value, ended, step))
        store.log_metrics(run_id, points, model_id, **dataset)
    known = {one.model_id for one in store.client.get_run(run_id).inputs.model_inputs}
    new = [LoggedModelInput(one) for one in evaluated.values() if one not in known]
    if new:
        store.client.log_inputs(run_id, models=new)


def link_models(store: Store, run_id: str, hashes: Mapping[str, str]) -> None:
    """Show a row's trained models (`hashes`: path → SHA-256) beside it, whoever made them."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(run_id).outputs
    known = {one.model_id for one in outputs.model_outputs} if outputs else set()
    found = _find_models(store, hashes).values()
    new = [LoggedModelOutput(one, step=0) for one in found if one not in known]
    if new:
        store.client.log_outputs(run_id, new)


def _find_models(store: Store, hashes: Mapping[str, str]) -> dict[str, str]:
    """{path: id} of the newest logged models of these bytes, as far as there are some."""
    found = {}
    for path, sha256 in hashes.items():
        if not path.startswith("models/"):
            continue
        models = store.client.search_logged_models(
            [store.experiment_id],
            f"tags.`regrpo.sha256` = '{sha256}' AND tags.`regrpo.path` = '{path}'",
            max_results=1,
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        )
        if models:
            found[path] = str(models[0].model_id)
    return found
