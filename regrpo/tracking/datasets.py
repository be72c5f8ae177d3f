"""Prepared and selected data as MLflow's dataset inputs of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from regrpo.core import files
from regrpo.core.files import Json
from regrpo.tracking.store import Store

CONTEXTS = {"prepared": "gate", "dev": "validation", "eval": "evaluation"}
"""What MLflow calls the use of a split, or of all of them; every other is for training."""

FOLDERS = (("data", "prepared"), ("data", "selected"))
"""Where they lie; only what lies in the latter is named with its folder."""

COLUMN_TYPES = {
    "int64": "long",
    "double": "double",
    "bool": "boolean",
    "string": "string",
    "large_string": "string",
}
"""Arrow's name of a column's type → MLflow's; every other (lists, messages) is an `object`."""


def log_datasets(store: Store, run_id: str, inputs: Iterable[Json], folder: Path) -> None:
    """Log prepared and selected files of a record's inputs: name, digest, path, use, columns, rows.

    Columns and rows are read from the repository at `folder`, if the recorded bytes lie there.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for item in inputs:
        path, sha256 = Path(item["path"]), item["sha256"]
        if path.parts[:2] in FOLDERS and path.suffix in ("", ".parquet"):
            name = path.relative_to("data").as_posix().removeprefix("prepared/")
            # MLflow's digest takes 36 characters: the whole one is a tag.
            source = json.dumps({"uri": item["path"]})
            schema, profile = _schema_and_profile(folder / path, sha256)
            dataset = Dataset(name, sha256[:32], "local", source, schema, profile)
            context = CONTEXTS.get(path.stem, "training")
            tags = [InputTag("mlflow.data.context", context), InputTag("sha256", sha256)]
            found.append(DatasetInput(dataset, tags))
    if found:
        store.client.log_inputs(run_id, found)


def _schema_and_profile(path: Path, sha256: str) -> tuple[str | None, str | None]:
    """A Parquet file's columns and its number of rows, as MLflow spells them.

    Returns (None, None) for a folder, for what is no Parquet file, and if the file does not hold
    the bytes of this SHA-256.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file() or files.sha256(path) != sha256:
        return None, None
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException:  # the gate judges files: a run is logged whatever it read
        return None, None
    columns = []
    for column in metadata.schema.to_arrow_schema():
        columns.append({"name": column.name, "type": COLUMN_TYPES.get(str(column.type), "object")})
    rows = metadata.num_rows
    return json.dumps({"mlflow_colspec": columns}), json.dumps({"num_rows": rows})
