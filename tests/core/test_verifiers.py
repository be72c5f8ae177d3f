"""What counts as a correct answer."""

import random
import time

import pytest

from regrpo.core.answers.integers import parse_int
from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import Refused
from regrpo.core.verifiers import VERIFIERS, get_verifier

INTEGERS = ("exact_int", "final_number")
ALL = pytest.mark.parametrize("verifier", [VERIFIERS[name] for name in INTEGERS], ids=INTEGERS)
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
    assert all(one.score(one.render(endless), "9") == 0 for one in map(VERIFIERS.get, INTEGERS))


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
        Refused, match=r"expected one of exact_int, final_number, number, .*, none; found 'exact'"
    ):
        get_verifier("exact")


# (completion, score for gold 24, in the asked format)
SPELLINGS = {
    "exact_int": [
        ("<answer>24</answer>", 1, 1),
        ("<think>20+4</think><answer>24</answer>", 1, 1),
        # R1's habit: line breaks between and inside the blocks
        ("<think>20+4</think>\n<answer>24</answer>", 1, 1),
        ("<think>\n20+4\n</think>\n\n<answer>\n24\n</answer>", 1, 1),
        ("\n<think>\n20+4\n</think>\n\n<answer> 24 </answer>\n", 1, 1),
        ("<think>20+4</think>\r\n<answer>24</answer>\r\n", 1, 1),
        # Qwen 3 without thinking
        ("<think>\n\n</think>\n\n<answer>24</answer>", 1, 1),
        ("<think></think><answer>24</answer>", 1, 1),
        # signs and markup in the reasoning
        ("<think>0 < 24 and 24 > 4</think><answer>24</answer>", 1, 1),
        ("<think>x <- 20; y <= 4; <b>add</b></think><answer>24</answer>", 1, 1),
        ("<think>\n#### Step 1\n**20** + $4$ = \\boxed{24}\n</think>\n<answer>24</answer>", 1, 1),
        ("<think>The result goes into <answer> tags.</think><answer>24</answer>", 1, 1),
        ("<think>Between <answer> and </answer> stands 24.</think><answer>24</answer>", 1, 1),
        ("<think>e.g. <answer>...</answer></think><answer>24</answer>", 1, 1),
        ("<think>so <answer>24</answer></think><answer>24</answer>", 1, 1),
        ("<think>maybe <answer>20</answer></think><answer>24</answer>", 0, 0),
        # a full stop, a sign, separators
        ("<answer>24.</answer>", 1, 1),
        ("<answer>24</answer>.", 1, 1),
        ("<answer>+24</answer>", 1, 1),
        ("<answer>024</answer>", 1, 1),
        ("<answer>24..</answer>", 0, 0),
        ("<answer>24.0</answer>", 0, 0),
        ("<answer>2,4</answer>", 0, 0),
        # the answer dressed up: Qwen's box, Gemma's bold, units
        ("<answer>\\boxed{24}</answer>", 0, 0),
        ("<answer>**24**</answer>", 0, 0),
        ("<answer>$24$</answer>", 0, 0),
        ("<answer>24 apples</answer>", 0, 0),
        ("<answer>The answer is 24</answer>", 0, 0),
        ("<answer>\\boxed{20}</answer>\n<answer>24</answer>", 1, 0),
        ("\\boxed{24}", 0, 0),
        ("**24**", 0, 0),
        # text around the blocks
        ("20+4 = 24. <answer>24</answer>", 1, 0),
        ("<answer>24</answer> That is my answer.", 1, 0),
        ("<answer>24</answer>\n<answer>24</answer>", 1, 0),
        ("<think>20+4</think>So: <answer>24</answer>", 1, 0),
        ("```\n<answer>24</answer>\n```", 1, 0),
        ("20+4</think><answer>24</answer>", 1, 0),
        ("<think>20+4<answer>24</answer>", 1, 0),
        ("<think>20<think>+4</think><answer>24</answer>", 1, 0),
        # two answers, or one that does not end
        ("<answer>24</answer><answer>25</answer>", 0, 0),
        ("<answer>25</answer><answer>24</answer>", 0, 0),
        ("<answer>24</answer><answer>2", 1, 0),
        ("<answer>20</think><answer>24</answer>", 0, 0),
        ("<answer><think>20+4</think><answer>24</answer>", 0, 0),
        ("<answer>25</answer>", 0, 1),
        ("<Answer>24</Answer>", 0, 0),
        ("<answer></answer>", 0, 0),
        ("<answer>20 + 4</answer>", 0, 0),
    ],
    "final_number": [
        ("#### 24", 1, 1),
        ("20+4 = 24\n#### 24", 1, 1),
        ("20+4 = 24\n#### 24\n", 1, 1),
        ("20+4 = 24\r\n#### 24\r\n", 1, 1),
        ("20+4 = 24 #### 24", 1, 1),
        ("####24", 1, 1),
        ("#### 24.", 1, 1),
        ("#### +24 ", 1, 1),
        ("#### Step 1\nAdd.\n#### 24", 1, 1),
        ("### Plan\n#### 1. Add\n#### Result\n#### 24", 1, 1),
        ("#### Answer:\n#### 24", 1, 1),
        ("#### 24\n#### 24", 1, 1),
        ("#### 20\n#### 24", 0, 0),
        ("#### 24\nSo she has 24.", 1, 0),
        ("#### 24\n\nQuestion: 1+1?\nAnswer: 2\n#### 2", 0, 0),
        ("#### $24", 0, 0),
        ("#### 24 apples", 0, 0),
        ("#### **24**", 0, 0),
        ("##### 24", 0, 0),
        ("####\n24", 0, 0),
        ("The answer is 24.", 0, 0),
        ("#### 25", 0, 1),
    ],
}


@pytest.mark.parametrize(
    ("name", "completion", "score", "is_formatted"),
    [(name, *row) for name, rows in SPELLINGS.items() for row in rows],
)
def test_score_and_format_of_what_models_write(
    name: str, completion: str, score: int, is_formatted: int
) -> None:
    verifier = VERIFIERS[name]
    found = (verifier.score(completion, "24"), verifier.is_formatted(completion))
    assert found == (score, bool(is_formatted))


@ALL
def test_what_is_in_the_asked_format_states_an_answer(verifier: Verifier) -> None:
    tags = ("<think>", "</think>", "<answer>", "</answer>", "<answer>7</answer>", "####")
    pieces = (*tags, "7", "8", "x", " ", "\n", ".")
    draw = random.Random(0)
    formatted = 0
    for _ in range(20_000):
        completion = "".join(draw.choices(pieces, k=draw.randint(1, 7)))
        if verifier.is_formatted(completion):
            formatted += 1
            assert verifier.score(completion, str(verifier.extract(completion))) == 1, completion
    assert formatted > 20, "the pieces do meet"


@ALL
@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "<think>",
        "</think>",
        "<answer>7",
        "<answer> ",
        "#### ",
        "####7\n",
        " ",
        "7",
        ".",
    ],
)
def test_reading_takes_time_linear_in_the_length(verifier: Verifier, piece: str) -> None:
    for start in ("", "<answer>", "<think>", "#### "):
        completion = start + piece * 40_000
        began = time.perf_counter()
        verifier.score(completion, "7")
        verifier.is_formatted(completion)
        assert time.perf_counter() - began < 1, (start, piece)
