"""Observer.

What a stage run and a pipeline row hold in MLflow, as plain data out of journals, dvc.lock and
reports.

A pipeline row (`Row`) has every parameter of every section and every final metric under its stage's
name, so that MLflow's table compares whole pipelines; and the headline once more, under names that
are the same for every profile.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrpo.core.errors import Refused
from regrpo.core.files import canonical_json
from regrpo.core.pipeline import Snapshot
from regrpo.core.profiles import DEFAULT_PROFILE, STAGES, parse_yaml
from regrpo.core.text import code
from regrpo.evaluate.results import Evaluation, parse_metrics
from regrpo.records.journal import METRIC_REPORTS, JournalReader
from regrpo.tracking import notes, views
from regrpo.tracking import tables as tables_module

SHOWN = (
    "reports/model_card/README.md",
    "reports/grpo/curves.png",
    "reports/evaluate/comparison.png",
    "reports/validate/report.html",
)
"""The files that a pipeline row carries itself; the rest lie with its stage runs."""
OUTPUTS = "outputs.json"
"""A row's artifact with the SHA-256 of every output."""
PRODUCT = "regrpo.output.models/grpo"
"""The one hash that a row has as a tag: of what the pipeline is for."""
SHOWN_AGAIN = ("headline/", "regrpo.headline")
"""How the names of metrics and tags begin that say once more what others hold.

A row may lack them.
"""
OF_SWEEP = re.compile(r"(.+)-\d+")
"""The names that `dvc exp run --queue -n NAME -S 'key=1,2'` gives its experiments."""

Curves = dict[str, dict[int, list[float]]]
"""{metric: {step: its values there}}."""


@dataclass
class Row:
    """One pipeline as MLflow's table shows it."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, tables_module.Table] = field(default_factory=dict)
    datasets: list[Mapping[str, Any]] = field(default_factory=list)
    """What the stages read, as their records have it."""
    curves: Curves = field(default_factory=dict)
    """What grpo logged by step (see `curves`)."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every output, by path."""
    evaluation: Evaluation | None = None
    health: Mapping[str, Any] | None = None


