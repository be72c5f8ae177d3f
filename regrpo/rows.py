"""Observer: what a stage run and a pipeline row hold in MLflow, as plain data out of journals, dvc.lock and reports.

A pipeline row (`Row`) has every parameter of every section and every final metric under its stage's name, so that
MLflow's table compares whole pipelines.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from regrpo.files import canonical_json
from regrpo.journals import METRIC_REPORTS, Told
from regrpo.lineage import Snapshot
from regrpo.params import STAGES

SHOWN = (
    "reports/model_card/README.md",
    "reports/grpo/curves.png",
    "reports/evaluate/comparison.png",
    "reports/validate/report.html",
)
"""The files that a pipeline row carries itself; the rest lie with its stage runs."""

Curves = dict[str, dict[int, list[float]]]
"""{metric: {step: its values there}}."""


@dataclass
class Row:
    """One pipeline as MLflow's table shows it."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)


def flatten(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted name, value as JSON spells it; text bare) of every leaf; lists and empty mappings are leaves."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}")
    else:
        yield mlflow_name(prefix), values if isinstance(values, str) else canonical_json(values)


def numbers(report: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in a report; truth values count as 1 and 0, confidence intervals as two.

    Of evaluate's report the containers are left out of the names: `heldout.grpo`, `heldout.sft_grpo.difference`.
    """
    for key, value in report.items() if isinstance(report, Mapping) else ():
        name = f"{prefix}{key}"
        if isinstance(value, bool | int | float):
            if key != "version":
                yield mlflow_name(prefix.rstrip(".") if key == "value" else name), float(value)
        elif isinstance(value, Mapping):
            yield from numbers(value, prefix if key in ("tasks", "models", "pairs") else f"{name}.")
        elif isinstance(value, list) and key.endswith("ci95") and len(value) == 2 and None not in value:
            yield from (
                (mlflow_name(f"{name}_{end}"), float(limit)) for end, limit in zip(("low", "high"), value, strict=True)
            )


def mlflow_name(text: str) -> str:
    """A metric's or parameter's name that MLflow accepts: its characters, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:250]


def final_metrics(reports: Mapping[str, bytes]) -> dict[str, float]:
    """The final metrics in a stage's reports ({file name: bytes})."""
    return {
        name: value
        for file, prefix in METRIC_REPORTS.items()
        if file in reports
        for name, value in numbers(json.loads(reports[file]), prefix)
    }


def curves(history: bytes) -> Curves:
    """What a history.csv says that its stage showed while it ran: its columns, every digit."""
    found: Curves = {}
    for row in csv.DictReader(io.StringIO(history.decode())):
        for name, value in row.items():
            if name != "step" and value:
                found.setdefault(mlflow_name(name), {}).setdefault(int(row["step"]), []).append(float(value))
    return found


def scores(evaluation: bytes) -> Curves:
    """What evaluate's metrics.json says that it showed: each model's value in each task, rounded to 6 digits."""
    tasks = json.loads(evaluation).get("tasks", {})
    models = (
        (f"{task}/{name}", one["value"]) for task, found in tasks.items() for name, one in found["models"].items()
    )
    return {mlflow_name(name): {0: [value]} for name, value in models}


def parameters(sections: Mapping[str, Any]) -> dict[str, str]:
    """{section.name: value} of whole sections ({stage: section})."""
    return dict(pair for stage, section in sections.items() for pair in flatten(section, stage))


def output_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """`regrpo.output.<path>`: SHA-256, of a stage's record."""
    return {f"regrpo.output.{out['path']}": out["sha256"] for out in record["outputs"]}


def from_snapshot(snapshot: Snapshot) -> Row:
    """The row of a whole pipeline (`snapshot.pipeline_key()` is not None), from its own files alone."""
    row = Row(tags={"regrpo.complete": "true", "regrpo.pipeline_key": str(snapshot.pipeline_key())})
    row.params = parameters(snapshot.params()) | {"profile": snapshot.profile()}
    for stage in STAGES:
        record = snapshot.record(stage) or {"outputs": [], "run": ""}
        reports = {name: snapshot.read(f"reports/{stage}/{name}") for name in METRIC_REPORTS}
        _add_stage(row, stage, {name: data for name, data in reports.items() if data is not None}, record)
        row.tags[f"regrpo.stage.{stage}"] = record.get("mlflow_run_id") or record["run"]
    row.artifacts = {path: data for path in SHOWN if (data := snapshot.output(path)) is not None}
    return row


def from_journals(journals: Iterable[Told]) -> Row:
    """The row of an execution that made no whole pipeline: its profile, and what the stages that ran left."""
    row = Row(tags={"regrpo.complete": "false"})
    for journal in journals:
        facts = journal.facts
        row.params |= parameters(facts["sections"]) | {"profile": facts["profile"]}
        _add_stage(row, journal.stage, journal.reports(), (journal.closed or {}).get("record") or {"outputs": []})
        row.tags[f"regrpo.stage.{journal.stage}"] = journal.answer.get("run_id") or facts["run"]
        kept = {
            path: journal.folder / "files" / path.rpartition("/")[2] for path in SHOWN if f"/{journal.stage}/" in path
        }
        row.artifacts |= {path: file.read_bytes() for path, file in kept.items() if file.is_file()}
    return row


def _add_stage(row: Row, stage: str, reports: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    row.metrics |= {f"{stage}.{name}": value for name, value in final_metrics(reports).items()}
    row.tags |= output_tags(record)
    if "health.json" in reports:
        row.tags["regrpo.health"] = str(json.loads(reports["health.json"]).get("verdict"))
