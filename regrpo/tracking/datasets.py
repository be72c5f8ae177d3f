"""Prepared data as MLflow's dataset inputs of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regrpo.tracking.store import Store

CONTEXTS = {"prepared": "gate", "dev": "validation", "eval": "evaluation"}
"""What MLflow calls the use of a split, or of all of them; every other is for training."""


def log_datasets(store: Store, run_id: str, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Log the prepared files among a record's inputs: name, digest, path and use."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for item in inputs:
        path, sha256 = PurePosixPath(item["path"]), item["sha256"]
        if path.is_relative_to("data/prepared") and path.suffix in ("", ".parquet"):
            # MLflow's digest takes 36 characters: the whole one is a tag.
            source = json.dumps({"uri": item["path"]})
            dataset = Dataset(path.name, sha256[:32], "local", source)
            context = CONTEXTS.get(path.stem, "training")
            tags = [InputTag("mlflow.data.context", context), InputTag("sha256", sha256)]
            found.append(DatasetInput(dataset, tags))
    if found:
        store.client.log_inputs(run_id, found)
