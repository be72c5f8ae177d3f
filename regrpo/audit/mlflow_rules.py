"""The audit's fourth witness: MLflow's runs, rows, artifacts and models against the files.

The expected values come from the functions that `regrpo sync` writes with (regrpo.tracking.rows).
What MLflow shows besides (descriptions, tables, the middle of curves) is made from files that the
audit hashes, and is not derived again.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from regrpo.audit.evidence import Evidence
from regrpo.audit.findings import Findings
from regrpo.core import files
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import pipeline_key
from regrpo.core.profiles import STAGES
from regrpo.records.record import Record
from regrpo.tracking import rows
from regrpo.tracking.address import name_error, tracking_uri
from regrpo.tracking.reader import Reader, open_reader
from regrpo.tracking.store import ABSENT, LONGEST

Run = Mapping[str, Any]
"""A run as Reader.run returns it."""


def open_store() -> Reader:
    """The user's MLflow store, to be looked at (takes seconds: mlflow is imported)."""
    return open_reader(tracking_uri())


class Tracker:
    """Compares what MLflow says of a pipeline's stages and of the whole with its files."""

    def __init__(self, evidence: Evidence, findings: Findings, store: Future[Reader]) -> None:
        self.evidence = evidence
        self.findings = findings
        self._store = store

    def check(self) -> None:
        try:
            self.reader = self._store.result()
            parents = {}
            for stage, record in self.evidence.records.items():
                parents[stage] = self._check_stage(stage, record)
            self._check_rows()
            self._note_restored(parents)
        except CannotCheck as error:
            if any(record.mlflow_run_id for record in self.evidence.records.values()):
                self._cannot_check(str(error))
            else:
                self._note("no run of this pipeline was sent to MLflow")
        except Exception as error:  # MLflow, its database layer and its HTTP client raise their own
            self._cannot_check(name_error(error))

    def _check_stage(self, stage: str, record: Record) -> str | None:
        """Compare one stage's run. Returns the id of its pipeline's run, or its own without one."""
        if record.mlflow_run_id:
            run = self.reader.run(record.mlflow_run_id)
            if run is None:
                self._cannot_check(f"the store has no run {record.mlflow_run_id}", stage)
                return None
        else:
            run = next(iter(self.reader.tagged(regrpo__run=record.run)), None)
            if run is None:
                text = "the run was not sent to MLflow (`regrpo sync` does, if its journal is here)"
                self._note(text, stage)
                return None
        where = f"MLflow run {run['id']}"
        if run["deleted"]:
            self._note(f"run {run['id']} is marked as deleted", stage)
        if run["status"] != "FINISHED":
            self._fault(stage, f"{where}: status", "is not FINISHED", "FINISHED", run["status"])
        self._compare_params(stage, where, rows.stage_params(record.parameters), run)
        tags = rows.record_tags(self.evidence.written[stage])
        self._compare(stage, f"{where}: tags", tags, run["tags"])
        self._compare(stage, f"{where}: metric", self._final_metrics(stage), run["metrics"])
        for model in self.reader.models(run):
            output = tags.get(f"regrpo.output.{model.get('regrpo.path')}", "")
            wanted = {"regrpo.sha256": output, "regrpo.run": record.run, "regrpo.key": record.key}
            self._compare(stage, f"{where}: logged model: tags", wanted, model)
        self._check_artifacts(stage, where, run["id"], record)
        return str(run["tags"].get("mlflow.parentRunId") or run["id"])

    def _final_metrics(self, stage: str) -> dict[str, float]:
        """What MLflow shows as a stage's latest values: its final metrics, its curves' last steps.

        A name that has a curve (sft's loss) has no final value besides.
        """
        snapshot = self.evidence.snapshot
        try:
            metrics = rows.final_metrics(rows.metric_reports(snapshot, stage))
        except ValueError:  # a damaged report is a fault of its own
            return {}
        curves = rows.read_curves(snapshot.read(f"reports/{stage}/history.csv"))
        for name, steps in curves.items():
            metrics[name] = steps[max(steps)]
        return metrics

    def _check_artifacts(self, stage: str, where: str, run_id: str, record: Record) -> None:
        """Compare the reports that MLflow keeps by hash, and its copy of run.json by content."""
        reports = f"reports/{stage}/"
        names = set(self.reader.artifacts(run_id))
        lost = []
        for out in record.outputs:
            if not out.path.startswith(reports):
                continue
            name = out.path.removeprefix(reports)
            if name not in names:
                lost.append(name)
                continue
            found = hashlib.sha256(self.reader.artifact(run_id, name)).hexdigest()
            if self.findings.compare(out.path, "mlflow", stage, out.sha256, found) != "ok":
                self._fault(stage, f"{where}: artifact {name}", "changed", out.sha256, found)
        if "run.json" in names:
            kept = self.reader.artifact(run_id, "run.json")
            self._compare_record(stage, f"{where}: artifact run.json", kept)
        else:
            lost.append("run.json")
        if lost:
            text = f"the store has lost {', '.join(lost)}"
            self._cannot_check(text, stage, f"{where}: artifacts")

    def _compare_record(self, stage: str, path: str, data: bytes) -> None:
        try:
            kept = json.loads(data)
        except ValueError:
            kept = None
        differences = files.unequal_leaves(self.evidence.written[stage], kept)
        for name, recorded, found in differences:
            text = f"is not what reports/{stage}/run.json says"
            self._fault(stage, f"{path}: {name}", text, recorded, found)

    def _check_rows(self) -> None:
        """Compare the rows of the whole pipeline, if MLflow has any."""
        key = pipeline_key({"stages": self.evidence.lock})
        if key is None or set(self.evidence.records) != set(STAGES):
            return
        runs = self.reader.tagged(regrpo__pipeline_key=key)
        if not runs:
            self._note("has no row of the whole pipeline; `regrpo sync` makes one")
            return
        try:
            row = rows.from_snapshot(self.evidence.snapshot)
        except ValueError:  # a damaged report is a fault of its own
            return
        row.tags.pop("regrpo.pipeline_key")  # the rows were found by it
        for run in runs:
            where = f"MLflow row {run['id']}"
            self._compare_params(None, where, row.params, run)
            self._compare(None, f"{where}: tags", row.tags, run["tags"])
            self._compare(None, f"{where}: metric", row.metrics, run["metrics"])

    def _note_restored(self, parents: Mapping[str, str | None]) -> None:
        """Of a pipeline made by several executions, say which run made the older stages."""
        newest_first = sorted(
            self.evidence.records.values(), key=lambda one: one.started, reverse=True
        )
        for record in newest_first:
            last, parent = parents[newest_first[0].stage], parents[record.stage]
            if last and parent and parent != last:
                self.findings.note_restored(record.stage, record)

    # --- comparing --------------------------------------------------------------------------------

    def _compare_params(
        self, stage: str | None, where: str, expected: Mapping[str, str], run: Run
    ) -> None:
        """Compare parameters, of which MLflow must have no more than the files."""
        found = {name: value for name, value in run["params"].items() if value != ABSENT}
        self._compare(stage, f"{where}: params", expected, found)
        for name in sorted(found.keys() - expected.keys()):
            text = "is not in the files"
            self._fault(stage, f"{where}: params {name}", text, None, found[name])

    def _compare(
        self, stage: str | None, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]
    ) -> None:
        for name, value in expected.items():
            now = found.get(name)
            if now is None or not _same(value, now):
                self._fault(stage, f"{what} {name}", "is not what the files say", value, now)

    # --- findings ---------------------------------------------------------------------------------

    def _fault(self, stage: str | None, path: str, text: str, recorded: Any, found: Any) -> None:
        self.findings.fault("mlflow", stage, path, text, recorded, found)

    def _cannot_check(self, text: str, stage: str | None = None, path: str = "MLflow") -> None:
        text = text.removeprefix("MLflow: ")
        if "--no-mlflow" not in text:
            text += "; set MLFLOW_TRACKING_URI, or use --no-mlflow"
        self.findings.cannot_check("mlflow", stage, path, text)

    def _note(self, text: str, stage: str | None = None) -> None:
        self.findings.note("mlflow", stage, "MLflow", text)


def _same(value: Any, found: Any) -> bool:
    """Whether MLflow gives a value back: text is cut, infinity becomes the largest number."""
    if isinstance(value, str):
        return bool(value[:LONGEST] == found)
    if math.isnan(value):
        return math.isnan(found)
    largest = sys.float_info.max
    return bool(max(-largest, min(value, largest)) == found)