def flatten(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted name, value as JSON spells it; text bare) of every leaf.

    Lists and empty mappings are leaves.
    """
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}")
    else:
        yield mlflow_name(prefix), values if isinstance(values, str) else canonical_json(values)


def numbers(report: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in a report.

    Truth values count as 1 and 0, confidence intervals as two.

    Of evaluate's report the containers are left out of the names: `heldout.grpo`,
    `heldout.sft_grpo.difference`.
    """
    for key, value in report.items() if isinstance(report, Mapping) else ():
        name = f"{prefix}{key}"
        if isinstance(value, bool | int | float):
            if key != "version":
                yield mlflow_name(prefix.rstrip(".") if key == "value" else name), float(value)
        elif isinstance(value, Mapping):
            yield from numbers(value, prefix if key in ("tasks", "models", "pairs") else f"{name}.")
        elif (
            isinstance(value, list)
            and key.endswith("ci95")
            and len(value) == 2
            and None not in value
        ):
            yield from (
                (mlflow_name(f"{name}_{end}"), float(limit))
                for end, limit in zip(("low", "high"), value, strict=True)
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
                found.setdefault(mlflow_name(name), {}).setdefault(int(row["step"]), []).append(
                    float(value)
                )
    return found


def scores(evaluation: bytes) -> Curves:
    """What evaluate's metrics.json says that it showed.

    Each model's value in each task, rounded to 6 digits.
    """
    found: Curves = {}
    for name, task in parse_metrics(evaluation).tasks.items():
        for model, one in task.models.items():
            found[mlflow_name(f"{name}/{model}")] = {0: [one.value]}
    return found


def parameters(sections: Mapping[str, Any]) -> dict[str, str]:
    """{section.name: value} of whole sections ({stage: section})."""
    return dict(pair for stage, section in sections.items() for pair in flatten(section, stage))


def output_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """`regrpo.output.<path>`: SHA-256, of a stage's record."""
    return {f"regrpo.output.{out['path']}": out["sha256"] for out in record["outputs"]}


def name(parameters: Mapping[str, Any], identity: str) -> str:
    """A pipeline row's name where no experiment gave it one.

    What the model is called, and a short key.
    """
    return f"{parameters.get('model_card.model_name', 'pipeline')} {identity[:12]}"


def experiment_tags(
    experiment: str | None,
    baseline: str | None,
    profile: str,
    sections: Mapping[str, Any],
    root: Path,
) -> dict[str, str]:
    """An experiment's name and baseline, its sweep, and what its parameters change against the baseline's commit."""
    if not experiment:
        return {}
    tags = {"regrpo.experiment": experiment}
    if found := OF_SWEEP.fullmatch(experiment):
        tags["regrpo.sweep"] = found[1]
    if baseline:
        tags["regrpo.baseline"] = baseline
        tags |= (
            {"regrpo.changed": said}
            if (said := changed(Snapshot(root, baseline), profile, sections))
            else {}
        )
    return tags


def changed(baseline: Snapshot, profile: str, sections: Mapping[str, Any]) -> str | None:
    """`grpo.learning_rate=0.0001 grpo.seed=3`: where a profile differs from the baseline's.

    None where it is not there.

    A profile that the baseline does not name itself is compared with the baseline's file of that
    name.
    """
    named, before = _yaml(baseline.read(DEFAULT_PROFILE)), _yaml(baseline.read(profile))
    if named is None or before is None:
        return None
    then = parameters({stage: before.get(stage) for stage in sections})
    now = parameters(sections)
    said = [] if named.get("profile") == profile else [f"profile={profile}"]
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return " ".join(said + [f"{name}={now.get(name, 'null')}" for name in names])


def _yaml(data: bytes | None) -> Mapping[str, Any] | None:
    if data is None:
        return None
    try:
        content = parse_yaml(data, "a profile")
    except Refused:
        return None
    return content if isinstance(content, Mapping) else None


def from_snapshot(snapshot: Snapshot) -> Row:
    """The row of a whole pipeline (`snapshot.pipeline_key()` is not None), from its own files alone."""
    row = Row(tags={"regrpo.complete": "true", "regrpo.pipeline_key": str(snapshot.pipeline_key())})
    row.params = parameters(snapshot.params()) | {"profile": snapshot.profile()}
    for stage in STAGES:
        record = snapshot.record(stage) or {"inputs": [], "outputs": [], "run": ""}
        reports = {name: snapshot.read(f"reports/{stage}/{name}") for name in METRIC_REPORTS}
        _add_stage(
            row, stage, {name: data for name, data in reports.items() if data is not None}, record
        )
        row.tags[f"regrpo.stage.{stage}"] = record.get("mlflow_run_id") or record["run"]
    for stage in tables_module.STAGES:
        _add_table(row, stage, snapshot.output(f"reports/{stage}/samples.parquet"))
    row.curves = _curves(snapshot.read("reports/grpo/history.csv"))
    row.artifacts = {path: data for path in SHOWN if (data := snapshot.output(path)) is not None}
    return row


def from_journals(journals: Iterable[JournalReader]) -> Row:
    """The row of an execution that made no whole pipeline.

    Its profile, and what the stages that ran left.
    """
    row = Row(tags={"regrpo.complete": "false"})
    for journal in journals:
        facts = journal.facts
        row.params |= parameters(facts["sections"]) | {"profile": facts["profile"]}
        record = (journal.closed or {}).get("record") or {"inputs": [], "outputs": []}
        _add_stage(row, journal.stage, journal.reports(), record)
        row.tags[f"regrpo.stage.{journal.stage}"] = (
            journal.tracker_notes.get("run_id") or facts["run"]
        )
        _add_table(row, journal.stage, journal.kept("samples.parquet"))
        if journal.stage == "grpo":
            row.curves = _curves(journal.kept("history.csv"))
        kept = {
            path: journal.kept(path.rpartition("/")[2])
            for path in SHOWN
            if f"/{journal.stage}/" in path
        }
        row.artifacts |= {path: data for path, data in kept.items() if data is not None}
    return row


def _add_stage(
    row: Row, stage: str, reports: Mapping[str, bytes], record: Mapping[str, Any]
) -> None:
    row.metrics |= {f"{stage}.{name}": value for name, value in final_metrics(reports).items()}
    row.hashes |= {out["path"]: out["sha256"] for out in record["outputs"]}
    # The other outputs' hashes stand with the stages' runs and in outputs.json.
    row.tags |= {name: value for name, value in output_tags(record).items() if name == PRODUCT}
    row.datasets += record["inputs"]
    if "health.json" in reports:
        row.health = json.loads(reports["health.json"])
        row.tags["regrpo.health"] = str((row.health or {}).get("verdict"))
    if stage == "evaluate" and "metrics.json" in reports:
        row.evaluation = parse_metrics(reports["metrics.json"])
        # First, as MLflow's own comparison starts with the first metric, and its page with the
        # first tags.
        row.metrics = notes.headline_metrics(row.evaluation) | row.metrics
        if words := notes.headline_words(row.evaluation):
            row.tags = {"regrpo.headline": words} | row.tags


def _add_table(row: Row, stage: str, parquet: bytes | None) -> None:
    headline = row.evaluation.headline if row.evaluation else None
    table = tables_module.table(stage, parquet, headline) if parquet else None
    if table:
        row.tables[f"{stage}/{tables_module.NAME}"] = table


def _curves(history: bytes | None) -> Curves:
    """What `curves` finds in a history.csv.

    Nothing where it is not there, or damaged (the audit names that).
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return curves(history) if history else {}
    return {}


def shown_curves(found: Curves) -> Curves:
    """The curves that a row carries, under its names for them.

    Of a step that was logged twice, the last value.
    """
    kept = {name: found[name] for name in views.CURVES if name in found}
    return {
        views.curve(name): {step: values[-1:] for step, values in steps.items()}
        for name, steps in kept.items()
    }


def describe(
    row: Row, changed: str | None, stages: Mapping[str, str], experiment: str, run: str
) -> str:
    """A row's description in Markdown: what came out, first; the UI shows four lines of it.

    `stages` (stage → MLflow run), `experiment` and `run` are MLflow's ids, for links.
    """
    words = row.tags.get("regrpo.headline")
    lines = [f"**Result:** {words}"] if words else []
    lines += [f"**Changed:** {code(changed)}"] if changed else []
    there = (
        {path.removeprefix("reports/") for path in row.artifacts} | row.tables.keys() | {OUTPUTS}
    )
    shown = {path: text for path, text in notes.ARTIFACTS.items() if path in there}
    links = [notes.link(text, experiment, run, path) for path, text in shown.items()]
    lines += [f"**Look at:** {' · '.join(links)}"]
    lines += [notes.health_line(row.health)] if row.health else []
    links = [notes.link(stage, experiment, made) for stage, made in stages.items()]
    lines += [f"**Stages:** {' · '.join(links)}"] if links else []
    lines += [
        f"**{notes.ARTIFACTS[path].capitalize()}:** {table.shows}"
        for path, table in row.tables.items()
    ]
    results = notes.evaluation_lines(row.evaluation) if row.evaluation else []
    return "  \n".join(lines) + "\n" + "\n".join(results) + "\n"
