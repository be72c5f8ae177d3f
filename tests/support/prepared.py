"""Prepare's parameters, rows of a source, and what prepare makes of them in memory."""

from __future__ import annotations

from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.core.profiles import parse_section
from regrpo.inputs import scratch_db
from regrpo.inputs.formats import SPLITS, get_format
from stages import prepare
from tests.support import stand_ins

Rows = list[dict[str, Any]]


def params(**changes: Any) -> prepare.Params:
    values = {
        "seed": 1,
        "format": "question_answer",
        "source": {"kind": "local", "train": "train.jsonl", "license": "MIT"},
        "eval": 4,
        "dev": 3,
        "sft": 0.5,
    }
    return parse_section(prepare.Params, values | changes, "params.yaml: prepare")


def questions(count: int, **extra: Any) -> Rows:
    return [{"question": f"What is {i} + 1?", "answer": str(i + 1)} | extra for i in range(count)]


def news(count: int, **changes: str) -> Rows:
    return [stand_ins.xlsum_row(index) | changes for index in range(count)]


def placed(rows: Rows) -> Any:
    return ((f"data/raw/train.jsonl, line {line}", row) for line, row in enumerate(rows, start=1))


def splits(train: Rows, evaluation: Rows | None = None, /, **changes: Any) -> dict[str, Rows]:
    values = params(**changes)
    form = get_format(values.format)
    given = {"train": train} | ({} if evaluation is None else {"eval": evaluation})
    with scratch_db.database() as database:
        made = prepare.Splits(database, values, form)
        for part, rows in given.items():
            made.add(part, prepare.read_part(placed(rows), values, form, part))
        made.divide()
        found = {
            name: [prepare.prompted(row, values, form) for row in made.rows(name)]
            for name in SPLITS
        }
        assert {name: made.count(name)["rows"] for name in SPLITS} == {
            name: len(rows) for name, rows in found.items()
        }
        return found


def ids(rows: Rows) -> list[str]:
    return sorted(row["id"] for row in rows)


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(Refused) as caught:
        splits(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
