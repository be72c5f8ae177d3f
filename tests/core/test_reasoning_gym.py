# ruff: noqa: E501  (tables)
"""The verifier `reasoning_gym`: what answers are worth to the scorers of its tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")

from hypothesis import given

from regrpo.core.answers import reasoning_gym
from regrpo.core.answers.reasoning_gym import ENTRY, ReasoningGym
from regrpo.core.errors import Refused
from regrpo.core.verifiers import get_verifier
from regrpo.inputs.examples import Plan, kept_columns, read_part
from regrpo.inputs.formats import get_format
from regrpo.inputs.sources import ReasoningGym as Source
from regrpo.train.rewards import exact_answer
from stages.eval_tasks import heldout
from tests.support.chance import BY_CHANCE, texts

SCORER = ReasoningGym()
PLAN = Plan(seed=7, format="reasoning_gym", dev=1, sft=0)


def row(task: str, answer: str, **metadata: Any) -> dict[str, Any]:
    entry = {"task": task, "config": {}, "question": "?", "answer": answer, "metadata": metadata}
    return {"answer": answer, ENTRY: json.dumps(entry)}


def prepared(task: str, count: int, **config: Any) -> list[dict[str, Any]]:
    source = Source(kind="reasoning_gym", task=task, size=count, config=config, license="MIT")
    read = read_part(source.rows(7), PLAN, get_format("reasoning_gym"), "train")
    return [one | {ENTRY: one["raw"][ENTRY]} for one in read]


GCD = row("gcd", "12")
PRODUCT = row("products", "1234")
FACTORS = row("prime_factorization", "2 × 2 × 3")
DECIMAL = row("decimal_chain_sum", "-1.50")
PATH = row("shortest_path", "right down right", matrix=[list("*OX"), list("OO#"), list("XOO")])
SORTED = row("word_sorting", "ant, bee", sorted_words=["ant", "bee"])
WORTH = [
    # Tasks without a scorer of their own: the answer to the letter.
    *[(GCD, "12", 1), (GCD, " 12\n", 1), (GCD, "012", 0), (GCD, "+12", 0), (GCD, "12.", 0), (GCD, "12.0", 0)],
    *[(GCD, "", 0), (GCD, " ", 0), (GCD, "twelve", 0), (GCD, "12 12", 0), (GCD, "12 or 13", 0), (GCD, "It is 12", 0)],
    *[(GCD, "-12", 0), (GCD, "1,2", 0), (GCD, "\uff11\uff12", 0), (GCD, "**12**", 0), (GCD, "120", 0), (GCD, "2", 0)],
    # A number as Python's Decimal reads it, commas aside.
    *[(PRODUCT, "1234", 1), (PRODUCT, "1,234", 1), (PRODUCT, "+1234.00", 1), (PRODUCT, "01234", 1), (PRODUCT, "1.234e3", 1)],
    *[(PRODUCT, "12,34", 1), (PRODUCT, "1234 ", 1), (PRODUCT, "1234.5", 0), (PRODUCT, "-1234", 0), (PRODUCT, "nan", 0)],
    *[(PRODUCT, "1e999999999", 0), (PRODUCT, "inf", 0), (PRODUCT, "1234 or 1235", 0), (PRODUCT, "2 * 617", 0), (PRODUCT, "", 0)],
    *[(DECIMAL, "-1.5", 1), (DECIMAL, "-1.50", 1), (DECIMAL, "-15e-1", 1), (DECIMAL, "\u22121.5", 0), (DECIMAL, "1.5", 0), (DECIMAL, "-3/2", 0)],
    # Factors in any order; others raise in the scorer.
    *[(FACTORS, "3 × 2 × 2", 1), (FACTORS, "2×2×3", 1), (FACTORS, "2 × 6", 0), (FACTORS, "12", 0), (FACTORS, "2 * 2 * 3", 0), (FACTORS, "x", 0)],
    # Any shortest path.
    *[(PATH, "right down right", 1), (PATH, "down right right", 1), (PATH, "right down", 0), (PATH, "right right down", 0), (PATH, "infeasible", 0), (PATH, "right, down", 0)],
    *[(SORTED, "ant, bee", 1), (SORTED, "ant,bee", 1), (SORTED, "ant bee", 0), (SORTED, "bee, ant", 0), (SORTED, "Ant, bee", 0)],
]  # fmt: skip


@pytest.mark.parametrize(("given", "text", "score"), WORTH)
def test_what_an_answer_is_worth(given: dict[str, Any], text: str, score: int) -> None:
    assert SCORER.score(f"<answer>{text}</answer>", given["answer"], given) == score


def test_another_right_answer_counts_and_half_a_right_one_does_not() -> None:
    [jugs] = prepared("jugs", 1)
    moves = json.loads(jugs["answer"])
    assert SCORER.score(SCORER.render(json.dumps(["empty A", *moves])), jugs["answer"], jugs) == 1
    assert SCORER.score(SCORER.render(json.dumps(moves[:-1])), jugs["answer"], jugs) == 0
    lenient = get_verifier("reasoning_gym", {"threshold": 0.4})
    assert lenient
    for verifier, worth in ((SCORER, 0), (lenient, 1)):
        assert verifier.score("<answer>2 × 6</answer>", "2 × 2 × 3", FACTORS) == worth


def test_reward_and_held_out_task_judge_by_the_rows_own_entry() -> None:
    rows = prepared("count_bits", 3, max_n=20)
    answers = [one["answer"] for one in rows]
    said = [SCORER.render(answer) for answer in answers[::-1]]
    right = [float(one == other) for one, other in zip(answers, answers[::-1], strict=True)]
    assert 0 < sum(right) < 3, "the middle one is right"
    columns = {ENTRY: [one[ENTRY] for one in rows]}
    assert exact_answer(SCORER, said, answers, **columns) == right
    named = json.dumps({"verifier": "reasoning_gym", "verifier_settings": None})
    for one, completion, score in zip(rows, said, right, strict=True):
        doc = one | {"verifier": named, "opening": ""}
        assert heldout.score(doc, [completion]) == {"accuracy": score, "format": 1.0}


def test_an_entry_keeps_what_its_scorer_needs() -> None:
    [one] = prepared("decimal_arithmetic", 1, min_num_decimal_places=2, max_num_decimal_places=2)
    entry = json.loads(one[ENTRY])
    assert entry["config"] == {"min_num_decimal_places": 2, "max_num_decimal_places": 2}
    assert (entry["question"], entry["answer"]) == (one["question"], one["answer"])
    assert kept_columns(PLAN) == [ENTRY]
    scorer = reasoning_gym.scorer(entry["task"], entry["config"])
    assert scorer is reasoning_gym.scorer(entry["task"], entry["config"]), "made once"
    assert scorer.config.max_num_decimal_places == 2


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (GCD, "13"),  # another gold than the entry's
        (GCD | {"golds": ["12", "13"]}, "12"),
        ({}, "12"),
        (row("gcd", ""), ""),
        (row("gcd", "12"), None),
    ],
)
def test_the_gold_is_the_entrys_own(given: dict[str, Any], answer: str | None) -> None:
    assert not SCORER.can_parse(answer, given)
    assert SCORER.score("<answer>12</answer>", answer, given) == 0


@pytest.mark.parametrize(
    ("gold", "wrong"), [("12", "22"), ("True", "Urue"), ("- 9z", "- 0z"), ("Zoo", "Aoo"), ("[]", "[][]")]
)  # fmt: skip
def test_the_self_tests_wrong_answer_differs_in_one_character(gold: str, wrong: str) -> None:
    assert SCORER.wrong(gold, row("gcd", gold)) == wrong


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("countdown", "runs the answer as Python code"),
        ("bitwise_arithmetic", "runs text of the data as Python code"),
        ("coin_flip", "all time and memory"),
        ("gsm_symbolic", "counts an answer that other words surround"),
        ("rubiks_cube", "come without an answer"),
        ("gcd2", "never tried"),
    ],
)
def test_a_task_whose_scorer_does_not_hold_is_refused_by_name(task: str, why: str) -> None:
    with pytest.raises(Refused, match=rf"prepare\.source\.task.*{task}: .*{why}"):
        SCORER.bring({"task": task, "config": {}, "question": "", "answer": "", "metadata": {}}, "")
    with pytest.raises(Refused, match=why):  # nor from a prepared file
        SCORER.score("<answer>1+2</answer>", "1+2", row(task, "1+2"))


def test_rows_of_another_source_have_no_entry() -> None:
    with pytest.raises(ValueError, match="no column task, config, metadata"):
        SCORER.bring({"question": "?", "answer": "1"}, "1")


@pytest.mark.parametrize("threshold", [0.0, 1.5, "1"])
def test_a_threshold_is_a_number_above_0_up_to_1(threshold: object) -> None:
    with pytest.raises(Refused, match=r"prepare\.verifier_settings.*threshold"):
        get_verifier("reasoning_gym", {"threshold": threshold})


def test_a_scorer_prints_nothing_and_long_answers_are_not_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [hanoi] = prepared("tower_of_hanoi", 1)
    entry, gold = json.loads(hanoi[ENTRY]), hanoi["answer"]
    unknown = gold.replace(f"Peg {entry['metadata']['start_peg']}", "Peg 9")
    assert SCORER.score(SCORER.render(unknown), gold, hanoi) == 0
    assert capsys.readouterr().out == ""
    assert SCORER.score(SCORER.render(gold), gold, hanoi) == 1
    for longest in (GCD, hanoi):
        million = "7" * 1_000_000
        assert SCORER.parse(million, longest) is None
        assert SCORER.score(SCORER.render(million), longest["answer"], longest) == 0


def test_two_answers_that_differ_are_none_and_thoughts_do_not_count() -> None:
    for completion, score in {
        "<think><answer>13</answer></think><answer>12</answer>": 1,
        "<answer>12</answer> <answer>12</answer>": 1,
        "<answer>12</answer><answer>13</answer>": 0,
        "<think>12</think>": 0,
        "12": 0,
        "<answer>12": 0,
        "": 0,
    }.items():
        assert SCORER.score(completion, "12", GCD) == score, completion


@BY_CHANCE
@given(completion=texts, answer=texts)
@pytest.mark.parametrize("one", [GCD, PRODUCT, FACTORS, DECIMAL, PATH, SORTED], ids=range(6))
def test_nothing_breaks_a_scorer_and_no_completion_without_the_answer_scores(
    one: dict[str, Any], completion: str, answer: str
) -> None:
    for said in (completion, SCORER.render(completion)):
        assert isinstance(SCORER.is_formatted(said, one), bool)
        assert SCORER.score(said, answer, one) in (0.0, 1.0)
    assert SCORER.score(completion.replace("<answer>", ""), one["answer"], one) == 0
    if SCORER.score(SCORER.render(answer), one["answer"], one):
        assert any(character in answer for character in "0123456789b")
