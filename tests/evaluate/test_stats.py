"""regrpo.evaluate.stats against scipy, statsmodels, published examples and simulations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from statsmodels.stats.weightstats import ztest

from regrpo.evaluate import stats
from regrpo.evaluate.results import Estimate, Kind, Pair
from regrpo.evaluate.stats import compare, estimate, fewest_discordant, kind_of, pair_answers

DRAWN = {"resamples": 2000, "seed": 3}
FEWEST_DISCORDANT = fewest_discordant()


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    """Before and after, with these counts."""
    before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    after = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
    return before, after


def test_a_binary_estimate_is_the_share_with_wilsons_interval():
    found = estimate([1.0] * 37 + [0.0] * 63, "binary", **DRAWN)
    assert found.value == 0.37
    assert found.stderr == pytest.approx(math.sqrt(0.37 * 0.63 / 99))
    assert found.ci95 == pytest.approx(proportion_confint(37, 100, method="wilson"))


def test_a_continuous_estimate_is_the_mean_with_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=60)
    found = estimate(values, "continuous", **DRAWN)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(3)
    )
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(scipy_stats.sem(values))
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval))


def test_a_difference_has_scipys_paired_bootstrap_interval_and_statsmodels_p():
    before, after = paired(30, 25, 9, 36)
    found = compare(before, after, "binary", **DRAWN)
    expected = scipy_stats.bootstrap(
        (np.array(before), np.array(after)),
        lambda x, y, axis: np.mean(y, axis=axis) - np.mean(x, axis=axis),
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    assert found.difference == pytest.approx(0.16)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval))
    assert found.p_mcnemar == pytest.approx(mcnemar([[30, 9], [25, 36]], exact=True).pvalue)
    assert (found.gained, found.lost) == (25, 9)


@pytest.mark.parametrize(
    ("counts", "p"),
    [
        # Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91: n = 21 and n =
        # 161.
        ((1, 7, 1, 12), 0.0703),
        ((59, 16, 6, 80), 0.0525),
    ],
)
def test_published_examples_of_the_exact_mcnemar_test(counts, p):
    assert compare(*paired(*counts), "binary", **DRAWN).p_mcnemar == pytest.approx(p, abs=5e-5)


def test_pairing_sees_what_two_separate_samples_would_not():
    before, after = paired(500, 12, 1, 487)
    found = compare(before, after, "binary", **DRAWN)
    assert found.p_mcnemar is not None
    assert found.p_mcnemar < 0.01 < scipy_stats.fisher_exact([[512, 488], [501, 499]]).pvalue


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_the_other_way_round_gives_the_same_with_signs_turned(kind: Kind):
    draw = np.random.default_rng(5)
    x, y = draw.random((2, 80))
    if kind == "binary":
        x, y = (x < 0.4).astype(float), (y < 0.6).astype(float)
    there, back = compare(x, y, kind, **DRAWN), compare(y, x, kind, **DRAWN)
    assert back.difference == -there.difference
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]), abs=1e-12)
    assert (back.p_mcnemar, back.gained, back.lost) == (there.p_mcnemar, there.lost, there.gained)
    assert back.minimum_detectable_effect == there.minimum_detectable_effect


def test_two_copies_of_one_run_differ_by_nothing():
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert compare(values, values, "binary", **DRAWN) == Pair(
        difference=0.0,
        ci95=(0.0, 0.0),
        p_mcnemar=1.0,
        gained=0,
        lost=0,
        minimum_detectable_effect=FEWEST_DISCORDANT / 10,
    )
    assert compare(values, values, "continuous", **DRAWN) == Pair(
        difference=0.0,
        ci95=(0.0, 0.0),
        p_mcnemar=None,
        gained=None,
        lost=None,
        minimum_detectable_effect=0.0,
    )


def test_the_same_seed_gives_the_same_and_another_seed_another_interval():
    before, after = np.random.default_rng(6).random((2, 50))
    once, again = (compare(before, after, "continuous", **DRAWN) for _ in range(2))
    assert once == again
    assert once.ci95 != compare(before, after, "continuous", resamples=2000, seed=4).ci95


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_and_all_wrong_keep_an_interval_of_some_width(value):
    found = estimate([value] * 50, "binary", **DRAWN)
    assert found.value == value
    assert found.ci95[1] - found.ci95[0] > 0.05
    assert 0 <= found.ci95[0] <= found.value <= found.ci95[1] <= 1


def test_all_wrong_to_all_right_is_a_whole_difference():
    found = compare([0.0] * 40, [1.0] * 40, "binary", **DRAWN)
    assert (found.difference, found.ci95, found.gained, found.lost) == (1.0, (1.0, 1.0), 40, 0)
    assert found.p_mcnemar == pytest.approx(2 * 0.5**40)


def test_one_question_says_next_to_nothing():
    found = estimate([1.0], "binary", **DRAWN)
    assert found.stderr is None
    assert found.ci95[0] < 0.25
    pair = compare([0.0], [1.0], "binary", **DRAWN)
    assert (pair.p_mcnemar, pair.minimum_detectable_effect) == (1.0, 1.0)
    assert compare([0.5], [0.7], "continuous", **DRAWN).minimum_detectable_effect is None


def test_few_discordant_questions_cannot_be_significant():
    before, after = paired(50, FEWEST_DISCORDANT - 1, 0, 50)
    assert compare(before, after, "binary", **DRAWN).p_mcnemar >= 0.05  # type: ignore[operator]
    before, after = paired(50, FEWEST_DISCORDANT, 0, 50)
    found = compare(before, after, "binary", **DRAWN)
    assert found.p_mcnemar is not None
    assert found.p_mcnemar < 0.05


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [0.0, math.inf], [0.0, 0.5]])
def test_values_that_are_no_binary_metric_are_refused(bad):
    with pytest.raises(ValueError, match=r"value|binary"):
        estimate(bad, "binary", **DRAWN)


def test_nan_is_refused_in_comparisons_too():
    with pytest.raises(ValueError, match="value 1 is not a finite number"):
        compare([0.1, math.nan], [0.1, 0.2], "continuous", **DRAWN)


def test_samples_of_different_questions_are_refused():
    with pytest.raises(ValueError, match="not the same questions"):
        compare([1.0, 0.0], [1.0], "binary", **DRAWN)


def test_the_kind_is_binary_where_every_value_is_0_or_1():
    assert kind_of([0.0, 1.0, 1.0]) == kind_of([1, 0]) == kind_of([True, False]) == "binary"
    assert kind_of([0.0, 0.5, 1.0]) == "continuous"


def simulate(draw: np.random.Generator, n: int, gained: float, lost: float) -> Pair:
    """One comparison over n questions of which, in truth, these shares are gained and lost."""
    kinds = draw.choice(3, size=n, p=[gained, lost, 1 - gained - lost])
    return compare(
        (kinds == 1).astype(float), (kinds == 0).astype(float), "binary", resamples=400, seed=0
    )


def test_intervals_hold_the_truth_about_95_times_in_100():
    draw = np.random.default_rng(11)
    differences = [simulate(draw, 200, 0.25, 0.10) for _ in range(400)]
    shares = [
        estimate((draw.random(100) < 0.8).astype(float), "binary", **DRAWN) for _ in range(400)
    ]
    for found, truth in ((differences, 0.15), (shares, 0.8)):
        covered = np.mean([one.ci95[0] <= truth <= one.ci95[1] for one in found])
        assert 0.92 <= covered <= 0.98


def test_an_effect_of_the_minimum_detectable_size_is_found_about_80_times_in_100():
    n, discordant = 400, 0.3
    effect = compare(*paired(140, 60, 60, 140), "binary", **DRAWN).minimum_detectable_effect
    assert effect is not None
    assert effect == pytest.approx((1.959964 + 0.841621) * math.sqrt(discordant / n), rel=1e-4)
    draw = np.random.default_rng(12)
    shares = ((discordant + effect) / 2, (discordant - effect) / 2)
    found = np.mean([simulate(draw, n, *shares).p_mcnemar < 0.05 for _ in range(500)])  # type: ignore[operator]
    assert 0.73 <= found <= 0.87


def test_answers_are_paired_on_the_questions_that_both_were_asked():
    def answers(ids: str, **prompts: str) -> pd.DataFrame:
        rows = [
            {"id": one, "prompt": prompts.get(one, one), "answer": None, "value": float(at)}
            for at, one in enumerate(ids)
        ]
        return pd.DataFrame(rows).set_index("id")

    found = pair_answers(answers("abcd"), answers("dcbx", c="another"))
    assert (found.ids, found.changed) == (["b", "d"], ["c"])
    assert (found.before.tolist(), found.after.tolist()) == ([1.0, 3.0], [2.0, 0.0])
    assert pair_answers(answers("a"), answers("b")).ids == []


def test_answers_are_paired_by_a_hash_of_what_was_asked_as_well():
    def answers(asked: str) -> pd.DataFrame:
        return pd.DataFrame({"asked": asked, "value": [0.0, 1.0]}, index=["a", "b"])

    assert pair_answers(answers("x"), answers("x")).ids == ["a", "b"]
    assert pair_answers(answers("x"), answers("y")).changed == ["a", "b"]


def test_estimates_alone_are_compared_by_fishers_test_and_by_z():
    def of(count: int, n: int) -> Estimate:
        return estimate([1.0] * count + [0.0] * (n - count), "binary", **DRAWN)

    p, interval = stats.compare_unpaired(of(30, 100), of(55, 120), (100, 120), "binary")
    assert p == pytest.approx(scipy_stats.fisher_exact([[30, 70], [55, 65]]).pvalue)
    assert interval == pytest.approx(
        confint_proportions_2indep(55, 120, 30, 100, method="wald"), abs=1e-3
    )

    x, y = np.random.default_rng(0).normal([[0.0], [0.5]], size=(2, 50))
    means = [estimate(values, "continuous", **DRAWN) for values in (x, y)]
    z = ztest(y, x, usevar="unequal")
    p, interval = stats.compare_unpaired(means[0], means[1], (50, 50), "continuous")
    assert p == pytest.approx(z[1])
    assert interval == pytest.approx(
        (y.mean() - x.mean()) * (1 + 1.959964 / z[0] * np.array([-1, 1]))
    )

    one = Estimate(value=0.5, ci95=(0.5, 0.5))
    other = one.model_copy(update={"value": 0.6})
    assert stats.compare_unpaired(one, one, (1, 1), "continuous")[0] == 1
    assert stats.compare_unpaired(one, other, (1, 1), "continuous")[0] == 0


# --- many comparisons -----------------------------------------------------------------------------


def values(kind: Kind, n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(seed).random((2, n))
    return ((x < 0.4).astype(float), (y < 0.6).astype(float)) if kind == "binary" else (x, y)


def test_many_comparisons_at_once_have_the_intervals_that_each_has_alone():
    samples = [
        stats.paired_differences(*values("binary", n, seed), "binary")
        for n, seed in [(80, 1), (50, 2), (80, 3), (81, 4)]
    ]
    together = stats.bootstrap_intervals(samples, **DRAWN)
    assert together == [stats.bootstrap_interval(sample, **DRAWN) for sample in samples]
    assert stats.bootstrap_intervals([], **DRAWN) == []


def test_the_paired_t_test_is_scipys_and_needs_a_variation():
    x, y = values("continuous")
    assert stats.paired_t(y - x) == pytest.approx(scipy_stats.ttest_rel(y, x).pvalue)
    assert stats.paired_t(np.zeros(5)) == 1.0
    assert stats.paired_t(np.array([0.6, 1.0, 0.8]) - np.array([0.1, 0.5, 0.3])) == 0.0
    assert stats.paired_t(np.array([0.5])) == 1.0


def test_holms_correction_on_an_example_worked_by_hand():
    # Four tests: 4 · 0.005, 3 · 0.01, 2 · 0.03, then at least as large as the one before (R's
    # p.adjust says the same).
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6]) == [0.6]
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_as_many_questions_as_it_says_would_do_have_the_difference_as_their_smallest():
    x, y = values("binary", 400, 5)
    seen = float((y - x).mean())
    deviation = stats.deviation(y - x, "binary")
    needed = stats.questions_for(seen, deviation, "binary", 0.05 / 9)
    assert needed is not None
    assert stats.detectable_difference(deviation, needed, "binary", 0.05 / 9) <= seen
    assert stats.detectable_difference(deviation, needed - 1, "binary", 0.05 / 9) > seen
    assert needed > (stats.questions_for(seen, deviation, "binary") or 0)
    assert stats.questions_for(0.0, deviation, "binary") is None
    assert (
        stats.questions_for(0.5, stats.deviation(np.array([0.5]), "continuous"), "continuous")
        is None
    )


def test_a_published_number_of_pairs():
    # Cohen 1988, Statistical Power Analysis, 2.3: d = 0.5, two-sided 0.05, power 0.80; the z
    # approximation is 31.4.
    assert stats.questions_for(0.5, 1.0, "continuous") == 32
    assert stats.questions_for(1e-7, 1.0, "continuous") is None
    # No fewer than six discordant questions show anything to an exact McNemar test: 2 · 0.5^6 =
    # 0.031.
    assert stats.questions_for(1.0, 1.0, "binary") == 8
    assert stats.questions_for(0.5, 0.1, "binary") == 12


@pytest.mark.parametrize(("better", "worse"), [(0.10, 0.10), (0.20, 0.05)])
def test_paired_intervals_cover_the_true_difference_in_95_percent(better: float, worse: float):
    u = np.random.default_rng(200).random((2000, 200))
    differences = (u < better).astype(float) - (u > 1 - worse)
    intervals = stats.bootstrap_intervals(list(differences), resamples=2000, seed=1)
    low, high = np.array(intervals).T
    covered = np.mean((low <= better - worse) & (better - worse <= high))
    assert covered == pytest.approx(0.95, abs=0.02)


def test_intervals_of_a_continuous_metric_cover_too():
    differences = np.random.default_rng(2).gamma(2.0, 1.0, (2000, 200)) - 2.0
    intervals = stats.bootstrap_intervals(list(differences), resamples=2000, seed=1)
    low, high = np.array(intervals).T
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.95, abs=0.02)


def test_as_many_questions_as_it_says_would_do_show_the_difference_four_times_in_five():
    better, worse = 0.14, 0.06
    n = stats.questions_for(better - worse, math.sqrt(better + worse), "binary")
    assert n is not None
    gained, lost, _ = (
        np.random.default_rng(3).multinomial(n, [better, worse, 1 - better - worse], 4000).T
    )
    p = 2 * scipy_stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)
    assert np.mean(p < 0.05) == pytest.approx(0.80, abs=0.06)
