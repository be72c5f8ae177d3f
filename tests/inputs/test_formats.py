"""Formats: how a row is read, and which questions are one."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from regrpo.inputs.formats import FORMATS, as_text, normalise, words_only
from tests.support.custom_code import clock_rows
from tests.support.prepared import refusal, splits


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


# --- the user's own -------------------------------------------------------------------------------

CLOCK = {"format": "custom.formats:clock", "verifier": "custom.verifiers:TimeOfDay"}
OWN = {"format": "custom.formats:own", "verifier": "exact_text"}


def test_the_example_of_a_format_reads_a_nested_row(custom: Callable[..., None]) -> None:
    made = splits(clock_rows(60), **CLOCK, keep=["new_hour", "add"])
    rows = {row["source_row"]: row for split in made.values() for row in split}
    assert rows[18] == {
        "id": "train-18",
        "question": "11:06+28=",
        "prompt": "11:06+28=",
        "answer": "11:34",
        "solution": "<think>34</think><answer>11:34</answer>",
        "turns": None,
        "source_row": 18,
        "new_hour": False,
        "add": 28,
    }
    assert {row["new_hour"] for row in rows.values()} == {True, False}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "found that it returned None instead of a dict of question, answer and s"),
        ("return [row['text'], '1']", "found that it returned ['a', '1'] instead of a dict of qu"),
        ("return row['text']", "found that it returned 'a' instead of a dict"),
        ("yield row", "found that it returned <generator object own at 0x"),
        ("return {'answer': '1'}", "found that it returned no question among answer instead of a"),
        ("return {}", "found that it returned no question among nothing instead of a dict"),
        ("return {'question': None}", "found column question holds null instead of text"),
        ("return {'question': 7}", "found column question holds int instead of text"),
        ("return {'question': 'a', 'answer': {}}", "found column answer holds dict instead of te"),
        ("return {'question': 'a', 'answer': [1]}", "found column answer holds list instead of t"),
        ("return {'question': 'a', 'solution': [1]}", "found column solution holds list instead"),
        ("return {'question': row['txt']}", "found custom/formats.py, line 1: KeyError: 'txt'. M"),
        ("raise ValueError('no date')", "found custom/formats.py, line 1: ValueError: no date"),
        ("import sys; sys.exit(1)", "found custom/formats.py, line 1: SystemExit: 1"),
    ],
)
def test_what_a_format_of_ones_own_returns_wrongly_is_refused_with_the_row(
    custom: Callable[..., None], body: str, said: str
) -> None:
    good = "def own(row): return {'question': row['text'], 'answer': 'x'}\n"
    custom(f"def own(row): {body}\n", "formats")
    told = refusal([{"text": "a"}], **OWN)
    row = "data/raw/train.jsonl, line 1: expected a row in format custom.formats:own; "
    assert told.startswith(f"{row}{said}")
    custom(good, "formats")
    assert "classes of questions" in refusal([{"text": "a"}], **OWN), "read, and too few"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("custom.formats:none", "AttributeError: module 'custom.formats' has no attribute 'none'"),
        ("custom.formats:LIMIT", "found int 3. Name a function."),
        ("custom.mine:own", "prepare.format: expected custom.formats:<function>; found custom.mi"),
        ("clock", "found 'clock'. Name one of these, or add yours to custom/formats.py"),
    ],
)
def test_a_format_that_is_not_there_is_refused_by_name(
    custom: Callable[..., None], name: str, said: str
) -> None:
    custom("LIMIT = 3\n", "formats")
    assert said in refusal([{"text": "a"}], format=name)


def test_a_format_of_ones_own_goes_with_what_the_named_ones_go_with(
    custom: Callable[..., None],
) -> None:
    custom(
        "def own(row):\n"
        "    turns = [{'role': 'system', 'content': 'Be brief.'},"
        " {'role': 'user', 'content': row['text']}, {'role': 'assistant', 'content': 'So.'}]\n"
        "    return {'id': row['nr'] + 100, 'question': turns, 'answer': [row['nr'], 'none'],"
        " 'options': ['none', str(row['nr'])]}\n",
        "formats",
    )
    made = splits(
        [{"text": f"How many, {i}?", "nr": i} for i in range(20)],
        format="custom.formats:own",
        verifier="choice",
        several_answers=True,
        prompt_style="chat",
        prompt_template="{question}\n{options}",
    )
    row = next(row for split in made.values() for row in split if row["source_row"] == 7)
    assert (row["id"], row["answer"], row["golds"]) == ("107", "7", ["7", "none"])
    assert (row["solution"], row["options"]) == ("So.", ["none", "7"])
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many, 7?\nA. none\nB. 7"},
    ]


def test_a_format_of_ones_own_is_given_renamed_columns_and_bounded_cells(
    custom: Callable[..., None],
) -> None:
    custom("def own(row): return {'question': row['question'], 'answer': '80.0'}\n", "formats")
    rows = [{"deep": {"text": f"a {i}", "nr": i}, "rest": "b"} for i in range(20)]
    columns = {"id": "deep.nr", "question": "deep.text"}
    given = {"format": "custom.formats:own", "columns": columns}
    made = [row for split in splits(rows, **given).values() for row in split]
    assert {row["answer"] for row in made} == {"80"}, "as pandas writes integers"
    assert sorted(int(row["id"]) for row in made) == list(range(20))
    long = refusal([*rows, rows[0] | {"rest": "b" * 99}], **given, max_cell_characters=50)
    assert "line 21: rest of 99" in long, "every cell is the function's to read"
