"""The rule over the history: when it ends a run, and when it does not."""

from __future__ import annotations

from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.core.profiles import parse_section
from regrpo.train.doctor import EarlyStopping


def rows(*rewards: float, **more: list[float]) -> list[dict[str, float]]:
    return [
        {"step": float(5 * number), "reward": reward}
        | {name: values[number - 1] for name, values in more.items()}
        for number, reward in enumerate(rewards, start=1)
    ]


def step(rule: EarlyStopping, history: list[dict[str, float]]) -> int | None:
    verdict = rule.verdict(history)
    return verdict["step"] if verdict else None


def test_patience_counts_logged_steps_without_a_new_best() -> None:
    rule = EarlyStopping(reward_patience=3, smoothing=1)
    assert step(rule, rows(0.1, 0.2, 0.2, 0.1, 0.2, 0.9)) == 25, (
        "the third logged step after the best, an equal is none"
    )
    assert step(rule, rows(0.1, 0.2, 0.2, 0.1, 0.3, 0.1, 0.1)) is None
    assert step(rule, rows(-0.9, -0.8, -0.9, -0.9, -0.9)) == 25, "rewards may be negative"


def test_the_mean_of_the_last_rewards_is_watched_once_there_are_enough() -> None:
    rule = EarlyStopping(reward_patience=2, smoothing=3)
    assert step(rule, rows(0.9, 0.1, 0.1, 0.2, 0.2)) == 25
    assert step(rule, rows(0.9, 0.1, 0.1, 0.2)) is None
    assert step(rule, rows(0.1, 0.9, 0.1, 0.3, 0.9, 0.4)) is None, (
        "the mean still rises where single rewards fall"
    )


def test_a_ceiling_on_kl_ends_the_run_at_once() -> None:
    rule = EarlyStopping(kl_ceiling=0.5)
    verdict = rule.verdict(rows(1, 2, 3, kl=[0.1, 0.6, 0.1]))
    assert verdict == {"reason": "KL divergence 0.6 above the ceiling 0.5", "step": 10}
    assert step(rule, rows(1, 1, 1, 1, 1, 1, kl=[0.5] * 6)) is None


def test_the_verdict_does_not_change_with_what_comes_after_it() -> None:
    rule = EarlyStopping(reward_patience=2, smoothing=1)
    history = rows(0.5, 0.4, 0.3, 0.9)
    assert [step(rule, history[:length]) for length in range(5)] == [None, None, None, 15, 15]


def test_a_measurement_without_a_reward_is_no_logged_step() -> None:
    rule = EarlyStopping(reward_patience=1, smoothing=1)
    assert step(rule, [{"step": 0.0, "dev_accuracy": 0.2}, *rows(0.5)]) is None


@pytest.mark.parametrize(
    "values", [{}, {"smoothing": 3}, {"reward_patience": 0}, {"kl_ceiling": -1.0}, {"patience": 3}]
)
def test_a_rule_that_watches_nothing_or_is_misspelled_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"grpo\.early_stopping"):
        parse_section(EarlyStopping, values, "grpo.early_stopping")
