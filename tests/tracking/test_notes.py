"""Descriptions that say the result first, and the experiment's one saved view."""

from __future__ import annotations

import json

from regrpo.tracking import notes, rows
from regrpo.tracking.rows import Row
from regrpo.tracking.tables import Table
from tests.support.tracked import evaluation


def test_the_view_is_what_the_ui_writes_itself() -> None:
    tags = notes.experiment_tags(1234)
    assert set(tags) == {notes.VIEW, notes.NOTE}
    view = json.loads(tags[notes.VIEW])
    assert (view["name"], view["createdAt"], view["updatedAt"]) == ("Pipelines", 1234, 1234)
    state = json.loads(view["state"])
    assert state["searchFilter"] == "tags.`regrpo.kind` = 'pipeline'"
    assert state["selectedColumns"] == state["columnOrder"] == list(state["columnWidths"])


def test_every_headline_column_is_a_metric_that_rows_have() -> None:
    metrics = {f"metrics.`{name}`" for name in rows.headline_metrics(evaluation())}
    assert {name for name in notes.COLUMNS if name.startswith("metrics.")} <= metrics


def test_the_addresses_name_experiment_view_and_mode() -> None:
    start = "http://127.0.0.1:5000/#/experiments/7/runs"
    start += "?workflowType=machine_learning&viewStateShareKey=pipelines"
    assert notes.addresses("http://127.0.0.1:5000", "7") == {
        "table": start,
        "curves": f"{start}&compareRunsMode=CHART",
        "samples": f"{start}&compareRunsMode=ARTIFACT",
    }


def test_a_description_says_the_result_first_and_what_changed_is_no_markup() -> None:
    row = Row(tags={"regrpo.headline": "50.0 % → 75.0 %"}, health={"verdict": "healthy"})
    row.artifacts["reports/grpo/curves.png"] = b"png"
    row.tables["grpo/samples.json"] = Table({}, "3 of 9 kept completions")
    lines = notes.describe_row(row, "grpo.seed=<img src=x>", "7", "r1").splitlines()
    page = "#/experiments/7/runs/r1/artifacts"
    links = [
        f"[curves]({page}/grpo/curves.png?workflowType=machine_learning)",
        f"[completions during training]({page}/grpo/samples.json?workflowType=machine_learning)",
        f"[hashes of all outputs]({page}/outputs.json?workflowType=machine_learning)",
    ]
    assert [line.strip() for line in lines] == [
        "**Result:** 50.0 % → 75.0 %",
        "**Changed:** `grpo.seed=<img src=x>`",
        f"**Look at:** {' · '.join(links)}",
        "**Doctor:** healthy",
        "**Completions during training:** 3 of 9 kept completions",
    ]


def test_the_doctors_line_says_what_fired_and_what_to_change() -> None:
    rule = {
        "what": "KL above 2",
        "steps": [3, 4, 5, 9],
        "change": "beta (higher)",
        "verdict": "fired",
    }
    health = {"verdict": "warnings", "rules": [rule, rule | {"verdict": "clear"}]}
    line = "**Doctor:** warnings: KL above 2 (steps 3–5, 9; change beta (higher))"
    assert notes.health_line(health) == line
