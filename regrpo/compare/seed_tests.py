"""Many runs: paired tests over questions, means over seeds, and how much data would do.

Over questions the figures are those of `stats.compare`, for many pairs at once: every pair with as
many questions is resampled with the same draws. Over seeds they are Student's and Welch's t. What a
figure does not vary, it does not cover: an interval over questions says nothing about another seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from regrpo.evaluate.results import Interval, Kind
from regrpo.evaluate.stats import ALPHA, POWER

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

FEWEST_SEEDS = 5
"""Runs with as many different seeds, from which on a mean over seeds has an interval."""
MOST = 1_000_000
"""Questions or seeds beyond which "how many would do" is not worth a number."""
MCNEMAR, PAIRED_T = "exact McNemar test", "paired t test"


@dataclass(frozen=True)
class Tested:
    """A later run against an earlier one on the same `n` questions.

    The difference is later minus earlier.

    `deviation` is the per-question difference's standard deviation (for a binary metric where there
    is no true difference: the root of the discordant share). `gained` and `lost` are None for a
    continuous metric.
    """

    n: int
    difference: float
    test: str
    p: float
    gained: int | None
    lost: int | None
    deviation: float

    def detectable(self, comparisons: int = 1) -> float:
        """The smallest true difference that `n` questions show with 80 % power.

        See `detectable_difference`.
        """
        return detectable_difference(
            self.deviation, self.n, ALPHA / comparisons, binary=self.gained is not None
        )

    def questions_needed(self, comparisons: int = 1) -> int | None:
        """How many questions would show the difference that was seen; see `questions_for`."""
        alpha = ALPHA / comparisons
        return questions_for(self.difference, self.deviation, alpha, binary=self.gained is not None)


def compare_questions(before: Values, after: Values, kind: Kind) -> Tested:
    """`after` against `before` on the same questions in the same order.

    As `stats.compare` would, without the interval: p is the exact McNemar test's or, for a
    continuous metric, the paired t test's. The other way round gives exactly the same with signs
    turned. Raises ValueError for no questions, unequal numbers of them, or what is not finite.
    """
    from scipy.stats import ttest_1samp
    from statsmodels.stats.contingency_tables import mcnemar

    d = _differences(before, after)
    n, mean = len(d), float(d.mean()) + 0.0
    if kind == "binary":
        gained, lost = int((d > 0).sum()), int((d < 0).sum())
        p = float(
            mcnemar([[0, lost], [gained, 0]], exact=True).pvalue
        )  # looks at the discordant questions only
        return Tested(n, mean, MCNEMAR, p, gained, lost, math.sqrt((gained + lost) / n))
    deviation = float(d.std(ddof=1)) if n > 1 else math.nan
    if _vary(d):
        p = float(ttest_1samp(d, 0).pvalue)
    elif n == 1 or mean == 0:
        p = 1.0
    else:  # without variation there is no t: apart by one and the same amount everywhere
        p = 0.0
    return Tested(n, mean, PAIRED_T, p, None, None, deviation)


def question_intervals(
    pairs: Sequence[tuple[Values, Values]], *, resamples: int, seed: int = 0
) -> list[Interval]:
    """The paired bootstrap's 95 % interval of each (before, after), as in `stats.compare`.

    Those of one length at once.

    The other way round gives exactly the turned interval. Raises ValueError as `compare_questions`
    does.
    """
    import numpy as np

    differences = [_differences(before, after) for before, after in pairs]
    found: dict[int, Interval] = {}
    for n in {len(one) for one in differences}:
        group = [index for index, one in enumerate(differences) if len(one) == n]
        columns = np.stack([differences[index] for index in group], axis=1)
        limits = bootstrap_intervals(columns, resamples=resamples, seed=seed)
        found |= {
            index: (float(low), float(high))
            for index, (low, high) in zip(group, limits, strict=True)
        }
    return [found[index] for index in range(len(pairs))]


def bootstrap_intervals(differences: Values, *, resamples: int, seed: int) -> Values:
    """95 % percentile bootstrap intervals of the mean of each column of an (n, k) array.

    Returns an array (k, 2).

    The draws are those of `scipy.stats.bootstrap` with this seed, shared by all columns. The upper
    limit is taken from the values with their signs turned, so that a turned comparison has exactly
    the turned interval.
    """
    import numpy as np

    n = len(differences)
    generator, batch = np.random.default_rng(seed), max(1, 5_000_000 // n)
    means = []
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        means.append(counts @ differences / n)
    every = np.concatenate(means)
    tail = 100 * ALPHA / 2
    limits = np.stack(
        [np.percentile(every, tail, axis=0), -np.percentile(-every, tail, axis=0)], axis=1
    )
    constant = np.all(differences == differences[0], axis=0)
    limits[constant] = differences[0][constant][:, None]  # that one value, without rounding
    return np.asarray(limits + 0.0)


def _differences(before: Values, after: Values) -> Values:
    import numpy as np

    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if x.ndim != 1 or not len(x) or x.shape != y.shape:
        raise ValueError(
            f"expected one value per question on both sides, found {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a value is not a finite number")
    return y - x


def _vary(values: Values) -> bool:
    """Whether values differ by more than the rounding of equal ones."""
    import numpy as np

    return bool(np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max())))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons after Holm's correction.

    Holm 1979, Scand. J. Statist. 6:65.
    """
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def fewest_discordant(alpha: float) -> int:
    """Discordant questions below which the exact McNemar test cannot come under `alpha`.

    With m of them its smallest p-value is 2 · 0.5^m.
    """
    return math.floor(1 - math.log2(alpha)) + 1


