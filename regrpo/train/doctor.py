"""The GRPO doctor.

Rules over the logged history that tell a sick run from a healthy one, and what to change.

The signs are those TRL's documentation and the DAPO paper (Yu et al. 2025, arXiv:2503.14476,
sections 3.1 to 3.4) name: groups without variance, entropy collapse, clipped completions, exploding
gradients and lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, float]
"""One logging step: `step` and the metrics as TRL names them."""


@dataclass(frozen=True)
class Rule:
    """`find` gets the rows that hold `metric` and returns the rows at which the rule fires."""

    name: str
    what: str
    metric: str
    change: str
    find: Callable[[Sequence[Row]], list[Row]]
    fatal: bool = False


def _above(metric: str, limit: float) -> Callable[[Sequence[Row]], list[Row]]:
    return lambda rows: [row for row in rows if row[metric] > limit]


def _sustained(sick: Callable[[Row], bool], length: int) -> Callable[[Sequence[Row]], list[Row]]:
    """Rows in runs of at least `length` logged steps that are all sick."""

    def find(rows: Sequence[Row]) -> list[Row]:
        found: list[Row] = []
        run: list[Row] = []
        for row in [*rows, None]:
            if row is not None and sick(row):
                run.append(row)
            else:
                found += run if len(run) >= length else []
                run = []
        return found

    return find


def _no_reward(rows: Sequence[Row]) -> list[Row]:
    late = [row for row in rows if row["step"] >= 20]
    return late if late and all(row["reward"] == 0 for row in rows) else []


def _relative(
    metric: str, factor: float, above: bool, length: int
) -> Callable[[Sequence[Row]], list[Row]]:
    """Sustained departure from the mean of the first five logged values by a factor."""

    def find(rows: Sequence[Row]) -> list[Row]:
        start = sum(row[metric] for row in rows[:5]) / len(rows[:5])
        sick = (
            (lambda row: row[metric] > factor * start)
            if above
            else (lambda row: row[metric] < factor * start)
        )
        return _sustained(sick, length)(rows[5:])

    return find


def _gaming(rows: Sequence[Row]) -> list[Row]:
    """Dev accuracy 0.1 or more under its best (three standard errors of 100 questions near 0.9), the reward higher."""
    rows = [
        row for row in rows if "reward" in row
    ]  # the measurement before the first step has none
    best = max(rows, key=lambda row: row["dev_accuracy"], default={})
    return [
        row
        for row in rows
        if row["step"] > best["step"]
        and row["dev_accuracy"] <= best["dev_accuracy"] - 0.1
        and row["reward"] > best["reward"]
    ]


RULES = (
    Rule(
        "not_finite",
        "NaN or infinity in any metric",
        "step",
        "learning_rate (lower), max_grad_norm (lower), bf16",
        lambda rows: [
            row for row in rows if not all(math.isfinite(value) for value in row.values())
        ],
        fatal=True,
    ),
    Rule(
        "no_reward",
        "mean reward still 0 after 20 steps",
        "reward",
        "reward_funcs (is the asked format reachable?), sft.max_steps (a longer warm start), temperature",
        _no_reward,
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
        _relative("entropy", 0.05, above=False, length=10),
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
        _relative("completions/mean_length", 3, above=True, length=5),
    ),
    Rule(
        "reward_without_accuracy",
        "reward above, dev accuracy 0.1 or more below the best measurement's",
        "dev_accuracy",
        "reward_funcs (is the reward being gamed?), beta (above 0), max_steps (fewer)",
        _gaming,
    ),
)


def examine(history: Sequence[Row]) -> dict[str, Any]:
    """health.json.

    Per rule fired, clear or not_applicable (TRL logged no such metric), the steps, what to change.
    """
    rules = [_apply(rule, history) for rule in RULES]
    fired = [rule for rule in rules if rule["verdict"] == "fired"]
    fatal = {rule.name for rule in RULES if rule.fatal} & {rule["rule"] for rule in fired}
    return {
        "verdict": "fatal" if fatal else "warnings" if fired else "healthy",
        "fired": len(fired),
        "rules": rules,
    }


def _apply(rule: Rule, history: Sequence[Row]) -> dict[str, Any]:
    finite = rule.name == "not_finite"
    rows = [
        row for row in history if rule.metric in row and (finite or math.isfinite(row[rule.metric]))
    ]
    found = rule.find(rows) if rows else []
    values = [row[rule.metric] for row in found]
    worst = None if finite or not values else min(values) if rule.name in _LOW else max(values)
    return {
        "rule": rule.name,
        "what": rule.what,
        "verdict": "fired" if found else "clear" if rows else "not_applicable",
        "steps": [int(row["step"]) for row in found],
        "worst": worst,
        "change": rule.change,
    }


_LOW = ("no_reward", "entropy_collapse", "reward_without_accuracy")
"""Rules whose worst value is the lowest."""
