"""One MLflow experiment, for writing: runs are found by their tags, made, filled and ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from regrpo.core.errors import CannotCheck
from regrpo.tracking import notes, rows
from regrpo.tracking.address import KEPT, restoring, shown_uri
from regrpo.tracking.reader import import_mlflow, with_tags
from regrpo.tracking.registry import Registry
from regrpo.tracking.tables import Table

Point = tuple[str, float, float, int]
"""A metric's name, value, time (seconds since 1970) and step."""
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""The most that MLflow takes in one call."""
LONGEST = 6000
"""Characters of a parameter or tag; longer ones are cut, and lie whole in run.json."""
ABSENT = "(not set)"
"""The value of a parameter that only other runs of the same kind have.

MLflow's comparison of runs invents a value where there is none.
"""


class Store:
    """The MLflow experiment of a repository.

    Everything may be written twice: what is there is found again before anything is made. Raises
    MLflow's own exceptions if it cannot be reached, CannotCheck for a deleted experiment.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        import_mlflow()
        import mlflow

        mlflow.set_tracking_uri(uri)  # create_external_model knows no other way
        self.uri = uri
        self.client = mlflow.MlflowClient(uri)
        self.experiment_id = self._experiment(experiment, artifacts)
        self.monitors: dict[str, Any] = {}
        """Run id → the sampler of the machine that runs for it."""
        self.changed: list[dict[str, str]] = []
        """The runs that were ended here, as {kind, name, status, run_id}."""

    def close(self) -> None:
        """End the sampling of the machine. What MLflow itself holds open it shares by URI."""
        while self.monitors:
            self.monitors.popitem()[1].finish()

    def _experiment(self, name: str, artifacts: Path) -> str:
        """The id of the experiment, which is made with its description and view if it is new."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = artifacts.as_uri() if self.uri.startswith("sqlite:") else None
            # With this kind the UI shows training runs first, not the traces of agents.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            made = self.client.create_experiment(name, location, tags=tags)
            found = self.client.get_experiment(made)
        if found.lifecycle_stage == "deleted":
            raise CannotCheck(
                shown_uri(),
                expected=f"an experiment {name}",
                found=f"a deleted one of that name (id {found.experiment_id})",
                remedy=f"{restoring('experiment', found.experiment_id)} {KEPT}",
            )
        # A description or view that is there may be a person's own.
        for key, value in notes.experiment_tags(found.creation_time).items():
            if key not in found.tags:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def registry(self) -> Registry:
        """The model registry of this store."""
        return Registry(self.client, self.uri)

    # --- runs -------------------------------------------------------------------------------------

    def find_run(self, **tags: str) -> str | None:
        """The id of the newest run with these tags (`__` stands for a dot), also of a deleted one.

        Returns None if there is none.
        """
        from mlflow.entities import ViewType

        found = self.client.search_runs(
            [self.experiment_id], with_tags(tags), ViewType.ALL, max_results=1
        )
        return str(found[0].info.run_id) if found else None

    def create_run(self, name: str, tags: Mapping[str, str], started: float | None = None) -> str:
        """A new run, started at that time (seconds since 1970; now without one). Returns its id."""
        # No user name of this machine.
        neutral = {"mlflow.user": "regrpo", "mlflow.source.type": "LOCAL"}
        milliseconds = None if started is None else int(started * 1000)
        run = self.client.create_run(self.experiment_id, milliseconds, neutral | dict(tags), name)
        return str(run.info.run_id)

    def is_running(self, run_id: str) -> bool:
        """Whether MLflow has the run, and it is open."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.status == "RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def end_run(self, run_id: str, status: str, ended: float, kind: str, name: str) -> None:
        """End a run with MLflow's FINISHED, FAILED or KILLED, and note it as changed."""
        self.client.set_terminated(run_id, status, int(ended * 1000))
        self.changed.append({"kind": kind, "name": name, "status": status, "run_id": run_id})

    def level_parameters(self, kind: str, stage: str | None = None) -> None:
        """Give every ended run of a kind the same set of parameter names (see ABSENT)."""
        condition = f"tags.`regrpo.kind` = '{kind}' and attributes.status != 'RUNNING'"
        if stage:
            condition += f" and tags.`regrpo.stage` = '{stage}'"
        runs = self.client.search_runs([self.experiment_id], condition, max_results=1000)
        names: set[str] = set()
        for run in runs:
            names.update(run.data.params)
        for run in runs:
            missing = sorted(names.difference(run.data.params))
            self.log_params(run.info.run_id, dict.fromkeys(missing, ABSENT))

    # --- what a run holds -------------------------------------------------------------------------

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        made = [Param(name, value[:LONGEST]) for name, value in params.items()]
        for start in range(0, len(made), PARAMS_AT_ONCE):
            self.client.log_batch(run_id, params=made[start : start + PARAMS_AT_ONCE])

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        made = [RunTag(name, value[:LONGEST]) for name, value in tags.items()]
        self.client.log_batch(run_id, tags=made)

    def log_metrics(
        self, run_id: str, points: Iterable[Point], model_id: str | None = None, **dataset: str
    ) -> None:
        """Write points of metrics, of the run and of a logged model if one is named.

        `dataset`: MLflow's dataset_name and dataset_digest.
        """
        from mlflow.entities import Metric

        metrics = []
        for name, value, time, step in points:
            name = rows.mlflow_name(name)
            metrics.append(Metric(name, float(value), int(time * 1000), step, model_id, **dataset))
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_AT_ONCE])

    def log_final_metrics(
        self, run_id: str, values: Mapping[str, float], time: float, model_id: str | None = None
    ) -> None:
        """Write metrics of one value each."""
        points = [(name, value, time, 0) for name, value in values.items()]
        self.log_metrics(run_id, points, model_id)

    def log_json(self, run_id: str, content: Any, path: str) -> None:
        """Write an artifact as regrpo writes its JSON files."""
        text = json.dumps(content, indent=2, sort_keys=True)
        self.client.log_text(run_id, text + "\n", path)

    def log_table(self, run_id: str, table: Table, path: str) -> None:
        """Write a table artifact that the UI renders, once (MLflow's log_table would append)."""
        import pandas as pd

        folder = str(PurePosixPath(path).parent)
        present = [item.path for item in self.client.list_artifacts(run_id, folder)]
        if path not in present:
            self.client.log_table(run_id, pd.DataFrame(table.columns, dtype=object), path)
