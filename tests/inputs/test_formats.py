"""Formats: how a row is read, and which questions are one."""

from __future__ import annotations

import pytest

from regrpo.inputs.formats import FORMATS, normalise, words_only


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
