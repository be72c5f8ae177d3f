"""What counts as a correct answer."""

import pytest

from regrpo.core.errors import Refused
from regrpo.core.verifiers import VERIFIERS, Verifier, get_verifier, parse_int

ALL = pytest.mark.parametrize("verifier", VERIFIERS.values(), ids=VERIFIERS)
GOLDS = pytest.mark.parametrize(
    "gold", ["0", "-0", "7", "-12", "+3", "1,234", "1234567890123456789012345"]
)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), (" -7\n", -7), ("+7", 7), ("007", 7), ("1,234,567", 1234567), ("-1,234", -1234)],
)
def test_an_integer_is_read(text: str, value: int) -> None:
    assert parse_int(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "7.0",
        "7 0",
        "1,23",
        "12,34",
        "1234,567",
        "$7",
        "7%",
        "seven",
        "٧",
        "７",
        "²",
        "--7",
        "0x7",
        "1e3",
        "3 + 5",
    ],
)
def test_what_is_no_plain_integer_is_not_read(text: str) -> None:
    assert parse_int(text) is None


def test_a_completion_of_endless_digits_is_wrong_and_does_not_raise() -> None:
    endless = "9" * 5000
    assert parse_int(endless) is None
    assert all(one.score(one.render(endless), "9") == 0 for one in VERIFIERS.values())


@ALL
@GOLDS
def test_gold_scores_1_and_what_is_not_gold_scores_0(verifier: Verifier, gold: str) -> None:
    right, wrong = verifier.render(gold), verifier.render(verifier.wrong(gold))
    assert verifier.can_parse(gold)
    assert verifier.score(right, gold) == 1
    assert (
        verifier.score(f"some reasoning\n{right}\n{right}", gold) == 1
    )  # said twice is no contradiction
    assert verifier.is_formatted(right)
    for completion in (
        "",
        gold,
        wrong,
        f"{right}\n{wrong}",
        f"{wrong}\n{right}",
        f"The answer is {gold}",
    ):
        assert verifier.score(completion, gold) == 0, completion


@ALL
def test_reasoning_before_the_answer_is_in_the_asked_format_and_other_text_after_it_is_not(
    verifier: Verifier,
) -> None:
    opening = verifier.reasoning_opening
    reasoning = f"{opening}3{'</think>' if '<think>' in opening else ''}"
    assert verifier.is_formatted(f"{reasoning}{verifier.render('7')}")
    assert not verifier.is_formatted(f"{verifier.render('7')} or so")
    assert not verifier.is_formatted(verifier.render("seven"))


@ALL
@pytest.mark.parametrize("gold", [None, "", "seven", "7.5"])
def test_a_gold_answer_that_cannot_be_parsed_never_scores(
    verifier: Verifier, gold: str | None
) -> None:
    assert not verifier.can_parse(gold)
    assert verifier.score(verifier.render("7"), gold) == 0
    if gold is not None:
        assert verifier.score(verifier.render(gold), gold) == 0
        with pytest.raises(ValueError, match="not an integer"):
            verifier.wrong(gold)


@pytest.mark.parametrize(
    "completion",
    ["<answer>7", "7</answer>", "<answer>3 + 4</answer>", "<answer>8<answer>7</answer>"],
)
def test_a_tag_left_open_or_filled_with_more_than_the_answer_scores_0(completion: str) -> None:
    assert VERIFIERS["exact_int"].score(completion, "7") == 0


def test_a_verifier_there_is_not_is_refused_with_the_names_there_are() -> None:
    assert get_verifier("none") is None
    with pytest.raises(
        Refused, match=r"expected one of exact_int, final_number, none; found 'exact'"
    ):
        get_verifier("exact")
