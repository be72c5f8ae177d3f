"""Completions as tables: bounded, of every kind some, and text for plain and chat prompts alike."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from regrpo.tracking import tables
from tests.support.tracked import answers, completions

CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "4+5-7="}]


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def made(stage: str, frame: pd.DataFrame, headline: str | None = None) -> tables.Table:
    table = tables.read_table(stage, parquet(frame), headline)
    assert table is not None
    assert len({len(column) for column in table.columns.values()}) == 1
    return table


@pytest.mark.parametrize(
    ("prompt", "shown"), [("4+5-7=", "4+5-7="), (CHAT, "system: Think.\nuser: 4+5-7=")]
)
def test_before_and_after_stand_in_one_row_per_question(prompt: Any, shown: str) -> None:
    table = made("evaluate", answers(prompt), "heldout")
    assert list(table.columns) == [
        "prompt",
        "grpo",
        "sft",
        "base",
        "answer",
        "grpo score",
        "sft score",
        "base score",
        "sft → grpo",
        "id",
    ]
    assert set(table.columns["prompt"]) == {shown}
    rows = dict(zip(table.columns["id"], table.columns["sft → grpo"], strict=True))
    assert rows == {"q0": "still right", "q1": "lost", "q2": "gained", "q3": "gained"}
    assert table.columns["id"] == ["q1", "q2", "q3", "q0"]
    assert table.columns["sft"][0] == "sft on heldout 1"
    assert table.shows == "4 of 4 questions of heldout"
    assert made("evaluate", answers(prompt)).shows == "4 of 4 questions of asked"


def test_a_table_is_bounded_and_the_rare_changes_are_not_crowded_out() -> None:
    models = {"sft": [0.0] * 997 + [1.0] * 3, "grpo": [1.0] * 900 + [0.0] * 100}
    rows = [
        {
            "task": "t",
            "model": model,
            "id": f"{index:04}",
            "prompt": "p",
            "completion": "c",
            "answer": "a",
            "value": value,
        }
        for model, values in models.items()
        for index, value in enumerate(values)
    ]
    table = made("evaluate", pd.DataFrame(rows), "t")
    found = pd.Series(table.columns["sft → grpo"]).value_counts().to_dict()
    assert found == {"lost": 3, "gained": 33, "still wrong": 33}
    assert table.shows == "69 of 1,000 questions of t"


def test_a_metric_that_is_no_share_is_better_worse_or_the_same() -> None:
    frame = answers().assign(value=lambda frame: frame["value"] * 0.5)
    table = made("evaluate", frame, "heldout")
    assert table.columns["sft → grpo"] == ["worse", "better", "better", "the same"]


def test_completions_of_every_step_have_their_share() -> None:
    table = made("grpo", completions(steps=30, group=8))
    assert list(table.columns)[:5] == ["step", "prompt", "completion", "answer", "reward"]
    assert sorted(set(table.columns["step"])) == [10 * step for step in range(30)]
    assert table.shows == "90 of 240 kept completions, from 30 steps"
    many = made("grpo", completions(steps=1000, group=1))
    assert (many.shows, many.columns["step"][0], many.columns["step"][-1]) == (
        "100 of 1,000 kept completions, from 100 steps",
        90,
        9990,
    )


def test_cells_are_text_and_numbers_that_json_can_hold() -> None:
    frame = completions(1, 1, prompt=CHAT).assign(
        completion="a\u202eb" + "x" * 9000, answer=None, reward=np.nan
    )
    table = made("grpo", frame)
    assert table.columns["prompt"] == ["system: Think.\nuser: 4+5-7="]
    assert table.columns["completion"] == ["a\\u202eb" + "x" * 1991 + "…"]
    assert (table.columns["answer"], table.columns["reward"], table.columns["step"]) == (
        [None],
        [None],
        [0],
    )


@pytest.mark.parametrize(
    ("stage", "data"),
    [
        ("sft", parquet(completions())),
        ("grpo", b"no Parquet"),
        ("grpo", parquet(pd.DataFrame({"other": [1]}))),
        ("grpo", parquet(completions().head(0))),
        ("evaluate", parquet(answers().head(0))),
        ("evaluate", parquet(pd.concat([answers(), answers()]))),
    ],
    ids=["another stage", "damaged", "foreign", "empty", "empty evaluation", "a question twice"],
)
def test_what_is_no_samples_file_has_no_table(stage: str, data: bytes) -> None:
    assert tables.read_table(stage, data) is None
