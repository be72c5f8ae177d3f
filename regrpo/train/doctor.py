"""The GRPO doctor: rules over the logged history that tell a sick run, or one that is to end.

The signs are those TRL's documentation and the DAPO paper (Yu et al. 2025, arXiv:2503.14476,
sections 3.1 to 3.4) name: groups without variance, entropy collapse, clipped completions, exploding
gradients and lengths. That trainer and sampler disagree is told by the two limits of verl's guide
(docs/algo/rollout_corr.md, "Conditional Alerting"): a mean difference of log-probabilities above
0.1 nats a token, and a mean importance weight, whose expectation is 1, under 0.5. (Measured on the
default: weights rounded to bfloat16 are 0.004 nats a token off, those of before grpo 1.28.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from regrpo.core.settings import Problem, Section, invalid

Row = Mapping[str, float]
"""One logging step: `step` and the metrics as TRL names them."""
MAIN_MEAN, MAIN_STD = "main_reward/mean", "main_reward/std"
"""Of the reward that says what is right; `examine` adds them to the rows."""


@dataclass(frozen=True)
class Rule:
    """`find` gets the rows that hold `metric` and returns those at which the rule fires.

    A run with fewer such rows than `needs`, or that ended before step `after`, it cannot judge.
    """

    name: str
    what: str
    metric: str
    change: str
    find: Callable[[Sequence[Row]], list[Row]]
    fatal: bool = False
    low_is_worse: bool = False
    needs: int = 1
    after: int = 0

    def lacking(self, rows: Sequence[Row]) -> str | None:
        """What a run that it cannot judge would need; None for one that it can."""
        if len(rows) < self.needs:
            return f"{self.needs} logged steps with {self.metric}"
        if rows[-1]["step"] < self.after:
            return f"{self.after} steps"
        return None


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


def _alike(are_right: bool) -> Callable[[Sequence[Row]], list[Row]]:
    """Rows of ten or more in which nearly all groups have no variance, right ones or wrong ones."""

    def find(rows: Sequence[Row]) -> list[Row]:
        alike = _sustained(lambda row: row["frac_reward_zero_std"] >= 0.95, 10)(rows)
        return [row for row in alike if _is_mostly_right(row) == are_right]

    return find


def _is_mostly_right(row: Row) -> bool:
    """Whether half of the answers or more earn the main reward.

    Of a reward that is 0 or c, a share p earns c: the mean is p c and the standard deviation
    c √(p (1 - p)), which is the larger one where p is below a half.
    """
    mean, deviation = row.get(MAIN_MEAN, 0.0), row.get(MAIN_STD, 0.0)
    return mean > 0 and mean >= deviation


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


DIFFERENCE_MEAN = "sampling/sampling_logp_difference/mean"
IMPORTANCE_MEAN = "sampling/importance_sampling_ratio/mean"
SAMPLER = (
    "top_p, top_k, min_p and repetition_penalty (1, 0, null and 1), bf16 (fp16 instead), "
    "quantization (null), vllm_model_impl (transformers)"
)
"""What makes vLLM's probabilities others than the trainer's."""
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
        after=20,
    ),
    Rule(
        "no_variance_wrong",
        "frac_reward_zero_std at 0.95 or more for 10 logged steps, most answers wrong: groups "
        "teach nothing",
        "frac_reward_zero_std",
        "the questions (easier), sft.max_steps (a longer warm start), num_generations (higher), "
        "reward_funcs (one for a part of the way)",
        _alike(are_right=False),
        needs=10,
    ),
    Rule(
        "no_variance_right",
        "frac_reward_zero_std at 0.95 or more for 10 logged steps, most answers right: nothing is "
        "left to learn from these questions",
        "frac_reward_zero_std",
        "the questions (harder), max_steps (fewer), temperature (higher)",
        _alike(are_right=True),
        needs=10,
    ),
    Rule(
        "entropy_collapse",
        "entropy under 5 % of its start for 10 logged steps",
        "entropy",
        "learning_rate (lower), temperature (higher), epsilon_high (higher), beta (above 0)",
        _departed("entropy", lambda value, start: value < 0.05 * start, 10),
        low_is_worse=True,
        needs=15,
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
        needs=10,
    ),
    Rule(
        "sampler_difference",
        "log-probabilities of vLLM and of the trainer more than 0.1 nats a token apart (mean)",
        DIFFERENCE_MEAN,
        SAMPLER,
        _above(DIFFERENCE_MEAN, 0.1),
    ),
    Rule(
        "importance_weight",
        "mean importance weight of vLLM's completions under 0.5: half of them count for nothing",
        IMPORTANCE_MEAN,
        f"{SAMPLER}, vllm_importance_sampling_mode (token_truncate)",
        lambda rows: [row for row in rows if row[IMPORTANCE_MEAN] < 0.5],
        low_is_worse=True,
    ),
    Rule(
        "reward_without_accuracy",
        "reward above, dev accuracy 0.1 or more below the best measurement's",
        "dev_accuracy",
        "reward_funcs (is the reward being gamed?), beta (above 0), max_steps (fewer)",
        _gamed,
        low_is_worse=True,
        needs=3,  # before the first step, and two to compare
    ),
)


def examine(history: Sequence[Row], main: str = "") -> dict[str, Any]:
    """health.json: per rule fired, clear, not_judged or not_applicable, and steps.

    Not judged is a run too short for a rule, which then has `needs`; not applicable a metric that
    TRL did not log. `main` names the reward function that says what is right; without it the sum of
    all does.
    """
    rows = [_with_main_reward(row, main) for row in history]
    rules = [_apply(rule, rows) for rule in RULES]
    fired = [rule["rule"] for rule in rules if rule["verdict"] == "fired"]
    verdict = "healthy"
    if fired:
        verdict = "warnings"
    if any(rule.fatal for rule in RULES if rule.name in fired):
        verdict = "fatal"
    return {"verdict": verdict, "fired": len(fired), "rules": rules}


def _with_main_reward(row: Row, main: str) -> Row:
    """A row with the mean and the deviation of the reward that says what is right."""
    metrics = {MAIN_MEAN: f"rewards/{main}/mean", MAIN_STD: f"rewards/{main}/std"}
    if metrics[MAIN_MEAN] not in row:
        metrics = {MAIN_MEAN: "reward", MAIN_STD: "reward_std"}
    return {**row, **{name: row[metric] for name, metric in metrics.items() if metric in row}}


def shortfalls(history: Sequence[Row], rewards: Iterable[str]) -> list[str]:
    """What a training that reached its last step did not do, a sentence each.

    GRPO learns from differences within a group: a reward that never varies teaches nothing.
    """
    measured = [row for row in history if "frac_reward_zero_std" in row]
    if not measured:
        return []
    if all(row["frac_reward_zero_std"] >= 1 for row in measured):
        return ["The reward never varied within a group of completions: GRPO learned from nothing."]
    found = []
    for name in rewards:
        means = [row[f"rewards/{name}/mean"] for row in measured if f"rewards/{name}/mean" in row]
        if not means:
            found.append(f"The reward {name} was None for every completion: it taught nothing.")
        # TRL computes in float32.
        elif max(means) - min(means) < 1e-6 and not any(
            row.get(f"rewards/{name}/std", 0) >= 1e-6 for row in measured
        ):
            found.append(f"The reward {name} was always {means[0]:.4g}: it taught nothing.")
    return found


def lines(health: Mapping[str, Any]) -> list[str]:
    """What of a health.json is to be read when grpo ends."""
    found = []
    for rule in health["rules"]:
        if rule["verdict"] == "fired":
            first, last = rule["steps"][0], rule["steps"][-1]
            found.append(
                f"the doctor warns: {rule['what']} (steps {first} to {last}); "
                f"change {rule['change']}"
            )
    return [*found, *health["shortfalls"]]


def _apply(rule: Rule, history: Sequence[Row]) -> dict[str, Any]:
    rows = [row for row in history if rule.metric in row]
    # What is not finite is one rule's alone.
    if not rule.fatal:
        rows = [row for row in rows if math.isfinite(row[rule.metric])]
    found = rule.find(rows) if rows else []
    verdict, worst, lacking = "clear", None, None
    if not rows:
        verdict = "not_applicable"
    elif lacking := rule.lacking(rows):
        verdict = "not_judged"
    if found:
        verdict = "fired"
        values = [row[rule.metric] for row in found]
        worst = min(values) if rule.low_is_worse else max(values)
    # The metric of that rule is the step, which is no measure of anything.
    if rule.fatal:
        worst = None
    judged = {
        "rule": rule.name,
        "what": rule.what,
        "verdict": verdict,
        "steps": [int(row["step"]) for row in found],
        "worst": worst,
        "change": rule.change,
    }
    return judged | {"needs": lacking} if lacking else judged


# --- what ends a run before its last step ---------------------------------------------------------


class EarlyStopping(Section):
    """Ends a run whose reward no longer rises, or that drifts too far from its reference model.

    `reward_patience`: logged steps without a new best mean of the last `smoothing` logged rewards.
    `kl_ceiling`: the largest KL divergence from the reference model, in nats per token as TRL logs
    it. Being a function of the history alone, it says the same in a resumed run.
    """

    reward_patience: int | None = Field(default=None, gt=0)
    smoothing: int = Field(default=10, gt=0)
    kl_ceiling: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _watches_something(self) -> Self:
        if self.reward_patience is None and self.kl_ceiling is None:
            raise invalid(Problem("", "set `reward_patience`, `kl_ceiling` or both"))
        return self

    def verdict(self, rows: Sequence[Row]) -> dict[str, Any] | None:
        """{reason, step} of the first logged step at which the run has to end, if there is one."""
        rewards: list[float] = []
        best = float("-inf")
        best_at = 0
        for row in rows:
            step = int(row["step"])
            kl = row.get("kl", 0.0)
            if self.kl_ceiling is not None and kl > self.kl_ceiling:
                reason = f"KL divergence {kl:.4g} above the ceiling {self.kl_ceiling:g}"
                return {"reason": reason, "step": step}
            if "reward" not in row:
                continue
            rewards.append(row["reward"])
            if self.reward_patience is None or len(rewards) < self.smoothing:
                continue
            smoothed = sum(rewards[-self.smoothing :]) / self.smoothing
            if smoothed > best:
                best = smoothed
                best_at = len(rewards)
            elif len(rewards) - best_at >= self.reward_patience:
                reason = (
                    f"no reward (mean of {self.smoothing}) above {best:.4g} for "
                    f"{self.reward_patience} logged steps"
                )
                return {"reason": reason, "step": step}
        return None
