"""Observer: MLflow's UI as people should find it: saved views of the experiment, and texts that say what is there.

A saved view is an experiment tag `mlflow.sharedViewState.<key>` with {name, createdAt, updatedAt (ms), state}, where
`state` is the JSON of the table's filter, order and columns, as the UI's own "Save as new view" writes it (read in, and
tried with, MLflow 3.17.2); `?viewStateShareKey=<key>` in the address opens it, and the UI lists it among "Saved views".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SHARED = "mlflow.sharedViewState."
NOTE = "mlflow.note.content"
VIEWS = ("pipelines", "grpo")
"""The keys of our views; the first is what `make ui` names first."""
NOTES = """\
Each row is one pipeline, restored ones too; below it are the stages that ran. Under **Saved views**: *Pipelines*
(result, interval, health, what was changed) and *GRPO curves* (reward, dev accuracy, length, entropy of every GRPO
run). A row's description says what came out; its artifacts hold card, curves and samples as tables. Files are the record,
this is a view of them: `regrpo sync` brings it up to date, `regrpo audit` compares it with the files.
"""


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _state(condition: str, widths: Mapping[str, int], **more: Any) -> dict[str, Any]:
    columns = list(widths)
    return {
        "searchFilter": condition, "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
        "selectedColumns": columns, "columnOrder": columns, "columnWidths": dict(widths),
        "runsHiddenMode": "FIRST_20_RUNS",
    } | more  # fmt: skip


def _charts(sections: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Charts by section, as the UI's own configuration has them."""
    shared = {"deleted": False, "isGenerated": True, "runsCountToCompare": 20}
    return {
        "compareRunSections": [
            {"uuid": f"regrpo-{number}", "name": name, "display": True, "isReordered": False, "deleted": False,
             "isGenerated": True}
            for number, name in enumerate(sections)
        ],
        "compareRunCharts": [
            shared | {"uuid": f"regrpo-{number}-{place}", "metricSectionId": f"regrpo-{number}"} | chart
            for number, charts in enumerate(sections.values()) for place, chart in enumerate(charts)
        ],
        "isAccordionReordered": True,
    }  # fmt: skip


def _line(metric: str, name: str) -> dict[str, Any]:
    return {
        "type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric], "displayName": name, "lineSmoothness": 0,
        "xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "range": {},
    }  # fmt: skip


def states() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each of VIEWS: its name in the UI, and its state."""
    pipelines = {
        _column("tags", "regrpo.headline"): 330, _column("metrics", "headline/grpo"): 120,
        _column("metrics", "headline/gain"): 120, _column("tags", "regrpo.health"): 105,
        _column("tags", "regrpo.changed"): 240, _column("tags", "regrpo.sweep"): 110,
        _column("attributes", "Models"): 170, _column("attributes", "Dataset"): 170,
    }  # fmt: skip
    curves = {
        _column("metrics", "reward_last"): 120, _column("metrics", "dev_accuracy_last"): 140,
        _column("metrics", "health.fired"): 110, _column("params", "grpo.learning_rate"): 140,
        _column("params", "grpo.seed"): 100, _column("params", "grpo.max_steps"): 120,
        _column("attributes", "Models"): 170,
    }  # fmt: skip
    lines = {
        "reward": "reward (mean per step)", "dev_accuracy": "dev accuracy (greedy)",
        "completions/mean_length": "completion length (tokens, mean)", "entropy": "entropy",
        "frac_reward_zero_std": "groups without variance", "grad_norm": "gradient norm", "loss": "loss",
    }  # fmt: skip
    charts = _charts({"GRPO": [_line(metric, name) for metric, name in lines.items()]})
    return {
        "pipelines": ("Pipelines", _state("tags.`regrpo.kind` = 'pipeline'", pipelines)),
        "grpo": ("GRPO curves", _state("tags.`regrpo.stage` = 'grpo'", curves, **charts)),
    }


def missing_tags(present: Mapping[str, str], created: int) -> dict[str, str]:
    """The experiment's tags that are to be set: its description and each view, unless a person changed them.

    `created`: ms since 1970. The UI's own "Overwrite" leaves another updatedAt than createdAt.
    """
    wanted = {} if NOTE in present else {NOTE: NOTES}
    for key, (name, state) in states().items():
        envelope = {"name": name, "createdAt": created, "updatedAt": created, "state": json.dumps(state)}
        value, now = json.dumps(envelope), present.get(SHARED + key)
        if now is None or (now != value and _untouched(now)):
            wanted[SHARED + key] = value
    return wanted


def _untouched(envelope: str) -> bool:
    try:
        content = json.loads(envelope)
        return bool(content["createdAt"] == content["updatedAt"])
    except (ValueError, KeyError, TypeError):
        return False


def addresses(server: str, experiment_id: str) -> dict[str, str]:
    """Name → address of each saved view at a server (`http://127.0.0.1:5000`)."""
    page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return {name: f"{page}&viewStateShareKey={key}" for key, (name, _) in states().items()}
