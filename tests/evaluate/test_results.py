"""The schema of metrics.json, and the reading of samples.parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regrpo.core import files
from regrpo.core.errors import CannotCheck
from regrpo.evaluate.results import parse_metrics, read_answers, read_samples


def content() -> dict[str, Any]:
    """metrics.json's content of two tasks."""
    task = {
        "metric": "accuracy",
        "kind": "binary",
        "n": 2,
        "description": "two questions",
        "models": {"grpo": {"value": 0.5, "ci95": [0.1, 0.9]}},
        "pairs": {},
    }
    roles = {"b": "control", "c": "mine", "a": "control", "main": "headline"}
    tasks = {name: task | {"role": role} for name, role in roles.items()}
    content: dict[str, Any] = json.loads(json.dumps({"headline": "main", "tasks": tasks}))
    return content


def test_tasks_are_shown_by_role_and_then_by_name() -> None:
    evaluation = parse_metrics(json.dumps(content()))
    assert list(evaluation.shown_tasks) == ["main", "a", "b", "c"]
    assert evaluation.headline_task == evaluation.tasks["main"]


def test_an_evaluation_may_have_no_headline() -> None:
    assert parse_metrics(json.dumps(content() | {"headline": None})).headline_task is None


def test_other_content_is_refused_by_the_place_where_it_is_wrong() -> None:
    damaged = content()
    damaged["tasks"]["a"]["models"]["grpo"]["value"] = "high"
    with pytest.raises(
        CannotCheck, match=r"metrics\.json: tasks\.a\.models\.grpo\.value: .*number"
    ):
        parse_metrics(json.dumps(damaged))
    with pytest.raises(CannotCheck, match="JSON"):
        parse_metrics(b"{")


def test_samples_are_read_by_columns_and_values(tmp_path: Path) -> None:
    rows = [
        {"task": task, "model": model, "id": "q1", "value": 1.0}
        for task in ("a", "b")
        for model in ("sft", "grpo")
    ]
    files.write_parquet(tmp_path / "samples.parquet", pd.DataFrame(rows))
    data = (tmp_path / "samples.parquet").read_bytes()
    assert len(read_samples(data)) == 4
    found = read_samples(data, ["id", "value"], task="b", model="grpo")
    assert found.to_dict("records") == [{"id": "q1", "value": 1.0}]


def test_answers_are_read_as_rows() -> None:
    task = {"asked": "ab", "ids": ["q1", "q2"], "values": {"sft": [0, 1], "grpo": [0.5, 1]}}
    found = read_answers(json.dumps([{"schema_version": 1, "tasks": {"heldout": task}}]))
    assert found.to_dict("split")["data"] == [
        ["heldout", "sft", "q1", "ab", 0.0],
        ["heldout", "sft", "q2", "ab", 1.0],
        ["heldout", "grpo", "q1", "ab", 0.5],
        ["heldout", "grpo", "q2", "ab", 1.0],
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([{"schema_version": 2, "tasks": {}}], r"answers\.json: 0\.schema_version: .*Input should"),
        ({"schema_version": 1, "tasks": {}}, r"answers\.json: expected .* valid array"),
        (
            [
                {
                    "schema_version": 1,
                    "tasks": {"a": {"asked": "", "ids": [], "values": {"sft": [1]}}},
                }
            ],
            r"answers\.json: 0\.tasks\.a: .*1 values of sft for 0 questions",
        ),
    ],
)
def test_other_answers_are_refused_by_the_place_where_they_are_wrong(
    content: Any, found: str
) -> None:
    with pytest.raises(CannotCheck, match=found):
        read_answers(json.dumps(content))
