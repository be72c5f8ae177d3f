"""MLflow's UI as people should find it: descriptions of runs, and one saved view.

Descriptions are Markdown with a few HTML elements allowed (pictures and frames of other sites among
them), so text that is not ours goes through `regrpo.core.text.code`.
"""

from __future__ import annotations

import json

from regrpo.core import text
from regrpo.core.files import Json
from regrpo.tracking.rows import Health, Row
from regrpo.tracking.tables import NAME as SAMPLES_TABLE

NOTE = "mlflow.note.content"
"""The tag that the UI shows as a description."""
ARTIFACTS = {
    "model_card/README.md": "card",
    "grpo/curves.png": "curves",
    "evaluate/comparison.png": "comparison",
    "validate/report.html": "gate",
    f"evaluate/{SAMPLES_TABLE}": "answers before and after",
    f"grpo/{SAMPLES_TABLE}": "completions during training",
    "outputs.json": "hashes of all outputs",
}
"""What a row's description links to, in this order, as far as it is there."""

# --- descriptions ---------------------------------------------------------------------------------


def describe_row(row: Row, changed: str | None, experiment: str, run: str) -> str:
    """A row's description: what came out, first, since the UI shows four lines of it.

    `experiment` and `run` are MLflow's ids, for links.
    """
    lines = []
    if "regrpo.headline" in row.tags:
        lines.append(f"**Result:** {row.tags['regrpo.headline']}")
    if changed:
        lines.append(f"**Changed:** {text.code(changed)}")
    present = {path.removeprefix("reports/") for path in row.artifacts}
    present.update(row.tables, ["outputs.json"])
    shown = [path for path in ARTIFACTS if path in present]
    links = [_link(ARTIFACTS[path], experiment, run, path) for path in shown]
    lines.append(f"**Look at:** {' · '.join(links)}")
    if row.health:
        lines.append(health_line(row.health))
    for path, table in row.tables.items():
        lines.append(f"**{ARTIFACTS[path].capitalize()}:** {table.shows}")
    # Two spaces at its end break a line in Markdown.
    return "  \n".join(lines) + "\n"


def health_line(health: Health) -> str:
    """The doctor's verdict, with each rule that fired, its steps and what to change."""
    fired = []
    for rule in health.get("rules", []):
        if rule["verdict"] == "fired":
            steps = text.ranges(rule["steps"])
            fired.append(f"{rule['what']} (steps {steps}; change {rule['change']})")
    line = f"**Doctor:** {health.get('verdict')}"
    if fired:
        line += f": {'; '.join(fired)}"
    return line


def _link(words: str, experiment: str, run: str, artifact: str) -> str:
    """A link to a run's artifact in the UI that shows the description."""
    place = f"#/experiments/{experiment}/runs/{run}/artifacts/{artifact}"
    return f"[{words}]({place}?workflowType=machine_learning)"


# --- the experiment's page ------------------------------------------------------------------------

VIEW = "mlflow.sharedViewState.pipelines"
"""The experiment's tag that holds the saved view, and so its key in the UI's addresses."""
MODES = {"table": "", "curves": "&compareRunsMode=CHART", "samples": "&compareRunsMode=ARTIFACT"}
"""The ways to look at the rows of the view, and what the UI's address says for each."""
ABOUT = """\
One row is one pipeline, also one restored from DVC's cache; below it are the stages that ran. The
saved view *Pipelines* shows result, interval, health and what was changed; its charts compare
curves, its third tab samples. A row's description says what came out, and links to card, curves and
samples. Files are the record, this is a view of them: `regrpo sync` brings it up to date, `regrpo
audit` compares it with the files.
"""
COLUMNS = {
    "tags.`regrpo.headline`": 285,
    "metrics.`headline/grpo`": 110,
    "metrics.`headline/gain`": 105,
    "tags.`regrpo.health`": 105,
    "tags.`regrpo.sweep`": 105,
    "tags.`regrpo.changed`": 270,
    "attributes.`Models`": 190,
    "attributes.`Dataset`": 190,
}
"""The view's columns after the run's name and date, with widths in pixels."""


def experiment_tags(created: int) -> dict[str, str]:
    """A new experiment's description and saved view; `created` in ms since 1970.

    The view is written as the UI's own "Save as new view" does (MLflow 3.17.2).
    """
    state: Json = {
        "searchFilter": "tags.`regrpo.kind` = 'pipeline'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    view = {
        "name": "Pipelines",
        "createdAt": created,
        "updatedAt": created,
        "state": json.dumps(state),
    }
    return {NOTE: ABOUT, VIEW: json.dumps(view)}


def addresses(server: str, experiment_id: str) -> dict[str, str]:
    """Mode (table, curves, samples) → address of the saved view at a server (http://…:5000)."""
    key = VIEW.rpartition(".")[2]
    page = f"{server}/#/experiments/{experiment_id}/runs"
    page += f"?workflowType=machine_learning&viewStateShareKey={key}"
    return {mode: page + more for mode, more in MODES.items()}
