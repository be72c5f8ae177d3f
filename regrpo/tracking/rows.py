"""What a stage's run and a pipeline's row hold in MLflow, as plain data out of journals and files.

A pipeline's row has every parameter of every section and every final metric under its stage's name,
so that MLflow's table compares whole pipelines; and the headline once more, under names that are
the same for every profile.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from regrpo.core import text
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.files import Json, canonical_json, parse_history
from regrpo.core.pipeline import Snapshot
from regrpo.core.profiles import DEFAULT_PROFILE, parse_yaml
from regrpo.evaluate.results import MODELS, Evaluation, parse_metrics
from regrpo.records.journal import METRIC_REPORTS, JournalReader
from regrpo.tracking import tables
from regrpo.tracking.tables import Table
from regrpo.train.curves import PANELS

SHOWN = (
    "reports/model_card/README.md",
    "reports/grpo/curves.png",
    "reports/evaluate/comparison.png",
    "reports/validate/report.html",
)
"""The files that a pipeline's row carries itself; the rest lie with its stages' runs."""
OUTPUTS = "outputs.json"
"""A row's artifact with the SHA-256 of every output."""
PRODUCT = "models/grpo"
"""What the pipeline is for: the one output whose hash a row has as a tag."""
OF_SWEEP = re.compile(r"(.+)-\d+")
"""The names that `dvc exp run --queue -n NAME -S 'key=1,2'` gives its experiments."""
CURVES = (
    *chain.from_iterable(panel.lines for panel in PANELS),
    "kl",
    "frac_reward_zero_std",
    "loss",
)
"""Columns of grpo's history.csv that a row carries."""

Curves = dict[str, dict[int, float]]
"""{metric: {step: value}}."""
Health = Json
"""The doctor's health.json."""


@dataclass
class Row:
    """One pipeline as MLflow's table shows it."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    stage_tags: dict[str, str] = field(default_factory=dict)
    """MLflow's id of each stage's run, or ours if the stage did not learn it."""
    artifacts: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    datasets: list[Json] = field(default_factory=list)
    """What the stages read, as their records have it."""
    curves: Curves = field(default_factory=dict)
    """What grpo logged by step, under the row's names for it."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every output, by path."""
    evaluation: Evaluation | None = None
    health: Health | None = None


def from_snapshot(snapshot: Snapshot) -> Row:
    """The row of a whole pipeline, from its own files alone.

    `snapshot.pipeline_key()` must not be None.
    """
    row = Row(tags={"regrpo.complete": "true", "regrpo.pipeline_key": str(snapshot.pipeline_key())})
    row.params = parameters(snapshot.params()) | {"profile": snapshot.profile()}
    for stage, record in snapshot.records().items():
        run = record.get("mlflow_run_id") or record["run"]
        _add_stage(row, stage, run, record, metric_reports(snapshot, stage))
    headline = row.evaluation.headline if row.evaluation else None
    for stage in tables.STAGES:
        parquet = snapshot.output(f"reports/{stage}/samples.parquet")
        table = tables.read_table(stage, parquet, headline)
        if table:
            row.tables[f"{stage}/{tables.NAME}"] = table
    row.curves = shown_curves(snapshot.read("reports/grpo/history.csv"))
    for path in SHOWN:
        data = snapshot.output(path)
        if data is not None:
            row.artifacts[path] = data
    return row


def from_journals(journals: Iterable[JournalReader]) -> Row:
    """The row of an execution that made no whole pipeline: its profile, and its stages' metrics."""
    row = Row(tags={"regrpo.complete": "false"})
    for journal in journals:
        stage, facts = journal.stage, journal.facts
        row.params |= parameters(facts["sections"]) | {"profile": facts["profile"]}
        run = journal.tracker_notes.get("run_id") or facts["run"]
        record = (journal.closed or {}).get("record") or {"inputs": [], "outputs": []}
        _add_stage(row, stage, run, record, journal.reports())
    return row


