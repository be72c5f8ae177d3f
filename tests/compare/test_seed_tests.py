"""seed_tests against statsmodels, published examples and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from regrpo.compare import seed_tests

SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
"""Student 1908, The probable error of a mean (Biometrika 6:1).

Hours of extra sleep by two drugs, ten patients.
"""


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
