"""MLflow read only: runs, curves, models and artifacts as plain data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from regrpo.core.errors import CannotCheck
from regrpo.core.files import Json
from regrpo.tracking.address import database_file

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""MLflow's settings where the user has none: an unreachable server is given up within seconds."""


class Reader:
    """An MLflow store, read only.

    A run is a mapping of `id`, `experiment`, `status`, `deleted`, `params`, `metrics` (the latest
    of each) and `tags`.
    """

    def __init__(self, client: Any, uri: str) -> None:
        self.client = client
        self.uri = uri

    def run(self, run_id: str) -> Json | None:
        """A run by its id. Returns None if the store has none."""
        from mlflow.exceptions import MlflowException

        try:
            return _plain(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def tagged(self, **tags: str) -> list[Json]:
        """The runs of every experiment with these tags (`__` stands for a dot), newest first."""
        found = self.client.search_runs(self.experiments(), with_tags(tags))
        return [_plain(run) for run in found]

    def experiments(self) -> list[str]:
        """The ids of all experiments."""
        return [one.experiment_id for one in self.client.search_experiments()]

    def models(self, run: Json) -> list[dict[str, str]]:
        """The tags of each model that a run logged."""
        found = self.client.search_logged_models(
            [run["experiment"]], f"source_run_id = '{run['id']}'"
        )
        return [dict(model.tags) for model in found]

    def artifacts(self, run_id: str) -> list[str]:
        """The paths of a run's artifact files."""
        folder = self._folder_beside(run_id)
        if folder is None:
            return list(self._listed(run_id, None))
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def artifact(self, run_id: str, path: str) -> bytes:
        """An artifact's bytes."""
        beside = self._folder_beside(run_id)
        if beside is not None:
            return (beside / path).read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()

    def _listed(self, run_id: str, folder: str | None) -> Iterator[str]:
        for item in self.client.list_artifacts(run_id, folder):
            if item.is_dir:
                yield from self._listed(run_id, item.path)
            else:
                yield item.path

    def _folder_beside(self, run_id: str) -> Path | None:
        """The folder with a run's artifacts beside mlflow.db. Returns None if there is none.

        A local store records whole paths, which in a copied repository lead to the original's
        files: its own lie in the folder of the same name beside its database.
        """
        recorded = urlsplit(self.client.get_run(run_id).info.artifact_uri)
        database = database_file(self.uri)
        if database is None or recorded.scheme not in ("", "file"):
            return None
        inner = unquote(recorded.path).rpartition("/mlartifacts/")[2]
        beside = database.resolve().parent / "mlartifacts"
        folder = (beside / inner).resolve()
        # The path comes out of a database: it must not lead elsewhere.
        inside = folder != beside and folder.is_relative_to(beside)
        return folder if inside and folder.is_dir() else None


def open_reader(uri: str) -> Reader:
    """The store at `uri`; imports mlflow (seconds), and never makes a database.

    Raises CannotCheck if `uri` names a database that is not there.
    """
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise CannotCheck(
            "MLflow",
            expected=f"a store at {database.name}",
            found="no such file",
            remedy="Set MLFLOW_TRACKING_URI, or use --no-mlflow.",
        )
    import_mlflow()
    import mlflow

    return Reader(mlflow.MlflowClient(uri), uri)


def import_mlflow() -> None:
    """Import mlflow such that an unreachable store is given up soon (its defaults: minutes)."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_RUN_ID", None)
    import mlflow.store.db.utils

    mlflow.store.db.utils.MAX_RETRY_COUNT = 2  # no setting exists for it
    # Its own takes the URI for a path: beside a repository `a b`, a folder `a%20b` would appear.
    mlflow.store.db.utils._make_parent_dirs_if_sqlite = _make_folder


def _make_folder(uri: str) -> None:
    """Make the folder of an SQLite database, as MLflow does."""
    database = database_file(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)


def with_tags(tags: Mapping[str, str]) -> str:
    """MLflow's search condition for runs with these tags (`__` in a name stands for a dot)."""
    conditions = [f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items()]
    return " and ".join(conditions)


def _plain(run: Any) -> Json:
    return {
        "id": run.info.run_id,
        "experiment": run.info.experiment_id,
        "status": run.info.status,
        "deleted": run.info.lifecycle_stage == "deleted",
        "params": dict(run.data.params),
        "metrics": dict(run.data.metrics),
        "tags": dict(run.data.tags),
    }
