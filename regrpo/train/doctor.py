"""The GRPO doctor: rules over the logged history that tell a sick run from a healthy one.

The signs are those TRL's documentation and the DAPO paper (Yu et al. 2025, arXiv:2503.14476,
sections 3.1 to 3.4) name: groups without variance, entropy collapse, clipped completions, exploding
gradients and lengths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, float]
"""One logging step: `step` and the metrics as TRL names them."""


@dataclass(frozen=True)
class Rule:
    """`find` gets the rows that hold `metric` and returns those at which the rule fires."""

    name: str
    what: str
    metric: str
    change: str
    find: Callable[[Sequence[Row]], list[Row]]
    fatal: bool = False
    low_is_worse: bool = False


def _above(metric: str, limit: float) -> Callable[[Sequence[Row]], list[Row]]:
    return lambda rows: [row for row in rows if row[metric] > limit]


def _sustained(is_sick: Callable[[Row], bool], length: int) -> Callable[[Sequence[Row]], list[Row]]:
    """Rows in runs of at least `length` logged steps that are all sick."""

    def find(rows: Sequence[Row]) -> list[Row]:
        found: list[Row] = []
        for sick, run in itertools.groupby(rows, is_sick):
            together = list(run)
            if sick and len(together) >= length:
                found += together
        return found

    return find


def _departed(
    metric: str, is_sick: Callable[[float, float], bool], length: int
) -> Callable[[Sequence[Row]], list[Row]]:
    """Sustained departure from the start: `is_sick` gets a value and the mean of the first five."""

    def find(rows: Sequence[Row]) -> list[Row]:
        first = rows[:5]
        start = sum(row[metric] for row in first) / len(first)
        return _sustained(lambda row: is_sick(row[metric], start), length)(rows[5:])

    return find


def _not_finite(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not all(map(math.isfinite, row.values()))]


def _no_reward(rows: Sequence[Row]) -> list[Row]:
    if any(row["reward"] != 0 for row in rows):
        return []
    return [row for row in rows if row["step"] >= 20]


def _gamed(rows: Sequence[Row]) -> list[Row]:
    """Rows after the best dev accuracy that are 0.1 or more under it, with a higher reward.

    0.1 is three standard errors of 100 questions near 0.9.
    """
    # The measurement before the first step has no reward.
    measured = [row for row in rows if "reward" in row]
    best = max(measured, key=lambda row: row["dev_accuracy"], default={})
    found = []
    for row in measured:
        lost = row["dev_accuracy"] <= best["dev_accuracy"] - 0.1
        if row["step"] > best["step"] and lost and row["reward"] > best["reward"]:
            found.append(row)
    return found


RULES = (
    Rule(
        "not_finite",
        "NaN or infinity in any metric",
        "step",
        "learning_rate (lower), max_grad_norm (lower), bf16",
        _not_finite,
        fatal=True,
    ),
    Rule(
        "no_reward",
        "mean reward still 0 after 20 steps",
        "reward",
        "reward_funcs (is the asked format reachable?), sft.max_steps (a longer warm start), "
        "temperature",
        _no_reward,
        low_is_worse=True,
    ),
    Rule(
        "no_variance",
        "frac_reward_zero_std at 0.95 or more for 10 logged steps: groups teach nothing",
        "frac_reward_zero_std",
        "num_generations (higher), temperature (higher), harder or easier questions",
        _sustained(lambda row: row["frac_reward_zero_std"] >= 0.95, 10),
    ),
    Rule(
        "entropy_collapse",
        "entropy under 5 % of its start for 10 logged steps",
        "entropy",
        "learning_rate (lower), temperature (higher), epsilon_high (higher), beta (above 0)",
        _departed("entropy", lambda value, start: value < 0.05 * start, 10),
        low_is_worse=True,
    ),
    Rule(
        "kl",
        "KL divergence from the reference above 2",
        "kl",
        "beta (higher), learning_rate (lower)",
        _above("kl", 2),
    ),
    Rule(
        "clip_ratio",
        "more than 0.3 of the tokens clipped",
        "clip_ratio/region_mean",
        "learning_rate (lower), num_iterations (lower), steps_per_generation (lower)",
        _above("clip_ratio/region_mean", 0.3),
    ),
    Rule(
        "truncation",
        "more than 0.8 of the completions cut at max_completion_length",
        "completions/clipped_ratio",
        "max_completion_length (higher), length_penalty among reward_funcs",
        _above("completions/clipped_ratio", 0.8),
    ),
    Rule(
        "grad_norm",
        "gradient norm above 10 (before clipping)",
        "grad_norm",
        "learning_rate (lower), max_grad_norm (lower), warmup_steps (more)",
        _above("grad_norm", 10),
    ),
    Rule(
        "length_explosion",
        "mean length over 3 times its start for 5 logged steps",
        "completions/mean_length",
        "length_penalty among reward_funcs, max_completion_length (lower)",
        _departed("completions/mean_length", lambda value, start: value > 3 * start, 5),
    ),
    Rule(
        "reward_without_accuracy",
        "reward above, dev accuracy 0.1 or more below the best measurement's",
        "dev_accuracy",
        "reward_funcs (is the reward being gamed?), beta (above 0), max_steps (fewer)",
        _gamed,
        low_is_worse=True,
    ),
)


def examine(history: Sequence[Row]) -> dict[str, Any]:
    """health.json: per rule fired, clear or not_applicable (TRL logs no such metric), and steps."""
    rules = [_apply(rule, history) for rule in RULES]
    fired = [rule["rule"] for rule in rules if rule["verdict"] == "fired"]
    verdict = "healthy"
    if fired:
        verdict = "warnings"
    if any(rule.fatal for rule in RULES if rule.name in fired):
        verdict = "fatal"
    return {"verdict": verdict, "fired": len(fired), "rules": rules}


def _apply(rule: Rule, history: Sequence[Row]) -> dict[str, Any]:
    rows = [row for row in history if rule.metric in row]
    # What is not finite is one rule's alone.
    if not rule.fatal:
        rows = [row for row in rows if math.isfinite(row[rule.metric])]
    found = rule.find(rows) if rows else []
    verdict, worst = "clear", None
    if not rows:
        verdict = "not_applicable"
    if found:
        verdict = "fired"
        values = [row[rule.metric] for row in found]
        worst = min(values) if rule.low_is_worse else max(values)
    # The metric of that rule is the step, which is no measure of anything.
    if rule.fatal:
        worst = None
    return {
        "rule": rule.name,
        "what": rule.what,
        "verdict": verdict,
        "steps": [int(row["step"]) for row in found],
        "worst": worst,
        "change": rule.change,
    }
