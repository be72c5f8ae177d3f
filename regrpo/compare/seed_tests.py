"""Tests over seeds: means, Student's and Welch's t, and how many seeds would do.

What a figure does not vary, it does not cover: an interval over questions (regrpo.evaluate.stats)
says nothing about another seed, and one over seeds with fixed questions nothing about others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from regrpo.evaluate.results import Interval
from regrpo.evaluate.stats import ALPHA, MOST, POWER, vary

if TYPE_CHECKING:
    from statsmodels.stats.power import Power

FEWEST_SEEDS = 5
"""Runs with as many different seeds, from which on a mean over seeds has an interval."""


@dataclass(frozen=True)
class Mean:
    """A mean over `n` seeds with its standard deviation.

    `ci95` is Student's t interval, None below FEWEST_SEEDS.
    """

    n: int
    mean: float
    deviation: float | None
    ci95: Interval | None


@dataclass(frozen=True)
class SeedDifference:
    """One setting's mean over seeds against another's, later minus earlier.

    `n` seeds each (before, after). `seeds_needed` is the number in each setting that would show the
    difference seen, None if there is none to show, or if it is more than MOST.
    """

    design: Literal["paired t", "Welch t"]
    n: tuple[int, int]
    difference: float
    ci95: Interval
    p: float
    detectable: float
    seeds_needed: int | None


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean of one number per seed; the interval only from FEWEST_SEEDS numbers on.

    Raises ValueError for none.
    """
    import numpy as np
    from scipy.stats import ttest_1samp

    if not len(values):
        raise ValueError("no seed")
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    deviation = float(x.std(ddof=1)) if n > 1 else None
    if n < FEWEST_SEEDS:
        return Mean(n, mean, deviation, None)
    if not vary(x):
        return Mean(n, x.item(0), 0.0, (x.item(0), x.item(0)))
    low, high = ttest_1samp(x, 0).confidence_interval(1 - ALPHA)
    return Mean(n, mean, deviation, (float(low), float(high)))


def compare_seeds(
    before: Sequence[float], after: Sequence[float], *, paired: bool, comparisons: int = 1
) -> SeedDifference | None:
    """`after` against `before`, one number per seed.

    Paired by seed: Student's t of the differences. Otherwise Welch's t (Welch 1947, Biometrika
    34:28). Power as in Cohen 1988, chapter 2, at α / `comparisons`. Returns None if either has
    fewer than FEWEST_SEEDS. Raises ValueError for a paired comparison of unequal numbers.
    """
    import numpy as np
    from scipy.stats import ttest_1samp, ttest_ind
    from statsmodels.stats.power import TTestIndPower, TTestPower

    x = np.asarray(before, dtype=np.float64)
    y = np.asarray(after, dtype=np.float64)
    if paired and len(x) != len(y):
        raise ValueError(f"not the same seeds: {len(x)} and {len(y)} values")
    fewest = min(len(x), len(y))
    if fewest < FEWEST_SEEDS:
        return None
    found = None
    if paired:
        d = y - x
        difference, deviation = float(d.mean()), float(d.std(ddof=1))
        if vary(d):
            found = ttest_1samp(d, 0)
    else:
        difference = float(y.mean() - x.mean())
        deviation = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        if vary(x) or vary(y):
            found = ttest_ind(y, x, equal_var=False)
    interval, p = (difference, difference), float(difference == 0)
    if found is not None:  # the seeds make some difference
        low, high = found.confidence_interval(1 - ALPHA)
        interval, p = (float(low), float(high)), float(found.pvalue)
    power = TTestPower() if paired else TTestIndPower()
    alpha = ALPHA / comparisons
    least = float(power.solve_power(None, fewest, alpha, POWER))
    return SeedDifference(
        design="paired t" if paired else "Welch t",
        n=(len(x), len(y)),
        difference=difference,
        ci95=interval,
        p=p,
        detectable=deviation * least,
        seeds_needed=_seeds_needed(abs(difference), deviation, power, alpha),
    )


def _seeds_needed(difference: float, deviation: float, power: Power, alpha: float) -> int | None:
    """How many seeds in each setting show a difference four times in five."""
    if not difference:
        return None
    # A power of NaN: an effect so large that it cannot be computed.
    if not deviation or not power.power(difference / deviation, FEWEST_SEEDS, alpha) < POWER:
        return FEWEST_SEEDS
    needed = float(power.solve_power(difference / deviation, None, alpha, POWER))
    return math.ceil(needed) if needed <= MOST else None
