"""The GRPO doctor's rules on histories made for them."""

import math

import pytest

from regrpo.train.doctor import RULES, examine, lines, shortfalls


def healthy(steps: int = 40) -> list[dict[str, float]]:
    """A run that learns: reward up, dev accuracy up, nothing odd."""
    return [
        {
            "step": float(step),
            "reward": min(0.9, 0.3 + step * 0.02),
            "reward_std": 0.4,
            "frac_reward_zero_std": 0.2,
            "sampling/sampling_logp_difference/mean": 0.01,
            "sampling/importance_sampling_ratio/mean": 0.99,
            "entropy": 0.4,
            "kl": 0.1,
            "clip_ratio/region_mean": 0.01,
            "completions/clipped_ratio": 0.0,
            "completions/mean_length": 8.0,
            "grad_norm": 1.0,
            "loss": 0.01,
            **({"dev_accuracy": 0.3 + step * 0.015} if step % 10 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]


def verdicts(history: list[dict[str, float]]) -> dict[str, str]:
    return {rule["rule"]: rule["verdict"] for rule in examine(history)["rules"]}


def test_a_healthy_run_is_clear_in_every_rule() -> None:
    assert set(verdicts(healthy()).values()) == {"clear"}
    assert examine(healthy())["verdict"] == "healthy"


def spoil(metric: str, value: float, first: int = 1) -> list[dict[str, float]]:
    return [{**row, metric: value} if row["step"] >= first else row for row in healthy()]


@pytest.mark.parametrize(
    ("rule", "history", "first_step"),
    [
        ("not_finite", spoil("loss", math.nan, 7), 7),
        ("not_finite", spoil("grad_norm", math.inf, 9), 9),
        ("no_reward", spoil("reward", 0.0), 20),
        ("no_variance_right", spoil("frac_reward_zero_std", 0.97, 21), 21),
        ("sampler_difference", spoil("sampling/sampling_logp_difference/mean", 0.2, 8), 8),
        ("importance_weight", spoil("sampling/importance_sampling_ratio/mean", 0.4, 8), 8),
        ("entropy_collapse", spoil("entropy", 0.01, 11), 11),
        ("kl", spoil("kl", 2.1, 30), 30),
        ("clip_ratio", spoil("clip_ratio/region_mean", 0.31, 5), 5),
        ("truncation", spoil("completions/clipped_ratio", 0.81, 5), 5),
        ("grad_norm", spoil("grad_norm", 10.5, 12), 12),
        ("length_explosion", spoil("completions/mean_length", 30.0, 20), 20),
        (
            "reward_without_accuracy",
            [{**r, "dev_accuracy": 0.9 - r["step"] / 100} for r in healthy()],
            11,
        ),
    ],
)
def test_each_rule_fires_on_its_illness_and_names_the_steps(
    rule: str, history: list[dict[str, float]], first_step: int
) -> None:
    found = next(one for one in examine(history)["rules"] if one["rule"] == rule)
    assert found["verdict"] == "fired"
    assert found["steps"][0] == first_step
    assert found["change"]


def alike(mean: float, deviation: float) -> list[dict[str, float]]:
    """Groups without variance; of the main reward mean and deviation, of the sum always 0.1."""
    main = {"rewards/exact_answer/mean": mean, "rewards/exact_answer/std": deviation}
    return [
        {**row, "frac_reward_zero_std": 0.97, "reward": 0.1, "reward_std": 0.0, **main}
        for row in healthy()
    ]


@pytest.mark.parametrize(
    ("mean", "deviation", "fired", "clear"),
    [
        (1.0, 0.0, "no_variance_right", "no_variance_wrong"),
        (0.9, 0.3, "no_variance_right", "no_variance_wrong"),
        (0.1, 0.3, "no_variance_wrong", "no_variance_right"),
        (0.0, 0.0, "no_variance_wrong", "no_variance_right"),
        (-0.8, 0.1, "no_variance_wrong", "no_variance_right"),  # a classifier's
    ],
)
def test_groups_without_variance_are_right_or_wrong_by_the_main_reward(
    mean: float, deviation: float, fired: str, clear: str
) -> None:
    """A format that every answer has, worth 0.1, makes none of them right."""
    rules = examine(alike(mean, deviation), "exact_answer")["rules"]
    found = {rule["rule"]: rule["verdict"] for rule in rules}
    assert (found[fired], found[clear]) == ("fired", "clear")


def test_one_odd_step_does_not_fire_the_rules_that_want_a_run_of_them() -> None:
    history = healthy()
    history[20] = {
        **history[20],
        "frac_reward_zero_std": 1.0,
        "entropy": 0.0,
        "completions/mean_length": 100.0,
    }
    assert set(verdicts(history).values()) == {"clear"}


def test_a_metric_that_was_not_logged_makes_its_rule_not_applicable() -> None:
    history = [
        {key: value for key, value in row.items() if key not in ("kl", "dev_accuracy")}
        for row in healthy()
    ]
    found = verdicts(history)
    assert found["kl"] == found["reward_without_accuracy"] == "not_applicable"


def test_a_rule_that_needs_more_steps_than_the_run_had_is_not_judged() -> None:
    rules = {rule["rule"]: rule for rule in examine(healthy(9))["rules"]}
    short = {name: rule["needs"] for name, rule in rules.items() if rule["verdict"] == "not_judged"}
    assert short == {
        "no_reward": "20 steps",
        "no_variance_wrong": "10 logged steps with frac_reward_zero_std",
        "no_variance_right": "10 logged steps with frac_reward_zero_std",
        "entropy_collapse": "15 logged steps with entropy",
        "length_explosion": "10 logged steps with completions/mean_length",
    }
    assert rules["grad_norm"]["verdict"] == "clear", "a single step tells"
    found = {rule["rule"]: rule for rule in examine(healthy(20))["rules"]}
    assert found["reward_without_accuracy"]["needs"] == "3 logged steps with dev_accuracy"
    assert found["no_reward"]["verdict"] == "clear"


def test_only_nan_and_infinity_are_fatal() -> None:
    assert examine(spoil("kl", 5.0))["verdict"] == "warnings"
    assert examine(spoil("loss", math.nan))["verdict"] == "fatal"


def test_the_report_is_json_without_nan() -> None:
    import json

    json.dumps(examine(spoil("loss", math.nan)), allow_nan=False)


def test_the_first_measurement_without_a_reward_is_no_obstacle() -> None:
    first = {"step": 0.0, "dev_accuracy": 0.9}
    assert verdicts([first, *healthy()])["reward_without_accuracy"] == "clear"
    assert verdicts([])["reward_without_accuracy"] == "not_applicable"


def test_rule_names_are_unique() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


def rewarded(**metrics: float) -> list[dict[str, float]]:
    return [row | metrics for row in healthy()]


def test_a_reward_that_never_varied_is_said_and_one_that_did_is_not() -> None:
    varied = {"rewards/mine/mean": 0.25, "rewards/mine/std": 0.5}
    assert shortfalls(rewarded(**varied), ["mine"]) == []
    assert shortfalls([], ["mine"]) == [], "a run that ended before its first step"
    constant = {"rewards/mine/mean": 0.3, "rewards/mine/std": 1e-8}
    (said,) = shortfalls(rewarded(**varied | constant), ["mine"])
    assert said == "The reward mine was always 0.3: it taught nothing."
    (said,) = shortfalls(rewarded(), ["mine"])
    assert said == "The reward mine was None for every completion: it taught nothing."
    late = rewarded(**constant)
    late[-1]["rewards/mine/mean"] = 0.4
    assert shortfalls(late, ["mine"]) == [], "it varied from step to step"
    (said,) = shortfalls(rewarded(frac_reward_zero_std=1.0, **varied), ["mine"])
    assert said.startswith("The reward never varied within a group")


def test_what_fired_and_what_fell_short_is_said_at_the_end() -> None:
    health = examine(spoil("grad_norm", 11.0)) | {"shortfalls": ["It taught nothing."]}
    fired, short = lines(health)
    assert fired.startswith("the doctor warns: gradient norm above 10 (before clipping) (steps ")
    assert short == "It taught nothing."
