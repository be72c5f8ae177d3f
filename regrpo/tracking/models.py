"""Trained models as MLflow's logged models: pointers to DVC's bytes that hold none themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from regrpo.records.journal import JournalReader
from regrpo.tracking import notes, rows

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


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