def _add_stage(row: Row, stage: str, run: str, record: Json, reports: Mapping[str, bytes]) -> None:
    row.stage_tags[f"regrpo.stage.{stage}"] = run
    for name, value in final_metrics(reports).items():
        row.metrics[f"{stage}.{name}"] = value
    for out in record["outputs"]:
        row.hashes[out["path"]] = out["sha256"]
        if out["path"] == PRODUCT:
            row.tags[f"regrpo.output.{PRODUCT}"] = out["sha256"]
    row.datasets += record["inputs"]
    if "health.json" in reports:
        row.health = json.loads(reports["health.json"])
        row.tags["regrpo.health"] = str((row.health or {}).get("verdict"))
    if stage == "evaluate":
        row.evaluation = read_evaluation(reports.get("metrics.json"))
        # The headline first: MLflow's comparison starts with the first metric, and a run's page
        # with the first tags.
        row.metrics = headline_metrics(row.evaluation) | row.metrics
        row.tags = headline_tags(row.evaluation) | row.tags


# --- names and values -----------------------------------------------------------------------------


def mlflow_name(name: str) -> str:
    """A metric's or parameter's name that MLflow accepts: its characters, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def parameters(sections: Json) -> dict[str, str]:
    """{section.name: value} of whole sections ({stage: section}).

    Values are spelled as in JSON, text bare; lists and empty mappings are values too.
    """
    flat: dict[str, str] = {}
    for stage, section in sections.items():
        flat.update(_flatten(section, stage))
    return flat


def _flatten(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{prefix}.{key}")
    elif isinstance(values, str):
        yield mlflow_name(prefix), values
    else:
        yield mlflow_name(prefix), canonical_json(values)


def stage_params(params: Mapping[str, Json]) -> dict[str, str]:
    """A stage run's parameters, of dvc.lock's {profile: {section: values}}."""
    flat = {"profile": next(iter(params), "")}
    for sections in params.values():
        flat |= parameters(sections)
    return flat


def record_tags(record: Json) -> dict[str, str]:
    """A finished stage run's tags: what made it, and outputs' SHA-256 (`regrpo.output.<path>`)."""
    tags = identity_tags(record) | {"regrpo.environment": record["environment"]["sha256"]}
    for out in record["outputs"]:
        tags[f"regrpo.output.{out['path']}"] = out["sha256"]
    return tags


def identity_tags(facts: Json) -> dict[str, str]:
    """The tags by which a stage's run is found, of its journal's facts or its record."""
    tags = {f"regrpo.{name}": facts[name] for name in ("stage", "run", "key")}
    return tags | code_tags(facts["code"])


def code_tags(code: Json) -> dict[str, str]:
    """The commit as MLflow shows it, and whether (and how: SHA-256 of the diff) code differed."""
    if not code.get("revision"):
        return {}
    tags = {
        "mlflow.source.git.commit": code["revision"],
        "regrpo.git.dirty": str(code["dirty"]).lower(),
    }
    if code.get("diff_sha256"):
        tags["regrpo.git.diff_sha256"] = code["diff_sha256"]
    return tags


def row_name(params: Mapping[str, str], identity: str) -> str:
    """A row's name if no experiment gave it one: what the model is called, and a short key."""
    return f"{params.get('model_card.model_name', 'pipeline')} {identity[:12]}"


# --- metrics --------------------------------------------------------------------------------------


def metric_reports(snapshot: Snapshot, stage: str) -> dict[str, bytes]:
    """A stage's reports with final metrics, by file name."""
    folder = f"reports/{stage}/"
    found = snapshot.read_all(folder + name for name in METRIC_REPORTS)
    return {path.removeprefix(folder): data for path, data in found.items()}


def final_metrics(reports: Mapping[str, bytes]) -> dict[str, float]:
    """The final metrics in a stage's reports ({file name: bytes}).

    Raises ValueError if a report is no JSON.
    """
    metrics: dict[str, float] = {}
    for name, prefix in METRIC_REPORTS.items():
        if name in reports:
            metrics.update(numbers(json.loads(reports[name]), prefix))
    return metrics