def detectable_difference(deviation: float, n: int, alpha: float = ALPHA, *, binary: bool) -> float:
    """The smallest true mean difference that `n` questions show with 80 % power.

    As `stats.minimum_detectable_effect` (Miller 2024, arXiv:2411.00640; Connor 1987), for any
    two-sided `alpha`: with m comparisons α / m, Bonferroni's bound, on the safe side of Holm's. NaN
    for one question of a continuous metric.
    """
    effect = _z_effect(alpha) * deviation / math.sqrt(n)
    return min(1.0, max(effect, fewest_discordant(alpha) / n)) if binary else effect


def questions_for(
    difference: float, deviation: float, alpha: float = ALPHA, *, binary: bool
) -> int | None:
    """The number of questions for which `difference` is the detectable one.

    The inverse of `detectable_difference`. Returns None if there is no difference to show, or if
    more than MOST would be needed.
    """
    if not difference or math.isnan(deviation):
        return None
    n = (_z_effect(alpha) * deviation / difference) ** 2
    if binary:
        n = max(n, fewest_discordant(alpha) / abs(difference))
    return math.ceil(n - 1e-9) if n <= MOST else None


@cache
def _z_effect(alpha: float) -> float:
    """z₁₋α⸝₂ + z₀.₈₀: the effect, in standard errors, that a z test shows with 80 % power."""
    from statsmodels.stats.power import NormalIndPower

    # ratio=0: one sample, here that of the paired differences.
    return float(NormalIndPower().solve_power(None, nobs1=1, alpha=alpha, power=POWER, ratio=0))


# --- over seeds -----------------------------------------------------------------------------------


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
    if n < FEWEST_SEEDS:
        return Mean(n, mean, float(x.std(ddof=1)) if n > 1 else None, None)
    if not _vary(x):
        return Mean(n, float(x[0]), 0.0, (float(x[0]), float(x[0])))
    low, high = ttest_1samp(x, 0).confidence_interval(1 - ALPHA)
    return Mean(n, mean, float(x.std(ddof=1)), (float(low), float(high)))


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

    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if paired and len(x) != len(y):
        raise ValueError(f"not the same seeds: {len(x)} and {len(y)} values")
    if min(len(x), len(y)) < FEWEST_SEEDS:
        return None
    difference = float((y - x).mean() if paired else y.mean() - x.mean()) + 0.0
    if paired:
        deviation = float((y - x).std(ddof=1))
        found = ttest_1samp(y - x, 0) if _vary(y - x) else None
    else:
        deviation = math.sqrt((float(x.var(ddof=1)) + float(y.var(ddof=1))) / 2)
        found = ttest_ind(y, x, equal_var=False) if _vary(x) or _vary(y) else None
    if found is None:  # no seed made any difference
        interval, p = (difference, difference), 0.0 if difference else 1.0
    else:
        low, high = found.confidence_interval(1 - ALPHA)
        interval, p = (float(low), float(high)), float(found.pvalue)

    def power(effect: float, n: int) -> float:
        alpha = ALPHA / comparisons
        if paired:
            return float(TTestPower().power(effect, n, alpha))
        return float(TTestIndPower().power(effect, n, alpha))

    return SeedDifference(
        "paired t" if paired else "Welch t",
        (len(x), len(y)),
        difference,
        interval,
        p,
        deviation * _least(lambda effect: power(effect, min(len(x), len(y)))),
        _seeds_needed(abs(difference), deviation, power),
    )


def _least(power: Callable[[float], float]) -> float:
    """The smallest effect, in standard deviations, that has 80 % power."""
    from scipy.optimize import brentq

    high = 1.0
    while not power(high) >= POWER:
        high *= 2
    return float(brentq(lambda effect: power(effect) - POWER, 1e-9, high))


def _seeds_needed(
    difference: float, deviation: float, power: Callable[[float, int], float]
) -> int | None:
    if not difference:
        return None
    if not deviation:
        return FEWEST_SEEDS

    def enough(n: int) -> bool:
        found: Any = power(difference / deviation, n)
        return bool(
            found >= POWER or math.isnan(found)
        )  # NaN: an effect so large that its power cannot be computed

    low, high = FEWEST_SEEDS - 1, FEWEST_SEEDS  # `low` is not enough, or fewer than we accept
    while not enough(high):
        low, high = high, high * 2
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
