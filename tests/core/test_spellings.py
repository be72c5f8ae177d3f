# ruff: noqa: E501  (tables)
"""What people and models write for `number`, `choice` and `exact_text`, and what it is worth."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")

from hypothesis import given
from hypothesis import strategies as st

from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import Refused
from regrpo.core.verifiers import get_verifier, label
from tests.support.chance import BY_CHANCE, texts


def verifier(name: str, **settings: Any) -> Verifier:
    found = get_verifier(name, settings)
    assert found
    return found


NUMBER = verifier("number")
# (what stands in the tag, the gold, score)
NUMBERS = [
    *[("7", "7", 1), (" 7\n", "7", 1), ("7.", "7", 1), ("+7", "7", 1), ("007", "7", 1)],
    *[("7.0", "7", 1), ("7.00", "7.0", 1), (".5", "0.5", 1), ("0.50", "1/2", 1), ("-.5", "-0.5", 1)],
    *[("1,234", "1234", 1), ("1,234,567.5", "1234567.5", 1), ("1'234", "1234", 1)],
    *[("1\u202f234", "1234", 1), ("1\u00a0234", "1234", 1), ("1\u2009234,5", "1234.5", 0)],
    *[("12,34", "1234", 0), ("1,2345", "12345", 0), ("1 234", "1234", 0), ("1,234'567", "1234567", 0)],
    *[("1/2", "0.5", 1), ("2/4", "1/2", 1), ("1 1/2", "1.5", 1), ("-1 1/2", "-1.5", 1)],
    *[("1/3", "0.333", 0), ("1 \u2044 3", "1/3", 1), ("1/0", "1", 0), ("1/2/3", "1/6", 0)],
    *[("12%", "0.12", 1), ("12 %", "12%", 1), ("12", "12%", 0), ("0.12", "12%", 1), ("12%%", "0.12", 0)],
    *[("\u22127", "-7", 1), ("\u20137", "-7", 1), ("-7", "\u22127", 1), ("--7", "7", 0), ("\u22127", "7", 0)],
    *[("1e3", "1000", 1), ("1.5E-3", "0.0015", 1), ("1e9999", "1", 0), ("-0", "0", 1)],
    *[("", "7", 0), ("seven", "7", 0), ("7 8", "7", 0), ("7 or 8", "7", 0), ("3 + 4", "7", 0)],
    *[("$7", "7", 0), ("7 kg", "7", 0), ("**7**", "7", 0), ("\\boxed{7}", "7", 0), ("x = 7", "7", 0)],
    *[("\u0667", "7", 0), ("\uff17", "7", 0), ("7²", "49", 0), ("0x7", "7", 0), ("inf", "7", 0), ("NaN", "7", 0)],
    *[("7..", "7", 0), ("7,", "7", 0), ("1.234.567", "1234567", 0), ("1-2", "-1", 0), ("8", "7", 0)],
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold", "score"), NUMBERS)
def test_what_a_number_is_worth(text: str, gold: str, score: int) -> None:
    assert NUMBER.score(f"<answer>{text}</answer>", gold) == score


MONEY = {"unit": ["€", "EUR", "EUR."]}


@pytest.mark.parametrize(
    ("settings", "text", "gold", "score"),
    [
        (MONEY, "€7", "7", 1),
        (MONEY, "-€7", "-7", 1),
        (MONEY, "€ \u22127", "-7", 1),
        (MONEY, "-€-7", "7", 0),
        (MONEY, "7 EUR", "7 €", 1),
        (MONEY, "7 EUR.", "7", 1),
        (MONEY, "7\u00a0€", "7", 1),
        (MONEY, "€7 EUR", "7", 0),
        (MONEY, "$7", "7", 0),
        (MONEY, "7 eur", "7", 0),
        (MONEY, "€", "7", 0),
        ({"unit": ["%"]}, "12%", "12", 1),
        ({"decimal": ","}, "1.234,5", "1234,50", 1),
        ({"decimal": ","}, "1,5", "3/2", 1),
        ({"decimal": ","}, "1.5", "1,5", 0),
        ({"tolerance": 0.01}, "3.14", "3.1415", 1),
        ({"tolerance": 0.01}, "3.13", "3.1415", 0),
        ({"tolerance": 0.1}, "0.3", "0.2", 1),
        ({"relative": 0.01}, "1009", "1000", 1),
        ({"relative": 0.01}, "1011", "1000", 0),
        ({"relative": 0.01}, "-1000", "1000", 0),
        ({"relative": 0.01}, "0.001", "0", 0),
    ],
)
def test_units_signs_and_tolerances(
    settings: dict[str, Any], text: str, gold: str, score: int
) -> None:
    assert verifier("number", **settings).score(f"<answer>{text}</answer>", gold) == score


TOWNS = {"options": ["Paris", "Lyon", "Nice", "a big town."]}
CHOICES = [
    *[("B", 1), ("b", 1), (" B\n", 1), ("B.", 1), ("B)", 1), ("(B)", 1), ("(b).", 1), ("B:", 1)],
    *[("Lyon", 1), ("lyon", 1), ("LYON.", 1), ("  Lyon ", 1), ("B. Lyon", 1), ("B) lyon.", 1)],
    *[("(B) Lyon", 1), ("B: Lyon", 1), ("B Lyon", 1), ("b\nLyon", 1), ("B.Lyon", 1), ("B.\nLyon", 1)],
    *[("A", 0), ("C", 0), ("Paris", 0), ("A. Lyon", 0), ("B. Paris", 0), ("Lyon B", 0), ("BLyon", 0)],
    *[("A or B", 0), ("A, B", 0), ("A B", 0), ("AB", 0), ("B B", 0), ("Paris Lyon", 0), ("not B", 0)],
    *[("E", 0), ("Z", 0), ("2", 0), ("", 0), (" ", 0), (".", 0), ("()", 0), ("Option B", 0)],
    *[("the answer is B", 0), ("B is right", 0), ("**B**", 0), ("\\boxed{B}", 0), ("Ly on", 0)],
    *[("Lyo", 0), ("Lyon, Nice", 0), ("\u0392", 0), ("\uff22", 0), ("B" * 5000, 0), ("a big town", 0)],
]  # fmt: skip


@pytest.mark.parametrize(("text", "score"), CHOICES)
@pytest.mark.parametrize("gold", ["B", "Lyon", "(b)"])
def test_what_a_choice_is_worth(text: str, score: int, gold: str) -> None:
    assert verifier("choice").score(f"<answer>{text}</answer>", gold, TOWNS) == score


@pytest.mark.parametrize(
    ("options", "gold"),
    [
        (["x", "x", "y"], "x"),  # twice, as text and as letter
        (["x", "X ", "y"], "A"),
        (["x", "y"], "z"),
        (["x", "y"], "C"),
        (["B", "A"], "A"),  # its text is the other's letter
        ([], "A"),
    ],
)
def test_options_that_hold_the_gold_twice_or_not_at_all_are_no_gold(
    options: list[str], gold: str
) -> None:
    choice = verifier("choice")
    assert not choice.can_parse(gold, {"options": options})
    with pytest.raises(ValueError, match="not one of the row's options"):
        choice.wrong(gold, {"options": options})


@pytest.mark.parametrize(
    ("raw", "answer", "settings", "brought"),
    [
        ({"options": ["x", "y"]}, "B", {}, ("B", ["x", "y"])),
        ({"options": {"A": "x", "B": "y"}}, "y", {}, ("y", ["x", "y"])),
        ({"choices": {"text": ["x", 2], "label": ["1", "2"]}}, "x", {"options": "choices"},
         ("x", ["x", "2"])),
        ({"q": {"o": ["x", "y"]}}, "x", {"options": "q.o"}, ("x", ["x", "y"])),
        ({"options": ["x", "y"]}, "1", {"index_from": 0}, ("B", ["x", "y"])),
        ({"options": ["x", "y"]}, "1", {"index_from": 1}, ("A", ["x", "y"])),
    ],
)  # fmt: skip
def test_options_are_read_as_data_sets_hold_them(
    raw: dict[str, Any], answer: str, settings: dict[str, Any], brought: tuple[str, list[str]]
) -> None:
    found = verifier("choice", **settings).bring(raw, answer)
    assert found == (brought[0], {"options": brought[1]})


@pytest.mark.parametrize(
    ("raw", "settings", "why"),
    [
        ({}, {}, "no column options"),
        ({"options": "x"}, {}, "options are a str"),
        ({"options": ["x"]}, {}, "1 options instead of 2 to 26"),
        ({"options": ["x", None]}, {}, "an option is None"),
        ({"options": ["x"] * 27}, {}, "27 options"),
        ({"options": ["x", "y"]}, {"index_from": 1}, "answer 'B' is no number from 1 to 2"),
    ],
)
def test_options_that_cannot_be_read_are_refused(
    raw: dict[str, Any], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        verifier("choice", **settings).bring(raw, "B")


WORDS = [
    *[("New York", 1), ("new york", 1), ("NEW YORK", 1), (" New  York ", 1), ("New\nYork", 1)],
    *[("New York.", 1), ("New\u00a0York", 1), ("\nNew York\n", 1), ("NEW YORK.", 1)],
    *[("NewYork", 0), ("New-York", 0), ("New York City", 0), ("the New York", 0), ("York", 0)],
    *[("New York!", 0), ("New York..", 0), ('"New York"', 0), ("**New York**", 0), ("N.Y.", 0)],
    *[("", 0), (" ", 0), (".", 0), ("New York or Boston", 0), ("not New York", 0), ("New Yørk", 0)],
    *[("Néw York", 0), ("New York New York", 0), ("It is New York", 0), ("New York, NY", 0)],
    *[("\\boxed{New York}", 0), ("<b>New York</b>", 0), ("New Yorc", 0), ("Nueva York", 0)],
    *[("New\u200bYork", 0), ("\uff2eew York", 0), ("New York\u0301", 0), ("Boston", 0), ("x" * 9999, 0)],
    *[("New York" * 2000, 0), ("new york ,", 0), ("(New York)", 0), ("New_York", 0), ("New\tYork", 1)],
]  # fmt: skip


@pytest.mark.parametrize(("text", "score"), WORDS)
def test_what_a_text_is_worth(text: str, score: int) -> None:
    assert verifier("exact_text").score(f"<answer>{text}</answer>", "New York") == score


@pytest.mark.parametrize(
    ("normalise", "text", "gold", "score"),
    [
        ([], "New York", "New York", 1),
        ([], "new York", "New York", 0),
        ([], "New  York", "New York", 0),
        (["case"], "STRASSE", "straße", 1),
        (["punctuation"], "N.Y.!", "NY", 1),
        (["articles", "case", "space"], "The  Rolling Stones", "rolling stones", 1),
        (["articles"], "theatre", "atre", 0),
        (["accents"], "cafe", "café", 1),
        (["accents"], "cafe\u0301", "café", 1),
        ([], "cafe\u0301", "café", 1),
    ],
)
def test_texts_are_normalised_as_the_profile_says(
    normalise: list[str], text: str, gold: str, score: int
) -> None:
    exact = verifier("exact_text", normalise=normalise)
    assert exact.score(f"<answer>{text}</answer>", gold) == score


EACH = [
    (NUMBER, "2.5", "3.5", {}),
    (verifier("choice"), "B", "A", TOWNS),
    (verifier("exact_text"), "New York", "Boston", {}),
]
each = pytest.mark.parametrize(("one", "gold", "other", "row"), EACH, ids=lambda x: str(x)[:12])


@each
def test_an_answer_is_what_stands_in_the_tag_after_the_reasoning(
    one: Verifier, gold: str, other: str, row: dict[str, Any]
) -> None:
    right, wrong = one.render(gold), one.render(other)
    for completion in (
        right,
        f"<think>{wrong} or <answer> tags</think>\n{right}",
        f"So: {right}",
        f"{right}\n{right}",
        f"{right}<answer>{other[:1]}",  # cut off at the end
    ):
        assert one.score(completion, gold, row) == 1, completion
    for completion in (
        "",
        gold,
        f"The answer is {gold}",
        wrong,
        f"{right}{wrong}",
        f"{wrong}{right}",
        f"<answer>{gold}",
        f"<think>{right}</think>",
        f"<answer>{gold}<answer>{gold}</answer>",
        f"<Answer>{gold}</Answer>",
        one.render(f"{gold} or {other}"),
    ):
        assert one.score(completion, gold, row) == 0, completion
    assert one.is_formatted(f"<think>x < 3</think>\n{right}.", row)
    assert one.is_formatted(wrong, row)
    assert not one.is_formatted(f"So: {right}", row)
    assert not one.is_formatted("<answer></answer>", row)


@each
def test_the_self_tests_wrong_answer_is_wrong_and_parsed(
    one: Verifier, gold: str, other: str, row: dict[str, Any]
) -> None:
    wrong = one.wrong(gold, row)
    assert one.can_parse(wrong, row)
    assert one.score(one.render(wrong), gold, row) == 0
    assert one.score(one.render(gold), wrong, row) == 0


@each
def test_any_of_several_gold_answers_counts(
    one: Verifier, gold: str, other: str, row: dict[str, Any]
) -> None:
    row = row | {"golds": [gold, other]}
    assert one.score(one.render(other), gold, row) == 1
    assert one.score(one.render(gold) + one.render(other), gold, row) == 0
    assert one.score(one.render(one.wrong(gold, row)), gold, row) == 0
    assert not one.can_parse(gold, row | {"golds": [gold, ""]}), "every one must be parsed"


def test_a_wide_tolerance_makes_the_wrong_answer_right() -> None:
    wide, useful = verifier("number", tolerance=100.0), verifier("number", tolerance=5.0)
    assert wide.score(wide.render(wide.wrong("7")), "7") == 1, "which the gate refuses"
    assert useful.score(useful.render(useful.wrong("7")), "7") == 0


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("number", {"tolerance": -1.0}, "tolerance"),
        ("number", {"relative": 1.0}, "relative"),
        ("number", {"units": ["kg"]}, "units"),
        ("choice", {"index_from": 2}, "index_from"),
        ("exact_text", {"normalise": ["cases"]}, "normalise"),
        ("exact_int", {"tolerance": 1.0}, "tolerance"),
        ("none", {"tolerance": 1.0}, "tolerance"),
    ],
)
def test_settings_that_a_verifier_does_not_have_are_refused_by_name(
    name: str, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(Refused, match=rf"prepare\.verifier_settings.*{why}"):
        get_verifier(name, settings)


def test_a_verifiers_label_says_its_settings() -> None:
    assert label({"verifier": "exact_int"}) == "exact_int"
    dataset = {"verifier": "number", "verifier_settings": {"tolerance": 0.1}}
    assert label(dataset) == "number (tolerance: 0.1)"
    own = {"verifier": "custom.verifiers:Own", "verifier_code": "0123456789abcdef"}
    assert label(own) == "custom.verifiers:Own (code: 0123456789ab)"


@each
@BY_CHANCE
@given(completion=texts, answer=st.one_of(st.none(), texts))
def test_nothing_breaks_a_verifier_and_no_completion_without_the_answer_scores(
    one: Verifier, gold: str, other: str, row: dict[str, Any], completion: str, answer: str | None
) -> None:
    assert isinstance(one.is_formatted(completion, row), bool)
    score = one.score(completion, answer, row)
    assert score in (0.0, 1.0)
    if score:
        assert re.search(r"<answer>.+</answer>", completion, re.DOTALL)
        assert one.extract(completion, row) in one.golds(answer, row)
    # No text around it makes an answer that is not stated.
    bare = completion.replace("<answer>", "")
    assert one.score(bare, gold, row) == 0


@each
@BY_CHANCE
@given(
    answer=st.one_of(st.decimals(allow_nan=False, allow_infinity=False).map("{:f}".format), texts)
)
def test_a_gold_that_is_parsed_passes_the_self_test(
    one: Verifier, gold: str, other: str, row: dict[str, Any], answer: str
) -> None:
    if not one.can_parse(answer, row) or "answer>" in answer or "think>" in answer:
        return
    wrong = one.wrong(answer, row)
    assert one.score(one.render(answer), answer, row) == 1
    assert one.score(one.render(wrong), answer, row) == 0
    assert one.score(one.render(answer) + one.render(wrong), answer, row) == 0


@each
@pytest.mark.parametrize(
    "piece", ["<answer>", "</answer>", "<think>", "<answer>7", "<answer>7</answer>", " ", "7", "a "]
)
def test_reading_takes_time_linear_in_the_length(
    one: Verifier, gold: str, other: str, row: dict[str, Any], piece: str
) -> None:
    import time

    for start in ("", "<answer>", "<think>"):
        completion = start + piece * 40_000
        began = time.process_time()
        one.score(completion, gold, row)
        one.is_formatted(completion, row)
        assert time.process_time() - began < 2, (start, piece)
