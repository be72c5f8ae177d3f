"""Observer: what becomes of journals and pipeline rows in MLflow. The only module that imports mlflow (seconds).

Everything here may be done twice: runs are found again by their tags (`regrpo.run`, `regrpo.execution`,
`regrpo.pipeline_key`) before any is made.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from regrpo import rows
from regrpo.errors import CannotCheck
from regrpo.journals import Told
from regrpo.lineage import Snapshot

BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""The most of each that MLflow takes in one call."""
MAX_VALUE = {"params": 6000, "tags": 8000}
"""Characters; longer values are cut, and lie whole in run.json and code.diff."""
ABSENT = "(not set)"
"""A parameter that other runs of the same kind have: MLflow's comparison invents a value where there is none."""
CONTEXTS = {"dev": "validation", "eval": "evaluation"}
"""What MLflow calls the use of a split; every other is for training."""


def _limit_patience() -> None:
    """An unreachable server is given up within seconds (MLflow's defaults: 245 s; a database: minutes)."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_RUN_ID", None)
    import mlflow.store.db.utils

    mlflow.store.db.utils.MAX_RETRY_COUNT = 2


class Store:
    """The MLflow experiment that everything is told to. Raises MLflow's own exceptions where it cannot be reached."""

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        _limit_patience()
        import mlflow

        mlflow.set_tracking_uri(uri)  # create_external_model knows no other way
        self.uri = uri
        self.client = mlflow.MlflowClient(uri)
        found = self.client.get_experiment_by_name(experiment)
        location = artifacts.as_uri() if uri.startswith("sqlite:") else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI then shows training, not agents' traces
        self.experiment_id = (
            found.experiment_id if found else self.client.create_experiment(experiment, location, tags=kind)
        )
        self._monitors: dict[str, Any] = {}
        self.changed: list[dict[str, str]] = []

    # --- runs ---------------------------------------------------------------------------------------------------

    def find(self, **tags: str) -> Any | None:
        """The newest run with these tags (`__` stands for a dot), deleted ones included; None where there is none."""
        from mlflow.entities import ViewType

        conditions = " and ".join(f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items())
        found = self.client.search_runs([self.experiment_id], conditions, ViewType.ALL, max_results=1)
        return found[0] if found else None

    def _create(self, name: str, started: float | None, tags: Mapping[str, str]) -> str:
        neutral = {"mlflow.user": "regrpo", "mlflow.source.type": "LOCAL"}
        milliseconds = None if started is None else int(started * 1000)
        run = self.client.create_run(self.experiment_id, milliseconds, neutral | dict(tags), name)
        return str(run.info.run_id)

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Any] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        entities: dict[str, Sequence[Any]] = {
            "metrics": metrics,
            "params": [Param(name, value[: MAX_VALUE["params"]]) for name, value in (params or {}).items()],
            "tags": [RunTag(name[:250], value[: MAX_VALUE["tags"]]) for name, value in (tags or {}).items()],
        }
        for kind, many in entities.items():
            for start in range(0, len(many), BATCH[kind]):
                self.client.log_batch(run_id, **{kind: many[start : start + BATCH[kind]]})

    def _end(self, run_id: str, status: str, ended: float | None, kind: str, name: str) -> None:
        self.client.set_terminated(run_id, status, None if ended is None else int(ended * 1000))
        self.changed.append({"kind": kind, "name": name, "status": status, "run_id": run_id})

    def _level_params(self, kind: str, stage: str | None = None) -> None:
        """Give every ended run of a kind the same set of parameter names."""
        condition = f"tags.`regrpo.kind` = '{kind}' and attributes.status != 'RUNNING'"
        condition += f" and tags.`regrpo.stage` = '{stage}'" if stage else ""
        runs = self.client.search_runs([self.experiment_id], condition, max_results=1000)
        names = {name for run in runs for name in run.data.params}
        for run in runs:
            self._log(run.info.run_id, params=dict.fromkeys(sorted(names - set(run.data.params)), ABSENT))

    # --- a stage run --------------------------------------------------------------------------------------------

    def tell(self, journal: Told) -> None:
        """Bring MLflow up to date with one journal: run made, described, metrics sent, and ended if the stage has."""
        if not journal.answer.get("run_id"):
            self._open(journal)
        if journal.answer.get("ended"):
            return
        if not journal.answer.get("described"):
            self._describe(journal)
        self._monitor(journal)
        closed = journal.closed
        self._send_metrics(journal)
        if closed is not None:
            self._stop_monitor(journal.answer["run_id"])
            self._close(journal, closed)

    def _open(self, journal: Told) -> None:
        """Make the run (and its execution's, before its first) and answer: the stage waits for this."""
        facts = journal.facts
        tags = {
            "regrpo.kind": "stage",
            "regrpo.stage": journal.stage,
            "regrpo.run": facts["run"],
            "regrpo.key": facts["key"],
            "mlflow.source.name": facts["entry"]["cmd"],
        }
        parent = None
        if journal.execution:
            known = self.find(regrpo__execution=journal.execution)
            parent = known.info.run_id if known else self._create_execution(journal)
            tags["mlflow.parentRunId"] = parent
        known = self.find(regrpo__run=facts["run"])
        run_id = (
            known.info.run_id
            if known
            else self._create(journal.stage, facts["started"], tags | _code_tags(facts["code"]))
        )
        journal.note(run_id=run_id, parent_run_id=parent)

    def _create_execution(self, journal: Told) -> str:
        facts = journal.facts
        tags = {"regrpo.kind": "pipeline", "regrpo.execution": str(journal.execution), "mlflow.source.name": "dvc.yaml"}
        tags |= {f"regrpo.{key}": facts[key] for key in ("experiment", "baseline") if facts[key]}
        return self._create(facts["experiment"] or "repro", facts["started"], tags | _code_tags(facts["code"]))

    def _describe(self, journal: Told) -> None:
        facts, run_id = journal.facts, journal.answer["run_id"]
        sections = {stage: section for values in facts["entry"]["params"].values() for stage, section in values.items()}
        self._log(run_id, params=rows.parameters(sections) | {"profile": facts["profile"]})
        if facts["diff"]:
            self.client.log_text(run_id, facts["diff"] + "\n", "code.diff")
        journal.note(described=True)

    def _send_metrics(self, journal: Told) -> None:
        from mlflow.entities import Metric

        answer = journal.answer
        lines, offset = journal.metrics_from(answer.get("offset", 0))
        metrics = [
            Metric(rows.mlflow_name(name), float(value), int(line["time"] * 1000), line["step"])
            for line in lines
            for name, value in line["values"].items()
        ]
        if lines:
            self._log(answer["run_id"], metrics)
            last = max(answer.get("last_step", 0), *(line["step"] for line in lines))
            journal.note(offset=offset, last_step=last)

    def _close(self, journal: Told, closed: Mapping[str, Any]) -> None:
        run_id, record = journal.answer["run_id"], closed["record"]
        model_id = None
        if record:
            self._log(run_id, tags=rows.output_tags(record) | {"regrpo.environment": record["environment"]["sha256"]})
            self._log_datasets(run_id, record["inputs"])
            self.client.log_text(run_id, json.dumps(record, indent=2, sort_keys=True) + "\n", "run.json")
            model_id = self._log_model(journal, record)
        if (journal.folder / "files").is_dir():
            self.client.log_artifacts(run_id, str(journal.folder / "files"))
        # At the last step, so that MLflow takes them for the latest where the stage logged one of that name.
        step = journal.answer.get("last_step", 0)
        self._log_final_metrics(run_id, rows.final_metrics(journal.reports()), closed["ended"], step, model_id)
        self._end(run_id, closed["status"], closed["ended"], "stage", journal.stage)
        self._level_params("stage", journal.stage)
        journal.note(ended=True)
        if journal.execution is None:
            journal.mark_sent()

    def _log_final_metrics(
        self, run_id: str, values: Mapping[str, float], ended: float, step: int = 0, model_id: str | None = None
    ) -> None:
        from mlflow.entities import Metric

        # A millisecond later than anything logged live: of two values at one step and time MLflow takes the larger.
        time = int(ended * 1000) + 1
        self._log(run_id, [Metric(name, value, time, step, model_id) for name, value in values.items()])

    def _log_datasets(self, run_id: str, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Prepared data as MLflow inputs. `digest` takes 36 characters: half of the SHA-256; all of it is a tag."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = []
        for item in inputs:
            path = PurePosixPath(item["path"])
            if path.is_relative_to("data/prepared") and path.suffix in ("", ".parquet"):
                source = json.dumps({"uri": item["path"]})
                dataset = Dataset(path.name, item["sha256"][:32], "local", source)
                context = CONTEXTS.get(path.stem, "training")
                tags = [InputTag("mlflow.data.context", context), InputTag("sha256", item["sha256"])]
                found.append(DatasetInput(dataset, tags))
        if found:
            self.client.log_inputs(run_id, found)

    def _log_model(self, journal: Told, record: Mapping[str, Any]) -> str | None:
        """A logged model for models/<name>, that points to DVC's bytes and holds none itself."""
        import mlflow

        output = next((out for out in record["outputs"] if out["path"].startswith("models/")), None)
        if output is None or journal.answer.get("model_id"):
            return journal.answer.get("model_id")
        tags = {
            "mlflow.user": "regrpo",
            "mlflow.source.name": record["command"],
            "mlflow.source.type": "LOCAL",
            # MLflow would fill these in from the repository around the tracker: a remote's address may tell too much.
            "mlflow.source.git.branch": "",
            "mlflow.source.git.repoURL": "",
            "regrpo.path": output["path"],
            "regrpo.sha256": output["sha256"],
            "regrpo.key": record["key"],
            "regrpo.run": record["run"],
        }
        params = {"path": output["path"], "sha256": output["sha256"], "size": str(output["size"])}
        model = mlflow.create_external_model(
            PurePosixPath(output["path"]).name,
            source_run_id=journal.answer["run_id"],
            tags=tags | _code_tags(record["code"]),
            params=params,
            experiment_id=self.experiment_id,
        )
        from mlflow.entities import LoggedModelOutput

        self.client.log_outputs(journal.answer["run_id"], [LoggedModelOutput(model.model_id, step=0)])
        journal.note(model_id=model.model_id)
        return str(model.model_id)

    # --- system metrics -----------------------------------------------------------------------------------------

    def _monitor(self, journal: Told) -> None:
        """Sample the machine into the run while the stage runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        run_id = journal.answer["run_id"]
        if journal.running and run_id not in self._monitors:
            self._monitors[run_id] = SystemMetricsMonitor(run_id, 5, resume_logging=True, tracking_uri=self.uri)
            self._monitors[run_id].start()

    def _stop_monitor(self, run_id: str) -> None:
        if monitor := self._monitors.pop(run_id, None):
            monitor.finish()

    # --- pipeline rows ------------------------------------------------------------------------------------------

    def finish_execution(self, journals: Sequence[Told], status: str, snapshot: Snapshot | None) -> None:
        """End an execution's run, filled from `snapshot` where that is a whole pipeline, else from the journals."""
        whole = snapshot is not None and snapshot.pipeline_key() is not None
        row = rows.from_snapshot(snapshot) if snapshot is not None and whole else rows.from_journals(journals)
        ended = max((journal.closed or {"ended": time.time()})["ended"] for journal in journals)
        answer, facts = journals[0].answer, journals[0].facts
        self._fill(answer["parent_run_id"], row, ended)
        self._end(answer["parent_run_id"], status, ended, "pipeline", facts["experiment"] or "repro")
        self._level_params("pipeline")
        if snapshot is not None:
            self._tag_models(journals, snapshot)

    def ensure_row(self, snapshot: Snapshot, name: str | None, baseline: str | None = None) -> None:
        """A row for a whole pipeline that no process of ours was seen to make: restored from cache, or made elsewhere.

        An experiment (`name`) has a row of its own; for the workspace (None) any row of the same pipeline will do.
        """
        key = snapshot.pipeline_key()
        if key is None or self.find(regrpo__pipeline_key=key, **({"regrpo__experiment": name} if name else {})):
            return
        last = snapshot.record("model_card") or {}
        tags = {"regrpo.kind": "pipeline", "regrpo.restored": "true", "mlflow.source.name": "dvc.yaml"}
        tags |= {"regrpo.experiment": name} if name else {}
        tags |= {"regrpo.baseline": baseline} if baseline else {}
        run_id = self._create(name or "repro", None, tags | _code_tags(last.get("code") or {}))
        self._fill(run_id, rows.from_snapshot(snapshot), time.time())
        self._end(run_id, "FINISHED", None, "pipeline", name or "repro")
        self._level_params("pipeline")

    def _fill(self, run_id: str, row: rows.Row, ended: float) -> None:
        self._log(run_id, params=row.params, tags=row.tags)
        self._log_final_metrics(run_id, row.metrics, ended)
        with tempfile.TemporaryDirectory() as folder:
            for path, data in row.artifacts.items():
                # reports/grpo/curves.png shows as grpo/curves.png.
                target = Path(folder) / PurePosixPath(path).relative_to("reports")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            self.client.log_artifacts(run_id, folder)

    def _tag_models(self, journals: Iterable[Told], snapshot: Snapshot) -> None:
        """Give this execution's logged models the MD5 under which DVC keeps their bytes."""
        stages = snapshot.lock()["stages"]
        for journal in journals:
            if (model_id := journal.answer.get("model_id")) and snapshot.holds(journal.stage, journal.facts["run"]):
                outs = {out["path"]: out["md5"] for out in stages[journal.stage]["outs"]}
                models = {path: md5 for path, md5 in outs.items() if path.startswith("models/")}
                self.client.set_logged_model_tags(model_id, {"regrpo.dvc_md5": next(iter(models.values()))})

    # --- reproductions ------------------------------------------------------------------------------------------

    def add_reproduction(self, verdict: Mapping[str, Any]) -> str:
        """A run for the verdict of `regrpo reproduce`, linked by tags to the original's runs and keys; its id."""
        original = verdict["mlflow_run_id"]
        if original is None and verdict["pipeline_key"]:
            row = self.find(regrpo__pipeline_key=verdict["pipeline_key"], regrpo__kind="pipeline")
            original = row.info.run_id if row else None
        tags = {"regrpo.kind": "reproduction", "mlflow.source.name": "regrpo reproduce"}
        tags |= {f"regrpo.{name}": str(verdict[name]) for name in ("verdict", "expected", "revision")}
        tags["mlflow.source.git.commit"] = verdict["revision"]
        tags |= {"regrpo.reproduces": original} if original else {}
        tags |= {"regrpo.reproduces_key": verdict["pipeline_key"]} if verdict["pipeline_key"] else {}
        for stage in verdict["stages"]:
            tags[f"regrpo.reproduces.{stage['stage']}"] = stage["original"]["mlflow_run_id"] or stage["original"]["run"]
            tags[f"regrpo.reproduces_key.{stage['stage']}"] = stage["original"]["key"]
        run_id = self._create(f"reproduction of {verdict['asked']}", verdict["started"], tags)
        self.client.log_text(run_id, json.dumps(verdict, indent=2, sort_keys=True) + "\n", "verdict.json")
        self._log_final_metrics(run_id, verdict["numbers"], verdict["ended"])
        self._end(run_id, "FINISHED", verdict["ended"], "reproduction", verdict["verdict"])
        return run_id


def _code_tags(code: Mapping[str, Any]) -> dict[str, str]:
    """The commit as MLflow shows it, and whether (and how: SHA-256 of the diff) the code differed from it."""
    if not code.get("revision"):
        return {}
    tags = {"mlflow.source.git.commit": code["revision"], "regrpo.git.dirty": str(code["dirty"]).lower()}
    return tags | ({"regrpo.git.diff_sha256": code["diff_sha256"]} if code["diff_sha256"] else {})


class Reader:
    """MLflow as an auditor sees it: plain data, and nothing is ever made or changed."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, run_id: str) -> dict[str, Any] | None:
        """{id, experiment, status, deleted, params, metrics (the last of each), tags}; None where it is unknown."""
        from mlflow.exceptions import MlflowException

        try:
            return self._plain(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _plain(self, run: Any) -> dict[str, Any]:
        return {
            "id": run.info.run_id,
            "experiment": run.info.experiment_id,
            "status": run.info.status,
            "deleted": run.info.lifecycle_stage == "deleted",
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "tags": dict(run.data.tags),
        }

    def tagged(self, **tags: str) -> list[dict[str, Any]]:
        """The runs of every experiment with these tags (`__` stands for a dot)."""
        everywhere = [experiment.experiment_id for experiment in self.client.search_experiments()]
        conditions = " and ".join(f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items())
        return [self._plain(run) for run in self.client.search_runs(everywhere, conditions)]

    def pipeline_key(self, run_id: str) -> str | None:
        """The key of the pipeline that a run is the row of, or that the execution it belongs to made."""
        run = self.run(run_id)
        if run and "mlflow.parentRunId" in run["tags"]:
            run = self.run(run["tags"]["mlflow.parentRunId"])
        return run["tags"].get("regrpo.pipeline_key") if run else None

    def models(self, run: Mapping[str, Any]) -> list[dict[str, str]]:
        """The tags of each model that a stage logged."""
        found = self.client.search_logged_models([run["experiment"]], f"source_run_id = '{run['id']}'")
        return [dict(model.tags) for model in found]

    def artifacts(self, run_id: str, path: str | None = None) -> Iterator[str]:
        """The paths of a run's artifact files."""
        for item in self.client.list_artifacts(run_id, path):
            if item.is_dir:
                yield from self.artifacts(run_id, item.path)
            else:
                yield item.path

    def artifact(self, run_id: str, path: str) -> bytes:
        """An artifact's bytes."""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()


def open_reader(uri: str) -> Reader:
    """The store at `uri`, for reading. Raises CannotCheck where there is none; a database is never created."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise CannotCheck(
            "MLflow", expected=f"a store at {PurePosixPath(uri).name}", found="no such file",
            remedy="Set MLFLOW_TRACKING_URI, or use --no-mlflow.",
        )  # fmt: skip
    _limit_patience()
    import mlflow

    return Reader(mlflow.MlflowClient(uri))
