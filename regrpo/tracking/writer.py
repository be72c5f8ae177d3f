"""Observer: what becomes of journals and pipeline rows in MLflow.

The only module that imports mlflow (seconds).

Everything here may be done twice: runs are found again by their tags (`regrpo.run`,
`regrpo.execution`, `regrpo.pipeline_key`) before any is made.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from regrpo.core import files
from regrpo.core.dvc import dvc_root
from regrpo.core.pipeline import Snapshot
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import MODELS, Task, parse_metrics
from regrpo.records.journal import JournalReader
from regrpo.tracking import notes, rows, tables, views
from regrpo.tracking.reader import import_mlflow, with_tags
from regrpo.tracking.registry import Registry

BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""The most of each that MLflow takes in one call."""
MAX_VALUE = {"params": 6000, "tags": 8000}
"""Characters; longer values are cut, and lie whole in run.json and code.diff."""
ABSENT = "(not set)"
"""A parameter that other runs of the same kind have.

MLflow's comparison invents a value where there is none.
"""
CONTEXTS = {"prepared": "gate", "dev": "validation", "eval": "evaluation"}
"""What MLflow calls the use of a split, or of all of them; every other is for training."""


class Store:
    """The MLflow experiment that everything is told to.

    Raises MLflow's own exceptions where it cannot be reached.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        import_mlflow()
        import mlflow

        mlflow.set_tracking_uri(uri)  # create_external_model knows no other way
        self.uri = uri
        self.client = mlflow.MlflowClient(uri)
        found = self.client.get_experiment_by_name(experiment)
        location = artifacts.as_uri() if uri.startswith("sqlite:") else None
        kind = {
            "mlflow.experimentKind": "custom_model_development"
        }  # the UI then shows training, not agents' traces
        self.experiment_id = (
            found.experiment_id
            if found
            else self.client.create_experiment(experiment, location, tags=kind)
        )
        present = found or self.client.get_experiment(self.experiment_id)
        for key, value in views.missing_tags(present.tags, present.creation_time).items():
            self.client.set_experiment_tag(self.experiment_id, key, value)
        self._monitors: dict[str, Any] = {}
        self.changed: list[dict[str, str]] = []

    # --- runs -------------------------------------------------------------------------------------

    def find(self, **tags: str) -> Any | None:
        """The newest run with these tags (`__` stands for a dot), deleted ones included.

        None where there is none.
        """
        from mlflow.entities import ViewType

        found = self.client.search_runs(
            [self.experiment_id], with_tags(tags), ViewType.ALL, max_results=1
        )
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
            "params": [
                Param(name, value[: MAX_VALUE["params"]]) for name, value in (params or {}).items()
            ],
            "tags": [
                RunTag(name[:250], value[: MAX_VALUE["tags"]])
                for name, value in (tags or {}).items()
            ],
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
            self._log(
                run.info.run_id, params=dict.fromkeys(sorted(names - set(run.data.params)), ABSENT)
            )

    # --- a stage run ------------------------------------------------------------------------------

    def tell(self, journal: JournalReader) -> None:
        """Bring MLflow up to date with one journal.

        Run made, described, metrics sent, and ended if the stage has.
        """
        if not journal.tracker_notes.get("run_id"):
            self._open(journal)
        if journal.tracker_notes.get("ended"):
            return
        if not journal.tracker_notes.get("described"):
            self._describe(journal)
        self._monitor(journal)
        closed = journal.closed
        self._send_metrics(journal)
        if closed is not None:
            self._stop_monitor(journal.tracker_notes["run_id"])
            self._close(journal, closed)

    def _open(self, journal: JournalReader) -> None:
        """Make the run (and its execution's, before its first) and answer.

        The stage waits for this.
        """
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
            else self._create(
                # Two runs of a stage side by side are told apart by their names.
                f"{journal.stage} {facts['experiment'] or facts['key'][:8]}",
                facts["started"],
                tags | _code_tags(facts["code"]),
            )
        )
        journal.note(run_id=run_id, parent_run_id=parent)

    def _create_execution(self, journal: JournalReader) -> str:
        facts = journal.facts
        tags = {
            "regrpo.kind": "pipeline",
            "regrpo.execution": str(journal.execution),
            "mlflow.source.name": "dvc.yaml",
        }
        experiment = (facts["experiment"], facts["baseline"], facts["profile"], facts["sections"])
        tags |= rows.experiment_tags(*experiment, dvc_root())
        name = facts["experiment"] or rows.name(
            rows.parameters(facts["sections"]), str(journal.execution)
        )
        return self._create(name, facts["started"], tags | _code_tags(facts["code"]))

    def _describe(self, journal: JournalReader) -> None:
        facts, run_id = journal.facts, journal.tracker_notes["run_id"]
        sections = {
            stage: section
            for values in facts["entry"]["params"].values()
            for stage, section in values.items()
        }
        self._log(run_id, params=rows.parameters(sections) | {"profile": facts["profile"]})
        if facts["diff"]:
            self.client.log_text(run_id, facts["diff"] + "\n", "code.diff")
        journal.note(described=True)

    def _send_metrics(self, journal: JournalReader) -> None:
        from mlflow.entities import Metric

        answer = journal.tracker_notes
        lines, offset = journal.metrics_from(answer.get("offset", 0))
        metrics = [
            Metric(rows.mlflow_name(name), float(value), int(line["time"] * 1000), line["step"])
            for line in lines
            for name, value in line["values"].items()
        ]
        if lines:
            self._log(answer["run_id"], metrics)
            journal.note(offset=offset)

    def _close(self, journal: JournalReader, closed: Mapping[str, Any]) -> None:
        run_id, record = journal.tracker_notes["run_id"], closed["record"]
        model_id = None
        if record:
            self._log(
                run_id,
                tags=rows.output_tags(record)
                | {"regrpo.environment": record["environment"]["sha256"]},
            )
            self._log_datasets(run_id, record["inputs"], Path(journal.facts["workspace"]))
            self.client.log_text(
                run_id, json.dumps(record, indent=2, sort_keys=True) + "\n", "run.json"
            )
            model_id = self._log_model(journal, record)
        if (journal.folder / "files").is_dir():
            self.client.log_artifacts(run_id, str(journal.folder / "files"))
        self._show_results(journal, record, closed["ended"])
        # A name that was logged live (sft's loss) has its curve: a summary under it would be a
        # second value at one of
        # its steps. The pipeline's row has it.
        live = {
            rows.mlflow_name(name) for line in journal.metrics_from(0)[0] for name in line["values"]
        }
        final = rows.final_metrics(journal.reports())
        summary = {name: value for name, value in final.items() if name not in live}
        self._log_final_metrics(run_id, summary, closed["ended"], model_id)
        self._end(run_id, closed["status"], closed["ended"], "stage", journal.stage)
        self._level_params("stage", journal.stage)
        journal.note(ended=True)
        if journal.execution is None:
            journal.mark_sent()

    def _log_final_metrics(
        self, run_id: str, values: Mapping[str, float], ended: float, model_id: str | None = None
    ) -> None:
        from mlflow.entities import Metric

        time = int(ended * 1000)
        self._log(
            run_id, [Metric(name, value, time, 0, model_id) for name, value in values.items()]
        )

    def _show_results(
        self, journal: JournalReader, record: Mapping[str, Any] | None, ended: float
    ) -> None:
        """What a person looks for on a stage's page.

        Its description, its samples as a table, its models' scores.
        """
        run_id, reports = journal.tracker_notes["run_id"], journal.reports()
        evaluation = None
        if journal.stage == "evaluate" and "metrics.json" in reports:
            evaluation = parse_metrics(reports["metrics.json"])
        lines = notes.evaluation_lines(evaluation) if evaluation else []
        if "health.json" in reports:
            lines += [notes.health_line(json.loads(reports["health.json"])), ""]
        parquet = journal.kept("samples.parquet")
        headline = evaluation.headline if evaluation else None
        if parquet and (table := tables.table(journal.stage, parquet, headline)):
            self._log_table(run_id, tables.NAME, table)
            link = notes.link(tables.NAME, self.experiment_id, run_id, tables.NAME)
            lines += [f"**Samples:** {table.shows} in {link}; all of them in samples.parquet"]
        if lines:
            self._log(run_id, tags={views.NOTE: "\n".join(lines) + "\n"})
        if record and evaluation and evaluation.headline_task:
            self._log_scores(run_id, record, ended, str(headline), evaluation.headline_task)

    def _log_table(self, run_id: str, path: str, table: tables.Table) -> None:
        """A table artifact that the UI renders.

        Told again, it is left as it is (log_table would append to it).
        """
        if path not in {
            one.path for one in self.client.list_artifacts(run_id, str(PurePosixPath(path).parent))
        }:
            import pandas as pd

            self.client.log_table(run_id, pd.DataFrame(table.columns, dtype=object), path)

    def _log_scores(
        self,
        run_id: str,
        record: Mapping[str, Any],
        ended: float,
        name: str,
        task: Task,
    ) -> None:
        """Evaluate's headline as a metric of each evaluated model, on the dataset that it was asked.

        One name for all of them, that models compare: step 0 is base, 1 sft, 2 grpo, so that a run's latest is grpo's.
        """
        from mlflow.entities import LoggedModelInput, Metric

        inputs = {item["path"]: item["sha256"] for item in record["inputs"]}
        asked = inputs.get("data/prepared/eval.parquet")
        dataset = {"dataset_name": "eval.parquet", "dataset_digest": asked[:32]} if asked else {}
        metrics = []
        for step, model in enumerate(MODELS):
            known = self._find_model(f"models/{model}", inputs.get(f"models/{model}"))
            if known and (found := task.models.get(model)):
                metrics.append(
                    Metric(
                        rows.mlflow_name(name),
                        found.value,
                        int(ended * 1000),
                        step,
                        known,
                        **dataset,
                    )
                )
        self._log(run_id, metrics)
        present = {one.model_id for one in self.client.get_run(run_id).inputs.model_inputs}
        if new := [metric.model_id for metric in metrics if metric.model_id not in present]:
            self.client.log_inputs(run_id, models=[LoggedModelInput(one) for one in new])

    def _find_model(self, path: str, sha256: str | None) -> str | None:
        """The newest logged model of these bytes; None where there is none."""
        conditions = f"tags.`regrpo.sha256` = '{sha256}' AND tags.`regrpo.path` = '{path}'"
        newest = [{"field_name": "creation_timestamp", "ascending": False}]
        search = self.client.search_logged_models
        found = (
            search([self.experiment_id], conditions, max_results=1, order_by=newest)
            if sha256
            else []
        )
        return str(found[0].model_id) if found else None

    def _log_datasets(self, run_id: str, inputs: Iterable[Mapping[str, Any]], folder: Path) -> None:
        """Prepared data as MLflow inputs. `digest` takes 36 characters: half of the SHA-256.

        All of it is a tag.

        Columns and number of rows are read from `folder` where the recorded bytes still lie there.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = []
        for item in inputs:
            path = PurePosixPath(item["path"])
            if path.is_relative_to("data/prepared") and path.suffix in ("", ".parquet"):
                source = json.dumps({"uri": item["path"]})
                described = _schema_and_profile(folder / path, item["sha256"])
                dataset = Dataset(path.name, item["sha256"][:32], "local", source, *described)
                context = CONTEXTS.get(path.stem, "training")
                tags = [
                    InputTag("mlflow.data.context", context),
                    InputTag("sha256", item["sha256"]),
                ]
                found.append(DatasetInput(dataset, tags))
        if found:
            self.client.log_inputs(run_id, found)

    def _log_model(self, journal: JournalReader, record: Mapping[str, Any]) -> str | None:
        """A logged model for models/<name>, that points to DVC's bytes and holds none itself."""
        import mlflow

        output = next((out for out in record["outputs"] if out["path"].startswith("models/")), None)
        if output is None or journal.tracker_notes.get("model_id"):
            return journal.tracker_notes.get("model_id")
        tags = {
            "mlflow.user": "regrpo",
            "mlflow.source.name": record["command"],
            "mlflow.source.type": "LOCAL",
            # MLflow would fill these in from the repository around the tracker: a remote's address
            # may tell too much.
            "mlflow.source.git.branch": "",
            "mlflow.source.git.repoURL": "",
            "regrpo.path": output["path"],
            "regrpo.sha256": output["sha256"],
            "regrpo.key": record["key"],
            "regrpo.run": record["run"],
            views.NOTE: f"`{output['path']}`, SHA-256 `{output['sha256']}`. DVC keeps the bytes; none are here.",
        }
        params = {"path": output["path"], "sha256": output["sha256"], "size": str(output["size"])}
        name = f"{journal.facts['sections']['model_card'].get('model_name', 'model')}-{PurePosixPath(output['path']).name}"
        params |= rows.parameters({journal.stage: journal.facts["sections"][journal.stage]})
        model = mlflow.create_external_model(
            re.sub("[/:.%\"']", "-", name),
            source_run_id=journal.tracker_notes["run_id"],
            tags=tags | _code_tags(record["code"]),
            params={name: value[: MAX_VALUE["params"]] for name, value in params.items()},
            experiment_id=self.experiment_id,
        )
        from mlflow.entities import LoggedModelOutput

        self.client.log_outputs(
            journal.tracker_notes["run_id"], [LoggedModelOutput(model.model_id, step=0)]
        )
        journal.note(model_id=model.model_id)
        return str(model.model_id)

    # --- system metrics ---------------------------------------------------------------------------

    def _monitor(self, journal: JournalReader) -> None:
        """Sample the machine into the run while the stage runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        run_id = journal.tracker_notes["run_id"]
        if journal.running and run_id not in self._monitors:
            self._monitors[run_id] = SystemMetricsMonitor(
                run_id, 5, resume_logging=True, tracking_uri=self.uri
            )
            self._monitors[run_id].start()

    def _stop_monitor(self, run_id: str) -> None:
        if monitor := self._monitors.pop(run_id, None):
            monitor.finish()

    # --- pipeline rows ----------------------------------------------------------------------------

    def finish_execution(
        self, journals: Sequence[JournalReader], status: str, snapshot: Snapshot | None
    ) -> None:
        """End an execution's run, filled from `snapshot` where that is a whole pipeline, else from the journals."""
        whole = snapshot is not None and snapshot.pipeline_key() is not None
        row = (
            rows.from_snapshot(snapshot)
            if snapshot is not None and whole
            else rows.from_journals(journals)
        )
        name = journals[0].facts["experiment"] or rows.name(
            row.params, row.tags.get("regrpo.pipeline_key", str(journals[0].execution))
        )
        ended = max((journal.closed or {"ended": time.time()})["ended"] for journal in journals)
        answer = journals[0].tracker_notes
        self.client.update_run(answer["parent_run_id"], name=name)
        self._fill(answer["parent_run_id"], row, ended)
        self._end(answer["parent_run_id"], status, ended, "pipeline", name)
        self._level_params("pipeline")
        if snapshot is not None:
            self._tag_models(journals, snapshot)

    def ensure_row(self, snapshot: Snapshot, name: str | None, baseline: str | None = None) -> None:
        """A row for a whole pipeline that no process of ours was seen to make.

        Restored from cache, or made elsewhere.

        An experiment (`name`) has a row of its own; for the workspace (None) any row of the same
        pipeline will do.
        """
        key = snapshot.pipeline_key()
        if key is None or self.find(
            regrpo__pipeline_key=key, **({"regrpo__experiment": name} if name else {})
        ):
            return
        last = snapshot.record("model_card") or {}
        tags = {
            "regrpo.kind": "pipeline",
            "regrpo.restored": "true",
            "mlflow.source.name": "dvc.yaml",
        }
        tags |= rows.experiment_tags(
            name, baseline, snapshot.profile(), snapshot.params(), snapshot.root
        )
        row = rows.from_snapshot(snapshot)
        name = name or rows.name(row.params, key)
        run_id = self._create(name, None, tags | _code_tags(last.get("code") or {}))
        self._fill(run_id, row, time.time())
        self._end(run_id, "FINISHED", None, "pipeline", name)
        self._level_params("pipeline")

    def _fill(self, run_id: str, row: rows.Row, ended: float) -> None:
        run = self.client.get_run(run_id)
        changed = run.data.tags.get("regrpo.changed")
        note = {
            views.NOTE: rows.describe(
                row, changed, self._stage_runs(row), self.experiment_id, run_id
            )
        }
        self._log(run_id, params=row.params, tags=row.tags | note)
        self._log_final_metrics(run_id, row.metrics, ended)
        self._log_curves(run_id, row.curves, ended)
        splits = [item for item in row.datasets if item["path"].endswith(".parquet")]
        self._log_datasets(run_id, splits, dvc_root())
        self._link_models(run, row.hashes)
        self.client.log_text(
            run_id, json.dumps(row.hashes, indent=2, sort_keys=True) + "\n", rows.OUTPUTS
        )
        for path, table in sorted(
            row.tables.items()
        ):  # the first is what the UI's comparison opens with: evaluate's
            self._log_table(run_id, path, table)
        with tempfile.TemporaryDirectory() as folder:
            for path, data in row.artifacts.items():
                # reports/grpo/curves.png shows as grpo/curves.png.
                target = Path(folder) / PurePosixPath(path).relative_to("reports")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            self.client.log_artifacts(run_id, folder)

    def _stage_runs(self, row: rows.Row) -> dict[str, str]:
        """Stage → run of a row's stages, as far as this experiment holds them.

        Others were told to another store.
        """
        found = {}
        for stage in STAGES:
            if made := row.tags.get(
                f"regrpo.stage.{stage}"
            ):  # MLflow's id, or ours where the stage did not learn it
                by_id = self.client.search_runs(
                    [self.experiment_id], f"attributes.run_id = '{made}'"
                )
                if run := next(iter(by_id), None) or self.find(regrpo__run=made):
                    found[stage] = run.info.run_id
        return found

    def _log_curves(self, run_id: str, found: rows.Curves, ended: float) -> None:
        """GRPO's curves on the row, so that pipelines compare by them, restored ones too."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(ended * 1000), step)
            for name, steps in rows.shown_curves(found).items()
            for step, [value] in steps.items()
        ]
        self._log(run_id, metrics)

    def _link_models(self, run: Any, hashes: Mapping[str, str]) -> None:
        """Show a row's trained models beside it, whichever execution made them."""
        from mlflow.entities import LoggedModelOutput

        found = (
            self._find_model(path, digest)
            for path, digest in hashes.items()
            if path.startswith("models/")
        )
        known = {one.model_id for one in run.outputs.model_outputs} if run.outputs else set()
        if new := [one for one in found if one and one not in known]:
            self.client.log_outputs(
                run.info.run_id, [LoggedModelOutput(one, step=0) for one in new]
            )

    def _tag_models(self, journals: Iterable[JournalReader], snapshot: Snapshot) -> None:
        """Give this execution's logged models the MD5 under which DVC keeps their bytes."""
        stages = snapshot.lock()["stages"]
        for journal in journals:
            if (model_id := journal.tracker_notes.get("model_id")) and snapshot.holds(
                journal.stage, journal.facts["run"]
            ):
                outs = {out["path"]: out["md5"] for out in stages[journal.stage]["outs"]}
                models = {path: md5 for path, md5 in outs.items() if path.startswith("models/")}
                self.client.set_logged_model_tags(
                    model_id, {"regrpo.dvc_md5": next(iter(models.values()))}
                )

    # --- reproductions ----------------------------------------------------------------------------

    def add_reproduction(self, verdict: Mapping[str, Any]) -> str:
        """A run for the verdict of `regrpo reproduce`, linked by tags to the original's runs and keys; its id."""
        original = verdict["mlflow_run_id"]
        if original is None and verdict["pipeline_key"]:
            row = self.find(regrpo__pipeline_key=verdict["pipeline_key"], regrpo__kind="pipeline")
            original = row.info.run_id if row else None
        tags = {"regrpo.kind": "reproduction", "mlflow.source.name": "regrpo reproduce"}
        tags |= {
            f"regrpo.{name}": str(verdict[name]) for name in ("verdict", "expected", "revision")
        }
        tags["mlflow.source.git.commit"] = verdict["revision"]
        tags |= {"regrpo.reproduces": original} if original else {}
        tags |= (
            {"regrpo.reproduces_key": verdict["pipeline_key"]} if verdict["pipeline_key"] else {}
        )
        for stage in verdict["stages"]:
            tags[f"regrpo.reproduces.{stage['stage']}"] = (
                stage["original"]["mlflow_run_id"] or stage["original"]["run"]
            )
            tags[f"regrpo.reproduces_key.{stage['stage']}"] = stage["original"]["key"]
        run_id = self._create(f"reproduction of {verdict['asked']}", verdict["started"], tags)
        self.client.log_text(
            run_id, json.dumps(verdict, indent=2, sort_keys=True) + "\n", "verdict.json"
        )
        self._log_final_metrics(run_id, verdict["numbers"], verdict["ended"])
        self._end(run_id, "FINISHED", verdict["ended"], "reproduction", verdict["verdict"])
        return run_id

    def registry(self) -> Registry:
        """The model registry of this store."""
        return Registry(self.client, self.uri)


def _schema_and_profile(path: Path, sha256: str) -> tuple[str | None, str | None]:
    """A Parquet file's columns and its number of rows, as MLflow spells them.

    (None, None) for other bytes.
    """
    import pyarrow
    from pyarrow import parquet

    if path.suffix != ".parquet" or not path.is_file() or files.sha256(path) != sha256:
        return None, None
    try:
        opened = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError):
        return None, None
    with opened:
        names = {
            "int64": "long",
            "double": "double",
            "bool": "boolean",
            "string": "string",
            "large_string": "string",
        }
        columns = [
            {"name": one.name, "type": names.get(str(one.type), "object")}
            for one in opened.schema_arrow
        ]
        return json.dumps({"mlflow_colspec": columns}), json.dumps(
            {"num_rows": opened.metadata.num_rows}
        )


def _code_tags(code: Mapping[str, Any]) -> dict[str, str]:
    """The commit as MLflow shows it, and whether (and how.

    SHA-256 of the diff) the code differed from it.
    """
    if not code.get("revision"):
        return {}
    tags = {
        "mlflow.source.git.commit": code["revision"],
        "regrpo.git.dirty": str(code["dirty"]).lower(),
    }
    return tags | ({"regrpo.git.diff_sha256": code["diff_sha256"]} if code["diff_sha256"] else {})
