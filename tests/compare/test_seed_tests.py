"""seed_tests against scipy, statsmodels, evaluate.stats, published examples and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from regrpo.compare import seed_tests
from regrpo.evaluate import stats
from regrpo.evaluate.results import Kind

SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
"""Student 1908, The probable error of a mean (Biometrika 6:1).

Hours of extra sleep by two drugs, ten patients.
"""


def values(kind: Kind, n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(seed).random((2, n))
    return ((x < 0.4).astype(float), (y < 0.6).astype(float)) if kind == "binary" else (x, y)


# --- over questions -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_figures_over_questions_are_those_of_the_evaluation(kind: Kind) -> None:
    x, y = values(kind)
    expected = stats.compare(x, y, kind, resamples=2000, seed=3)
    found = seed_tests.compare_questions(x, y, kind)
    (ci95,) = seed_tests.question_intervals([(x, y)], resamples=2000, seed=3)
    assert found.difference == pytest.approx(expected.difference, abs=1e-15)
    assert ci95 == pytest.approx(expected.ci95, abs=1e-12)
    assert (found.gained, found.lost) == (expected.gained, expected.lost)
    assert found.detectable() == pytest.approx(expected.minimum_detectable_effect, rel=1e-5)
    if kind == "binary":
        assert (found.p, found.test) == (expected.p_mcnemar, "exact McNemar test")
    else:
        assert found.p == pytest.approx(scipy_stats.ttest_rel(y, x).pvalue)


def test_many_pairs_at_once_have_the_intervals_that_each_has_alone() -> None:
    pairs = [values("binary", n, seed) for n, seed in [(80, 1), (50, 2), (80, 3), (81, 4)]]
    together = seed_tests.question_intervals(pairs, resamples=500)
    assert together == [seed_tests.question_intervals([pair], resamples=500)[0] for pair in pairs]


@pytest.mark.parametrize("kind", ["binary", "continuous"])
@pytest.mark.parametrize("seed", range(5))
def test_the_other_way_round_gives_exactly_the_same_with_signs_turned(
    kind: Kind, seed: int
) -> None:
    x, y = values(kind, 137, seed)
    there, back = seed_tests.compare_questions(x, y, kind), seed_tests.compare_questions(y, x, kind)
    assert (back.difference, back.p, back.gained, back.lost) == (
        -there.difference,
        there.p,
        there.lost,
        there.gained,
    )
    assert back.detectable() == there.detectable()
    assert back.questions_needed() == there.questions_needed()
    low, high = seed_tests.question_intervals([(x, y)], resamples=1000)[0]
    assert seed_tests.question_intervals([(y, x)], resamples=1000)[0] == (-high, -low)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_two_copies_differ_by_nothing(kind: Kind) -> None:
    x, _ = values(kind)
    found = seed_tests.compare_questions(x, x, kind)
    assert (found.difference, found.p, found.questions_needed()) == (0.0, 1.0, None)
    assert seed_tests.question_intervals([(x, x)], resamples=100) == [(0.0, 0.0)]


def test_the_same_amount_everywhere_is_told_apart_without_a_deviation() -> None:
    found = seed_tests.compare_questions(
        np.array([0.1, 0.5, 0.3]), np.array([0.6, 1.0, 0.8]), "continuous"
    )
    assert found.p < 1e-6
    alone = seed_tests.compare_questions(np.array([0.1]), np.array([0.6]), "continuous")
    assert alone.p == 1.0
    assert math.isnan(alone.detectable())
    assert alone.questions_needed() is None


@pytest.mark.parametrize(
    ("before", "after"),
    [([], []), ([1.0], [1.0, 0.0]), ([math.nan], [1.0]), ([1.0], [math.inf]), ([[1.0]], [[1.0]])],
)
def test_what_is_not_the_same_questions_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match=r"one value per question|finite"):
        seed_tests.compare_questions(np.array(before), np.array(after), "binary")


def test_holms_correction_on_an_example_worked_by_hand() -> None:
    # Four tests: 4 · 0.005, 3 · 0.01, 2 · 0.03, then at least as large as the one before (R's
    # p.adjust says the same).
    assert seed_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert seed_tests.holm([0.6]) == [0.6]
    assert seed_tests.holm([0.9, 0.8]) == [1.0, 1.0]
    assert seed_tests.holm([]) == []


def test_as_many_questions_as_it_says_would_do_have_the_difference_as_their_smallest() -> None:
    x, y = values("binary", 400, 5)
    found = seed_tests.compare_questions(x, y, "binary")
    needed = found.questions_needed(9)
    assert needed is not None
    assert (
        seed_tests.detectable_difference(found.deviation, needed, 0.05 / 9, binary=True)
        <= found.difference
    )
    assert (
        seed_tests.detectable_difference(found.deviation, needed - 1, 0.05 / 9, binary=True)
        > found.difference
    )
    assert needed > (found.questions_needed() or 0)


def test_a_published_number_of_pairs() -> None:
    # Cohen 1988, Statistical Power Analysis, 2.3: d = 0.5, two-sided 0.05, power 0.80; the z
    # approximation is 31.4.
    assert seed_tests.questions_for(0.5, 1.0, binary=False) == 32
    assert seed_tests.questions_for(1e-7, 1.0, binary=False) is None
    # No fewer than six discordant questions show anything to an exact McNemar test: 2 · 0.5^6 =
    # 0.031.
    assert seed_tests.questions_for(1.0, 1.0, binary=True) == 8
    assert seed_tests.questions_for(0.5, 0.1, binary=True) == 12


@pytest.mark.parametrize("n", [200, 300])
@pytest.mark.parametrize(("better", "worse"), [(0.10, 0.10), (0.20, 0.05)])
def test_intervals_over_questions_cover_the_true_difference_in_95_percent(
    n: int, better: float, worse: float
) -> None:
    trials = 2000
    u = np.random.default_rng(n).random((n, trials))
    differences = (u < better).astype(float) - (u > 1 - worse)
    low, high = seed_tests.bootstrap_intervals(differences, resamples=2000, seed=1).T
    assert np.mean((low <= better - worse) & (better - worse <= high)) == pytest.approx(
        0.95, abs=0.02
    )


def test_intervals_of_a_continuous_metric_cover_too() -> None:
    differences = np.random.default_rng(2).gamma(2.0, 1.0, (200, 2000)) - 2.0
    low, high = seed_tests.bootstrap_intervals(differences, resamples=2000, seed=1).T
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.95, abs=0.02)


def test_as_many_questions_as_it_says_would_do_show_the_difference_four_times_in_five() -> None:
    better, worse = 0.14, 0.06
    n = seed_tests.questions_for(better - worse, math.sqrt(better + worse), binary=True)
    assert n is not None
    gained, lost, _ = (
        np.random.default_rng(3).multinomial(n, [better, worse, 1 - better - worse], 4000).T
    )
    p = 2 * scipy_stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)
    assert np.mean(p < 0.05) == pytest.approx(0.80, abs=0.06)


# --- over seeds -----------------------------------------------------------------------------------


def test_the_published_analysis_of_students_sleep_data() -> None:
    # As R's documentation prints them: t.test(extra ~ group, data = sleep), and paired.
    welch = seed_tests.compare_seeds(SLEEP[1], SLEEP[0], paired=False)
    assert welch is not None
    assert (welch.design, welch.difference) == ("Welch t", pytest.approx(-1.58))
    assert welch.p == pytest.approx(0.07939, abs=5e-6)
    assert welch.ci95 == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    paired = seed_tests.compare_seeds(SLEEP[1], SLEEP[0], paired=True)
    assert paired is not None
    assert paired.p == pytest.approx(0.002833, abs=5e-7)
    assert paired.ci95 == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_means_and_welch_are_those_of_statsmodels() -> None:
    x, y = np.random.default_rng(4).normal(0.8, 0.05, (2, 7))
    assert seed_tests.mean_over_seeds(x.tolist()).ci95 == pytest.approx(
        DescrStatsW(x).tconfint_mean()
    )
    found = seed_tests.compare_seeds(x[:5].tolist(), y.tolist(), paired=False)
    expected = CompareMeans(DescrStatsW(y), DescrStatsW(x[:5]))
    assert found is not None
    assert found.n == (5, 7)
    assert found.ci95 == pytest.approx(expected.tconfint_diff(usevar="unequal"))
    assert found.p == pytest.approx(expected.ttest_ind(usevar="unequal")[1])


@pytest.mark.parametrize("paired", [False, True])
def test_seeds_the_other_way_round_give_exactly_the_same_with_signs_turned(paired: bool) -> None:
    there = seed_tests.compare_seeds(SLEEP[0], SLEEP[1], paired=paired)
    back = seed_tests.compare_seeds(SLEEP[1], SLEEP[0], paired=paired)
    assert there is not None
    assert back is not None
    assert (back.difference, back.p, back.detectable) == (
        -there.difference,
        there.p,
        there.detectable,
    )
    assert back.ci95 == (-there.ci95[1], -there.ci95[0])
    assert back.seeds_needed == there.seeds_needed


def test_an_interval_over_seeds_needs_five() -> None:
    assert seed_tests.mean_over_seeds([0.1, 0.2, 0.3, 0.4]).ci95 is None
    assert seed_tests.mean_over_seeds([0.1]).deviation is None
    assert seed_tests.mean_over_seeds([0.1, 0.2, 0.3, 0.4, 0.5]).ci95 is not None
    assert seed_tests.compare_seeds([0.1] * 9, [0.1, 0.2, 0.3, 0.4], paired=False) is None
    with pytest.raises(ValueError, match="no seed"):
        seed_tests.mean_over_seeds([])
    with pytest.raises(ValueError, match="not the same seeds"):
        seed_tests.compare_seeds([0.1] * 5, [0.1] * 6, paired=True)


@pytest.mark.parametrize("paired", [False, True])
def test_seeds_that_change_nothing_leave_a_point(paired: bool) -> None:
    same = seed_tests.compare_seeds([0.5] * 5, [0.5] * 5, paired=paired)
    assert same is not None
    assert (same.ci95, same.p, same.seeds_needed) == ((0.0, 0.0), 1.0, None)
    apart = seed_tests.compare_seeds([0.25] * 5, [0.5] * 5, paired=paired)
    assert apart is not None
    assert (apart.ci95, apart.p, apart.seeds_needed) == ((0.25, 0.25), 0.0, 5)
    assert seed_tests.mean_over_seeds([0.5] * 5).ci95 == (0.5, 0.5)


def test_published_numbers_of_seeds() -> None:
    # Cohen 1988, table 2.4.1 (two groups, d = 0.5: 64 each) and G*Power's 34 for as many
    # differences of d = 0.5.
    def standardised(n: int) -> np.ndarray:
        x = np.arange(n, dtype=float)
        return (x - x.mean()) / x.std(ddof=1)

    x = standardised(20)
    independent = seed_tests.compare_seeds(x.tolist(), (x + 0.5).tolist(), paired=False)
    differences = seed_tests.compare_seeds([0.0] * 20, (x + 0.5).tolist(), paired=True)
    assert independent is not None
    assert differences is not None
    assert (independent.seeds_needed, differences.seeds_needed) == (64, 34)
    enough = standardised(64)
    at_64 = seed_tests.compare_seeds(enough.tolist(), (enough + 0.5).tolist(), paired=False)
    assert at_64 is not None
    assert at_64.detectable == pytest.approx(0.5, abs=0.002)


def test_intervals_over_five_seeds_cover_in_95_percent() -> None:
    draws = np.random.default_rng(6).normal(0.9, 0.03, (1000, 5))
    means = [seed_tests.mean_over_seeds(one.tolist()).ci95 or (1.0, 0.0) for one in draws]
    assert np.mean([low <= 0.9 <= high for low, high in means]) == pytest.approx(0.95, abs=0.02)
