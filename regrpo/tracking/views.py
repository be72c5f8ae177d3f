"""Observer: MLflow's UI as people should find it.

A saved view of the experiment, and a text that says what is there.

A saved view is an experiment tag `mlflow.sharedViewState.<key>` with {name, createdAt, updatedAt
(ms), state}, where `state` is the JSON of the table's filter, order and columns, as the UI's own
"Save as new view" writes it (read in, and tried with, MLflow 3.17.2); `?viewStateShareKey=<key>` in
the address opens it, and the UI lists it among "Saved views".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SHARED = "mlflow.sharedViewState."
NOTE = "mlflow.note.content"
KEY, NAME = "pipelines", "Pipelines"
"""The saved view's key in the address, and its name in the UI."""
MODES = {"table": "", "curves": "&compareRunsMode=CHART", "samples": "&compareRunsMode=ARTIFACT"}
"""The ways to look at the rows of a view, and what the UI's address says for each."""
NOTES = """\
One row is one pipeline, also one restored from DVC's cache; below it are the stages that ran. The saved view
*Pipelines* shows result, interval, health and what was changed; its charts compare curves, its third tab samples.
A row's description says what came out, and links to card, curves and samples. Files are the record, this is a view
of them: `regrpo sync` brings it up to date, `regrpo audit` compares it with the files.
"""
CURVES = (
    "reward",
    "dev_accuracy",
    "completions/mean_length",
    "entropy",
    "kl",
    "frac_reward_zero_std",
    "grad_norm",
    "loss",
)
"""Columns of grpo's history.csv that a row carries, in the order of their charts."""
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
"""The table's columns in their order, with widths in pixels.

The run's name and date stand before them.
"""

HEADLINE = ("grpo", "gain", "gain_ci95_low", "gain_ci95_high", "sft", "base")
"""What stands behind `headline/` in a row's metrics, in the order of the charts."""


def curve(column: str) -> str:
    """The row's metric for a column of history.csv.

    The UI makes a section of what stands before the slash.
    """
    return f"GRPO/{column.replace('/', ' ')}"


def state() -> dict[str, Any]:
    """The saved view: pipelines, newest first, our columns.

    As charts, GRPO's curves and the headline first.
    """
    lines = [_chart("LINE", curve(column)) for column in CURVES]
    bars = [_chart("BAR", f"headline/{name}") for name in HEADLINE]
    sections = {"GRPO": lines, "headline": bars}
    return {
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
        "isAccordionReordered": True,
        "compareRunSections": [
            {
                "uuid": f"regrpo-{name}",
                "name": name,
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": True,
            }
            for name in sections
        ],
        "compareRunCharts": [
            chart | {"uuid": f"regrpo-{name}-{place}", "metricSectionId": f"regrpo-{name}"}
            for name, charts in sections.items()
            for place, chart in enumerate(charts)
        ],
    }


def _chart(kind: str, metric: str) -> dict[str, Any]:
    """A chart as the UI's own configuration has it."""
    chart = {
        "type": kind,
        "metricKey": metric,
        "deleted": False,
        "isGenerated": True,
        "runsCountToCompare": 20,
    }
    line = {
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "range": {},
    }
    return chart | (line if kind == "LINE" else {})


def missing_tags(present: Mapping[str, str], created: int) -> dict[str, str]:
    """The experiment's tags that are to be set.

    Its description and the view, unless a person changed them.

    `created`: ms since 1970. The UI's own "Overwrite" leaves another updatedAt than createdAt.
    """
    envelope = {
        "name": NAME,
        "createdAt": created,
        "updatedAt": created,
        "state": json.dumps(state()),
    }
    view, now = json.dumps(envelope), present.get(SHARED + KEY)
    wanted = {} if NOTE in present else {NOTE: NOTES}
    return wanted | (
        {SHARED + KEY: view} if now is None or (now != view and _untouched(now)) else {}
    )


def _untouched(envelope: str) -> bool:
    try:
        content = json.loads(envelope)
        return bool(content["createdAt"] == content["updatedAt"])
    except (ValueError, KeyError, TypeError):
        return False


def addresses(server: str, experiment_id: str) -> dict[str, str]:
    """Mode (table, curves, samples) → address of the saved view at a server (`http://127.0.0.1:5000`)."""
    page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={KEY}"
    return {mode: page + more for mode, more in MODES.items()}
