"""What it takes to be champion: not worse on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from regrpo.compare import promotion_rules
from regrpo.core.errors import CannotCheck

RULE = promotion_rules.Params(task="heldout", max_loss=0.03, alpha=0.05)


def frame(values: Sequence[float], **about: Any) -> pd.DataFrame:
    names = [f"q{n}" for n in range(len(values))]
    made = pd.DataFrame({"prompt": names, "answer": names, "value": values}, index=names)
    made.attrs = {"kind": "binary", "metric": "accuracy", "version": 1.0} | about
    return made


def problems(
    before: Sequence[float], after: Sequence[float], kind: str = "binary", **rule: float
) -> list[str]:
    found = promotion_rules.compare(
        frame(before, kind=kind), frame(after, kind=kind), RULE.model_copy(update=rule)
    )
    return [str(one) for one in found["problems"]]


def test_a_statement_is_one_of_the_card() -> None:
    assert promotion_rules.judge_statement({"statement": {"contact": "us"}})["verdict"] == "holds"
    none = promotion_rules.judge_statement({"model_name": "m"})
    assert none == {
        "rule": "statement",
        "verdict": "fails",
        "text": "none on the card: write model_card.statement",
    }


def test_not_worse_is_an_interval_above_the_margin_and_no_significant_loss() -> None:
    n = 1000
    champion = [1.0] * n
    few = [0.0] * 5 + [1.0] * (
        n - 5
    )  # −0.5 points, interval about −1.0 to −0.1, p = 2 · 0.5^5 = 0.0625
    assert problems(champion, few) == []
    assert problems(champion, few, max_loss=0.005) == [
        "the interval reaches down to -1.0 points; -0.5 points is allowed (promote.max_loss)"
    ]
    assert problems(champion, few, alpha=0.07) == [
        "the loss is significant (McNemar p = 0.062, under 0.07; promote.alpha)"
    ]
    six = [0.0] * 6 + [1.0] * (n - 6)  # p = 2 · 0.5^6 = 0.03
    assert problems(champion, six) == [
        "the loss is significant (McNemar p = 0.031, under 0.05; promote.alpha)"
    ]
    assert problems(six, champion) == [], "a significant gain is no loss"
    assert problems(champion, champion, max_loss=0.0) == []


def test_a_continuous_metric_is_judged_by_its_interval() -> None:
    before = [0.1 * (n % 7) for n in range(200)]
    assert problems(
        before, [value - 0.001 * (n % 3) for n, value in enumerate(before)], "continuous"
    ) == ["the loss is significant (interval below 0; promote.alpha)"]
    assert (
        problems(before, [value + 0.001 * (n % 3) for n, value in enumerate(before)], "continuous")
        == []
    )


def test_other_metrics_and_a_changed_question_are_not_compared() -> None:
    values = [1.0, 0.0, 1.0]
    with pytest.raises(CannotCheck, match="the same metric"):
        promotion_rules.compare(frame(values), frame(values, metric="format"), RULE)
    changed = frame(values)
    changed.loc["q1", "prompt"] = "another"
    with pytest.raises(CannotCheck, match="found 2 shared of 3 here and 3 there"):
        promotion_rules.compare(frame(values), changed, RULE)
    with pytest.raises(CannotCheck, match="found 2 shared of 2 here and 3 there"):
        promotion_rules.compare(frame(values), frame(values[:2]), RULE)
