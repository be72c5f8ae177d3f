"""The saved view as MLflow's UI keeps it, and when it is written."""

from __future__ import annotations

import json

from regrpo.evaluate.results import Evaluation
from regrpo.tracking import notes, views
from tests.support.tracked import evaluation

TAG = views.SHARED + views.KEY


def test_the_view_is_what_the_ui_writes_itself() -> None:
    tags = views.missing_tags({}, 1234)
    assert set(tags) == {TAG, views.NOTE}
    assert all(
        len(value) < 20_000 for value in tags.values()
    )  # MLflow's limit for an experiment's tag
    envelope = json.loads(tags[TAG])
    assert (envelope["name"], envelope["createdAt"], envelope["updatedAt"]) == (
        "Pipelines",
        1234,
        1234,
    )
    state = json.loads(envelope["state"])
    assert state["searchFilter"] == "tags.`regrpo.kind` = 'pipeline'"
    assert state["selectedColumns"] == state["columnOrder"] == list(state["columnWidths"])
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    assert {sections[chart["metricSectionId"]] for chart in state["compareRunCharts"]} == {
        "GRPO",
        "headline",
    }


def test_every_headline_column_is_a_metric_or_tag_that_rows_have() -> None:
    metrics = {f"metrics.`{name}`" for name in notes.headline_metrics(Evaluation(**evaluation()))}
    assert {name for name in views.COLUMNS if name.startswith("metrics.")} <= metrics
    assert {f"metrics.`headline/{name}`" for name in views.HEADLINE} == metrics


def test_a_view_that_a_person_changed_stays_and_an_older_one_of_ours_goes() -> None:
    ours = views.missing_tags({}, 1234)
    assert views.missing_tags(ours, 1234) == {}
    older = ours | {
        TAG: json.dumps({"name": "old", "createdAt": 1234, "updatedAt": 1234, "state": "{}"})
    }
    assert views.missing_tags(older, 1234) == {TAG: ours[TAG]}
    for changed in (
        json.dumps({"name": "mine", "createdAt": 1234, "updatedAt": 5678, "state": "{}"}),
        "no JSON",
        "[]",
    ):
        assert views.missing_tags(ours | {TAG: changed, views.NOTE: "mine"}, 1234) == {}


def test_the_addresses_name_experiment_view_and_mode() -> None:
    start = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=pipelines"
    assert views.addresses("http://127.0.0.1:5000", "7") == {
        "table": start,
        "curves": f"{start}&compareRunsMode=CHART",
        "samples": f"{start}&compareRunsMode=ARTIFACT",
    }


def test_the_headline_is_the_same_few_names_for_every_profile() -> None:
    report = Evaluation(**evaluation(0.75))
    assert notes.headline_metrics(report) == {
        "headline/grpo": 0.75,
        "headline/sft": 0.5,
        "headline/base": 0.0,
        "headline/gain": 0.25,
        "headline/gain_ci95_low": 0.75 - 0.7,
        "headline/gain_ci95_high": 0.75 - 0.3,
    }
    assert notes.headline_words(report) == "50.0 % → 75.0 %, +25.0 points [+5.0, +45.0]"
    without = report.model_copy(update={"headline": None})
    assert notes.headline_metrics(without) == {}
    assert notes.headline_words(without) is None


def test_a_description_has_the_headline_first_and_names_of_tasks_are_no_markup() -> None:
    report = evaluation()
    report["tasks"]["a<img src=x>|b"] = report["tasks"]["asked"] | {"role": "custom"}
    lines = notes.evaluation_lines(Evaluation(**report))
    rows = [line for line in lines if line.startswith("| ") and "points" in line]
    assert rows[0].startswith("| **`heldout`**")
    assert len(rows) == 3
    assert not [line for line in lines if "<img" in line]
    assert rows[2].count(" | ") == rows[0].count(" | ") == 5


def test_the_doctors_line_says_what_fired_and_what_to_change() -> None:
    rule = {
        "what": "KL above 2",
        "steps": [3, 4, 5, 9],
        "change": "beta (higher)",
        "verdict": "fired",
    }
    health = {"verdict": "warnings", "rules": [rule, rule | {"verdict": "clear"}]}
    assert (
        notes.health_line(health)
        == "**Doctor:** warnings: KL above 2 (steps 3–5, 9; change beta (higher))"
    )
    assert notes.health_line({"verdict": "healthy"}) == "**Doctor:** healthy"
