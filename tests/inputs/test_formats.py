"""Formats: how a row is read, and which questions are one."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from regrpo.inputs.formats import FORMATS, as_text, normalise, words_only
from tests.support.prepared import splits


def test_each_shipped_format_reads_its_own_rows() -> None:
    gsm8k = FORMATS["gsm8k"].read(
        {"question": " How many? ", "answer": "2*600=<<2*600=1200>>1200\n#### 1,200"}
    )
    assert (gsm8k.question, gsm8k.answer, gsm8k.solution) == (
        "How many?",
        "1200",
        "2*600=1200\n#### 1,200",
    )
    assert FORMATS["gsm8k"].read({"question": "How many?", "answer": "1200"}).answer is None
    chain = FORMATS["chain_sum"].read(
        {"question": "State …", "answer": "2", "metadata": {"expression": "4 + 5 - 7"}}
    )
    assert (chain.question, chain.answer) == ("4+5-7=", "2")
    assert chain.solution == "<think>9</think><answer>2</answer>"
    assert (
        FORMATS["chain_sum"].read({"question": "4+5-7", "answer": "two"}).answer == "two"
    )  # the gate names it
    plain = FORMATS["question_answer"].read({"question": "1 + 1?", "answer": None})
    assert (plain.answer, plain.solution) == (None, None)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 3 + 4?", "what is  3+4", True),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("What is 5 - 3?", "What is 5, 3?", False),
        ("What is 5 * 3?", "What is 5 / 3?", False),
        ("What is 3.5?", "What is 35?", False),
        ("What is 5²?", "What is 52?", False),
        ("Sort 1 23", "Sort 12 3", False),
        ("A well-known sum", "a well known sum!", True),
        ("Ｗｈａｔ ｉｓ １？", "What is 1?", True),
        ("∑ ∞ ?", "∫ ∞ ?", False),
    ],
)
def test_running_text_is_one_class_exactly_where_it_asks_the_same(
    one: str, other: str, same: bool
) -> None:
    assert (words_only(one) == words_only(other)) is same
    if normalise(one) == normalise(other):
        assert same


def test_sums_are_one_class_exactly_where_their_terms_are_the_same() -> None:
    canonical = FORMATS["chain_sum"].canonical
    assert canonical("4+5-7=") == canonical("5+4-7=") == canonical(" 4 + 5 - 7 ")
    assert len({canonical(q) for q in ("4+5-7=", "4-5+7=", "4+5+7=", "4-0+1=", "4+0+1=")}) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (80, "80"),
        (80.0, "80"),
        (-0.0, "0"),
        (np.float32(80.0), "80"),
        (np.int64(80), "80"),
        (Decimal("80.00"), "80"),
        (Decimal("8E1"), "80"),
        (2**70, str(2**70)),
        (0.5, "0.5"),
        (Decimal("0.50"), "0.5"),
        (True, "true"),
        (float("inf"), "inf"),
        (float("nan"), None),
        (Decimal("nan"), None),
        (None, None),
    ],
)
def test_numbers_are_read_as_they_are_meant(value: Any, text: str | None) -> None:
    assert as_text(value) == text
    found = FORMATS["question_answer"].read({"question": "How many?", "answer": value})
    assert found.answer == text


def test_an_integer_that_a_csv_file_holds_with_decimals_is_one_and_an_empty_cell_none() -> None:
    """As pandas writes a column of integers with one that is missing."""
    rows = [
        {"question": f"How many, {i}?", "answer": f"{i}.0", "solution": "", "id": float(i)}
        for i in range(20)
    ]
    read = [row for split in splits(rows).values() for row in split]
    assert sorted(int(row["answer"]) for row in read) == list(range(20))
    assert {row["solution"] for row in read} == {None}
    assert {row["id"] for row in read} == {str(i) for i in range(20)}
    # Without a verifier that wants integers, an answer is text.
    kept = [row for split in splits(rows, verifier="none").values() for row in split]
    assert {row["answer"] for row in kept} == {f"{i}.0" for i in range(20)}