def numbers(report: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in a report.

    Truth values count as 1 and 0, confidence intervals as two numbers. Of evaluate's report the
    containers are left out of the names: `heldout.grpo`, `heldout.sft_grpo.difference`.
    """
    if not isinstance(report, Mapping):
        return
    for key, value in report.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            is_container = key in ("tasks", "models", "pairs")
            yield from numbers(value, prefix if is_container else f"{name}.")
        elif isinstance(value, list) and key.endswith("ci95") and None not in value:
            low, high = value
            yield mlflow_name(f"{name}_low"), float(low)
            yield mlflow_name(f"{name}_high"), float(high)
        elif isinstance(value, bool | int | float) and key != "version":
            if key == "value":
                name = prefix.rstrip(".")
            yield mlflow_name(name), float(value)


def headline_metrics(evaluation: Evaluation | None) -> dict[str, float]:
    """`headline/grpo`, `/sft`, `/base`, and `/gain` from sft to grpo with its interval's ends."""
    task = evaluation.headline_task if evaluation else None
    if task is None:
        return {}
    metrics = {}
    for model in reversed(MODELS):
        if model in task.models:
            metrics[f"headline/{model}"] = task.models[model].value
    if "sft_grpo" in task.pairs:
        gain = task.pairs["sft_grpo"]
        metrics["headline/gain"] = gain.difference
        metrics["headline/gain_ci95_low"], metrics["headline/gain_ci95_high"] = gain.ci95
    return metrics


def headline_tags(evaluation: Evaluation | None) -> dict[str, str]:
    """`regrpo.headline`: `28.0 % → 96.7 %, +68.7 points [+63.3, +74.0]`."""
    task = evaluation.headline_task if evaluation else None
    if task is None or "sft_grpo" not in task.pairs:
        return {}
    gain = task.pairs["sft_grpo"]
    before = text.score(task.models["sft"].value, task.kind)
    after = text.score(task.models["grpo"].value, task.kind)
    change = text.change(gain.difference, gain.ci95, task.kind)
    return {"regrpo.headline": f"{before} → {after}, {change}"}


def read_evaluation(data: bytes | None) -> Evaluation | None:
    """evaluate's metrics.json. Returns None if it is damaged, which the audit names."""
    with contextlib.suppress(CannotCheck):
        return parse_metrics(data) if data else None
    return None


# --- curves ---------------------------------------------------------------------------------------


def read_curves(history: bytes | None) -> Curves:
    """The columns of a history.csv by step; of a step that was logged twice, the last value.

    Empty if the file is not there or damaged, which the audit names.
    """
    curves: Curves = {}
    with contextlib.suppress(ValueError):
        for row in parse_history(history or b""):
            step = int(row.pop("step"))
            for name, value in row.items():
                curves.setdefault(mlflow_name(name), {})[step] = value
    return curves


def shown_curves(history: bytes | None) -> Curves:
    """The curves that a row carries: GRPO/reward and others of grpo's history.csv.

    MLflow's UI makes a section of charts of what stands before the slash.
    """
    curves = read_curves(history)
    return {f"GRPO/{name.replace('/', ' ')}": curves[name] for name in CURVES if name in curves}


# --- experiments ----------------------------------------------------------------------------------


def experiment_tags(
    experiment: str | None,
    baseline: str | None,
    profile: str,
    sections: Json,
    root: Path,
) -> dict[str, str]:
    """A DVC experiment's name, sweep and baseline, and what it changes against the baseline."""
    if not experiment:
        return {}
    tags = {"regrpo.experiment": experiment}
    of_sweep = OF_SWEEP.fullmatch(experiment)
    if of_sweep:
        tags["regrpo.sweep"] = of_sweep[1]
    if baseline:
        tags["regrpo.baseline"] = baseline
        changes = changed_parameters(Snapshot(root, baseline), profile, sections)
        if changes:
            tags["regrpo.changed"] = changes
    return tags


def changed_parameters(baseline: Snapshot, profile: str, sections: Json) -> str | None:
    """`grpo.learning_rate=0.0001 grpo.seed=3`: where a profile differs from the baseline's.

    A profile that the baseline does not name itself is compared with its file of that name.
    Returns None if there is none.
    """
    named, before = _read_yaml(baseline, DEFAULT_PROFILE), _read_yaml(baseline, profile)
    if named is None or before is None:
        return None
    then = parameters({stage: before.get(stage) for stage in sections})
    now = parameters(sections)
    changes = [] if named.get("profile") == profile else [f"profile={profile}"]
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            changes.append(f"{name}={now.get(name, 'null')}")
    return " ".join(changes)


def _read_yaml(snapshot: Snapshot, path: str | Path) -> Json | None:
    data = snapshot.read(path)
    try:
        content = parse_yaml(data, str(path)) if data else None
    except Refused:
        return None
    return content if isinstance(content, dict) else None
