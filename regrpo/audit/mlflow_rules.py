"""The audit's fourth witness.

MLflow's rows, runs, curves, artifacts and models, against the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from regrpo.audit.findings import Findings
from regrpo.core import files
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import pipeline_key
from regrpo.core.profiles import STAGES
from regrpo.evaluate import stats
from regrpo.records.journal import METRIC_REPORTS, journal_of
from regrpo.records.record import Record
from regrpo.tracking import address as address_module
from regrpo.tracking import rows
from regrpo.tracking.reader import open_reader
from regrpo.tracking.writer import ABSENT, MAX_VALUE


def open_store() -> Any:
    """MLflow's store, to be looked at (takes seconds: mlflow is imported)."""
    return open_reader(address_module.tracking_uri())


class Tracker:
    """MLflow's runs against the files, by the very mapping that `regrpo sync` writes with (regrpo.tracking.rows)."""

    def __init__(self, audit: Findings, store: Future[Any]) -> None:
        self.audit, self._store = audit, store

    def check(self) -> None:
        recorded = [record for record in self.audit.records.values() if record.mlflow_run_id]
        try:
            self.reader = self._store.result()
            parents = [
                self._check_stage(stage, record) for stage, record in self.audit.records.items()
            ]
            self._check_rows()
            self._mark_kept(parents)
        except (
            Exception
        ) as error:  # MLflow, its database layer and its HTTP client raise classes of their own
            if isinstance(error, CannotCheck) and not recorded:
                self._note("no run of this pipeline was told to MLflow")
                return
            text = (
                str(error) if isinstance(error, CannotCheck) else address_module.name_error(error)
            )
            text = text.removeprefix("MLflow: ")
            how = "" if "--no-mlflow" in text else "; set MLFLOW_TRACKING_URI, or use --no-mlflow"
            self.audit.say(self.audit.unchecked, "mlflow", None, "MLflow", text + how)

    def _note(self, text: str, stage: str | None = None) -> None:
        self.audit.say(self.audit.notes, "mlflow", stage, "MLflow", text)

    def _check_stage(self, stage: str, record: Record) -> str | None:
        """One stage's run; returns its parent's id."""
        audit = self.audit
        if record.mlflow_run_id:
            run = self.reader.run(record.mlflow_run_id)
        else:
            run = next(iter(self.reader.tagged(regrpo__run=record.run)), None)
        if run is None:
            if record.mlflow_run_id:
                text = f"the store has no run {record.mlflow_run_id}; set MLFLOW_TRACKING_URI, or use --no-mlflow"
                audit.say(audit.unchecked, "mlflow", stage, "MLflow", text)
            else:
                self._note(
                    "the run was not told to MLflow (`regrpo sync` does, if its journal is here)",
                    stage,
                )
            return None
        where = f"MLflow run {run['id']}"
        if run["deleted"]:
            self._note(f"run {run['id']} is marked as deleted", stage)
        if run["status"] != "FINISHED":
            audit.fault(
                "mlflow", stage, f"{where}: status", "is not FINISHED", "FINISHED", run["status"]
            )
        sections = {
            name: values for params in record.parameters.values() for name, values in params.items()
        }
        profile = next(iter(record.parameters), "")
        expected = rows.parameters(sections) | {"profile": profile}
        self._compare(stage, where, "params", expected, run["params"], whole=True)
        tags = rows.output_tags(audit.written[stage]) | {
            "regrpo.run": record.run,
            "regrpo.key": record.key,
            "regrpo.stage": stage,
            "regrpo.environment": record.environment.sha256,
        }
        if record.code.revision:
            tags |= {
                "mlflow.source.git.commit": record.code.revision,
                "regrpo.git.dirty": str(record.code.dirty).lower(),
            }
        tags |= (
            {"regrpo.git.diff_sha256": record.code.diff_sha256} if record.code.diff_sha256 else {}
        )
        self._compare(stage, where, "tags", tags, run["tags"])
        self._check_metrics(stage, where, run)
        for model in self.reader.models(run):
            output = next(
                (out for out in record.outputs if out.path == model.get("regrpo.path")), None
            )
            wanted = {
                "regrpo.sha256": output.sha256 if output else "",
                "regrpo.run": record.run,
                "regrpo.key": record.key,
            }
            self._compare(stage, f"{where}: logged model", "tags", wanted, model)
        self._check_artifacts(stage, where, run["id"], record)
        return str(run["tags"].get("mlflow.parentRunId") or run["id"])

    def _check_metrics(self, stage: str, where: str, run: Mapping[str, Any]) -> None:
        """Final values, and every step of what was shown live, against the reports and the journal if it is here."""
        audit, final, live = self.audit, _final_metrics(self.audit, stage), _live(self.audit, stage)
        history, evaluation = (
            _recorded_report(audit, stage, name) for name in ("history.csv", "metrics.json")
        )
        scores = rows.scores(evaluation) if evaluation and stage == "evaluate" else {}
        curves = scores | live | (rows.curves(history) if history else {})
        summary = {name: value for name, value in final.items() if name not in curves}
        self._compare_metrics(stage, where, summary, run["metrics"])
        for name, steps in curves.items():
            found = self._told_curve(run["id"], name)
            latest = run["metrics"].get(name)
            if name in scores.keys() - live.keys():
                found = {step: stats.rounded(values) for step, values in found.items()}
                latest = stats.rounded(latest)
            if found:
                self._compare_curve(
                    stage, f"{where}: metric {name}", steps, found, latest, final.get(name)
                )
            else:
                text, path = "none of its steps is there", f"{where}: metric {name}"
                audit.fault("mlflow", stage, path, text, f"{len(steps)} steps", None)

    def _told_curve(self, run_id: str, name: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for point in self.reader.client.get_metric_history(run_id, name):
            found.setdefault(point.step, []).append(point.value)
        return found

    def _compare_curve(
        self,
        stage: str | None,
        metric: str,
        steps: Mapping[int, list[float]],
        found: dict[int, list[float]],
        latest: float | None,
        final: float | None,
    ) -> None:
        """One curve, step by step, and what MLflow shows as its latest value.

        `final`: what an older regrpo logged besides at the last step.
        """
        last = max(steps)
        ends, doubled = list(steps[last]), found.get(last, [])
        if final is not None and len(doubled) == len(ends) + 1 and final in doubled:
            doubled.remove(final)
            ends.append(final)
            text = f"has its final value besides at step {last}, as an older regrpo logged it"
            self.audit.say(self.audit.notes, "mlflow", stage, metric, text)
        for step in sorted(steps.keys() | found.keys()):
            was, now = steps.get(step, []), found.get(step, [])
            if text := _wrong(was, now):
                values = (side[0] if len(side) == 1 else side or None for side in (was, now))
                self.audit.fault("mlflow", stage, f"{metric} at step {step}", text, *values)
        if latest is None or not any(_same(end, latest) for end in ends):
            self.audit.fault(
                "mlflow",
                stage,
                f"{metric}: latest",
                "is not that of the last step",
                ends[-1],
                latest,
            )

    def _check_artifacts(self, stage: str, where: str, run_id: str, record: Record) -> None:
        """run.json and the report files as MLflow keeps them."""
        audit, reports = self.audit, f"reports/{stage}/"
        expected = {
            out.path.removeprefix(reports): out.sha256
            for out in record.outputs
            if out.path.startswith(reports)
        }
        kept = self._kept_beside(run_id)
        names = set(kept or self.reader.artifacts(run_id))

        def read(name: str) -> bytes:
            return kept[name].read_bytes() if kept else self.reader.artifact(run_id, name)

        for name in sorted(names & expected.keys()):
            found = hashlib.sha256(read(name)).hexdigest()
            audit.row(
                reports + name,
                "mlflow",
                stage,
                expected[name],
                found,
                "ok" if found == expected[name] else "changed",
            )
            if found != expected[name]:
                audit.fault(
                    "mlflow", stage, f"{where}: artifact {name}", "changed", expected[name], found
                )
        if "run.json" in names:
            self._compare_record(stage, f"{where}: artifact run.json", _json(read("run.json")))
        if lost := sorted((expected.keys() | {"run.json"}) - names):
            text = f"the store has lost {len(lost)} of its {len(expected) + 1}: {', '.join(lost)} (--no-mlflow)"
            audit.say(audit.unchecked, "mlflow", stage, f"{where}: artifacts", text)
        if record.code.dirty and "code.diff" in names:
            diff = read("code.diff").decode(errors="replace").strip("\n")
            if files.sha256_text(diff) != record.code.diff_sha256:
                text = "is not the diff that run.json records"
                audit.fault(
                    "mlflow",
                    stage,
                    f"{where}: artifact code.diff",
                    text,
                    record.code.diff_sha256,
                    files.sha256_text(diff),
                )
            for fault in audit.faults:
                if (
                    fault["kind"] == "code"
                    and fault["stage"] == stage
                    and isinstance(fault["found"], dict)
                ):
                    fault["found"]["diff"] = fault["found"]["diff"] or diff

    def _compare_record(self, stage: str, path: str, kept: Any) -> None:
        """MLflow's copy of run.json, leaf by leaf."""
        written = self.audit.written[stage]
        if not isinstance(kept, dict) or kept.get("run") != written["run"]:
            found = kept.get("run") if isinstance(kept, dict) else "no record"
            self.audit.fault(
                "mlflow", stage, path, "is not this run's record", written["run"], found
            )
            return
        for name, was, now in files.unequal_leaves(written, kept):
            self.audit.fault(
                "mlflow",
                stage,
                f"{path}: {name}",
                f"is not what reports/{stage}/run.json says",
                was,
                now,
            )

    def _kept_beside(self, run_id: str) -> dict[str, Path]:
        """{name: file} of a run's artifacts in the folder beside mlflow.db.

        Empty where they are kept elsewhere.

        A local store records whole paths: in a copied repository they lead to the original's files,
        not to its own.
        """
        store, uri = (
            address_module.tracking_uri(),
            str(self.reader.client.get_run(run_id).info.artifact_uri),
        )
        address = urlsplit(uri)
        if not store.startswith("sqlite:///") or address.scheme not in ("", "file"):
            return {}
        _, _, inner = unquote(address.path).rpartition("/mlartifacts/")
        beside = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts"
        folder = beside / inner
        if not inner or not folder.resolve().is_relative_to(beside.resolve()):
            return {}
        return {
            file.relative_to(folder).as_posix(): file
            for file in folder.rglob("*")
            if file.is_file()
        }

    def _check_rows(self) -> None:
        """The whole pipeline's rows, if MLflow has any."""
        audit = self.audit
        key = pipeline_key({"stages": audit.lock})
        if key is None or set(audit.records) != set(STAGES):
            return
        found = self.reader.tagged(regrpo__pipeline_key=key)
        if not found:
            self._note("has no row of the whole pipeline; `regrpo sync` makes one")
            return
        try:
            row = rows.from_snapshot(audit.snapshot)
        except ValueError:  # a damaged report is a fault of its own
            return
        row.tags.pop("regrpo.pipeline_key")
        for run in found:
            where = f"MLflow row {run['id']}"
            self._compare(None, where, "params", row.params, run["params"], whole=True)
            tags = {
                name: value
                for name, value in row.tags.items()
                if not name.startswith("regrpo.stage.")
            }
            self._compare(None, where, "tags", _told(tags, run["tags"]), run["tags"])
            self._compare_metrics(None, where, _told(row.metrics, run["metrics"]), run["metrics"])
            for name, steps in rows.shown_curves(row.curves).items():
                if name in run["metrics"]:
                    found_steps, latest = self._told_curve(run["id"], name), run["metrics"][name]
                    self._compare_curve(
                        None, f"{where}: metric {name}", steps, found_steps, latest, None
                    )

    def _compare(
        self,
        stage: str | None,
        where: str,
        what: str,
        expected: Mapping[str, str],
        found: Mapping[str, str],
        whole: bool = False,
    ) -> None:
        """Values as MLflow cuts them.

        With `whole`, what is there and not expected is a fault too.
        """
        for name, value in expected.items():
            value, now = value[: MAX_VALUE[what]], found.get(name[:250])
            if value != now:
                self.audit.fault(
                    "mlflow",
                    stage,
                    f"{where}: {what} {name}",
                    "is not what the files say",
                    value,
                    now,
                )
        for name in sorted(set(found) - set(expected)) if whole else ():
            if found[name] != ABSENT:
                text = "is not in the files"
                self.audit.fault(
                    "mlflow", stage, f"{where}: {what} {name}", text, None, found[name]
                )

    def _compare_metrics(
        self,
        stage: str | None,
        where: str,
        expected: Mapping[str, float],
        found: Mapping[str, float],
    ) -> None:
        for name, value in expected.items():
            now = found.get(name)
            if now is None or not _same(value, now):
                self.audit.fault(
                    "mlflow",
                    stage,
                    f"{where}: metric {name}",
                    "is not what the files say",
                    value,
                    now,
                )

    def _mark_kept(self, parents: Iterable[str | None]) -> None:
        """Stages of more than one execution: say which run made each of the older ones."""
        known = dict(zip(self.audit.records, parents, strict=True))
        last = max(
            self.audit.records, key=lambda stage: self.audit.records[stage].started, default=None
        )
        for stage, parent in known.items():
            record = self.audit.records[stage]
            if last is not None and parent and known[last] and parent != known[last]:
                text = f"kept or restored: made by run {record.mlflow_run_id or record.run} on {record.started[:16]} UTC"
                self.audit.say(
                    self.audit.notes,
                    "restored",
                    stage,
                    stage,
                    f"{text}, code {str(record.code.revision)[:12]}",
                )


def _told(expected: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of a row, without what it may lack."""
    return {
        name: value
        for name, value in expected.items()
        if name in found or not name.startswith(rows.SHOWN_AGAIN)
    }


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _final_metrics(audit: Findings, stage: str) -> dict[str, float]:
    reports = {name: audit.snapshot.read(f"reports/{stage}/{name}") for name in METRIC_REPORTS}
    try:
        return rows.final_metrics(
            {name: data for name, data in reports.items() if data is not None}
        )
    except ValueError:  # a damaged report is a fault of its own
        return {}


def _recorded_report(audit: Findings, stage: str, name: str) -> bytes | None:
    """A report's bytes; None where they are not the recorded ones (told as such)."""
    path = f"reports/{stage}/{name}"
    recorded = next(
        (item.sha256 for item in audit.records[stage].outputs if item.path == path), None
    )
    data = audit.snapshot.read(path)
    return data if data is not None and hashlib.sha256(data).hexdigest() == recorded else None


def _live(audit: Findings, stage: str) -> rows.Curves:
    """What the journal says that the stage showed live, where it is here.

    Custom code may log what it likes.
    """
    found: rows.Curves = {}
    if journal := journal_of(stage, audit.records[stage].run):
        for line in journal.metrics_from(0)[0]:
            for name, value in line["values"].items():
                found.setdefault(rows.mlflow_name(name), {}).setdefault(line["step"], []).append(
                    float(value)
                )
    return found


def _same(one: float, other: float) -> bool:
    """Whether a value is another as MLflow's database gives it back.

    NaN is NaN, infinity the largest number.
    """
    largest = sys.float_info.max
    return (math.isnan(one) and math.isnan(other)) or max(-largest, min(one, largest)) == other


def _wrong(was: list[float], now: list[float]) -> str:
    """What is wrong with a step's values in MLflow; nothing where they are the expected ones."""
    if not now or not was:
        return "is in no file" if now else "is missing"
    if not all(any(_same(a, b) for b in now) for a in was) or not all(
        any(_same(a, b) for a in was) for b in now
    ):
        return "is not what the files say"
    return f"is there {len(now)} times" if len(now) > len(was) else ""
