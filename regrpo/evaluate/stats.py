"""What an evaluation shows and how sure it is: the one place of tests over questions.

Estimates per model, paired comparisons between models, and how many questions would do.

Two kinds of metric: binary (each question right or wrong) and continuous (each question a number).
Two models are compared question by question, because they answer the same ones (Miller 2024,
"Adding Error Bars to Evals", arXiv:2411.00640: paired differences).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from regrpo.evaluate.results import Estimate, Interval, Kind, Pair

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Numbers = Sequence[float] | Values

ALPHA, POWER = 0.05, 0.80
MOST = 1_000_000
"""Questions or seeds beyond which "how many would do" is not worth a number."""


@dataclass(frozen=True)
class Paired:
    """The values of two models on the questions that both were asked, in the order of `ids`.

    `changed` are the ids that stand for another prompt or right answer on the other side: those
    questions are not shared, though their ids are.
    """

    ids: list[str]
    before: Values
    after: Values
    changed: list[str]


def pair_answers(before: pd.DataFrame, after: pd.DataFrame) -> Paired:
    """One model's answers to one task beside another's, question by question.

    The frames hold the questions' ids as their index, `value`, and of prompt, answer and asked (a
    hash of both) what says which question it was.
    """
    import numpy as np

    both = before.index.intersection(after.index).sort_values()
    x, y = before.loc[both], after.loc[both]
    asked = x.columns.intersection(["prompt", "answer", "asked"])
    asked_x, asked_y = x[asked], y[asked]
    alike = (asked_x == asked_y) | (asked_x.isna() & asked_y.isna())
    same = alike.all(axis=1).to_numpy(dtype=bool)
    return Paired(
        ids=both[same].tolist(),
        before=x.loc[same, "value"].to_numpy(dtype=np.float64),
        after=y.loc[same, "value"].to_numpy(dtype=np.float64),
        changed=both[~same].tolist(),
    )


def kind_of(values: Sequence[float]) -> Kind:
    """Binary where every value is 0 or 1."""
    return "binary" if set(values) <= {0.0, 1.0} else "continuous"


def estimate(values: Numbers, kind: Kind, *, resamples: int, seed: int) -> Estimate:
    """Mean of `values` (one per question) with its 95 % interval.

    Binary: Wilson's score interval (Wilson 1927). Continuous: percentile bootstrap over questions.
    Raises ValueError for no values, for NaN or infinity, and for a binary metric with other values
    than 0 and 1.
    """
    from scipy.stats import sem
    from statsmodels.stats.proportion import proportion_confint

    x = _checked(values, kind)
    if kind == "binary":
        low, high = proportion_confint(x.sum(), len(x), alpha=ALPHA, method="wilson")
        interval = float(low), float(high)
    else:
        interval = bootstrap_interval(x, resamples=resamples, seed=seed)
    stderr = float(sem(x)) if len(x) > 1 else None
    return Estimate(value=float(x.mean()), stderr=stderr, ci95=interval)


def compare(before: Numbers, after: Numbers, kind: Kind, *, resamples: int, seed: int) -> Pair:
    """`after` against `before`, the same questions in the same order.

    The interval is the paired bootstrap's: whole questions are drawn, that is, their differences. p
    is the exact McNemar test's. Comparing the other way round gives the same with signs turned.
    Raises ValueError as `paired_differences` does.
    """
    differences = paired_differences(before, after, kind)
    p = gained = lost = None
    if kind == "binary":
        p, gained, lost = exact_mcnemar(differences)
    least = detectable_difference(deviation(differences, kind), len(differences), kind)
    return Pair(
        difference=float(differences.mean()),
        ci95=bootstrap_interval(differences, resamples=resamples, seed=seed),
        p_mcnemar=p,
        gained=gained,
        lost=lost,
        minimum_detectable_effect=None if math.isnan(least) else least,
    )


def compare_unpaired(
    before: Estimate, after: Estimate, n: tuple[int, int], kind: Kind
) -> tuple[float, Interval]:
    """(p, 95 % interval of the difference) of two estimates over `n` questions.

    As if they had no question in common: where they have, it sees less than `compare`. Binary:
    Fisher's exact test of the counts (Fisher 1935); continuous: the z test of the means. The
    interval is the normal one of both standard errors; without any it is the difference alone.
    """
    from scipy.stats import fisher_exact, norm

    difference = after.value - before.value
    error = math.hypot(before.stderr or 0.0, after.stderr or 0.0)
    reach = float(norm.ppf(1 - ALPHA / 2)) * error
    if kind == "binary":
        counts = [(round(one.value * of), of) for one, of in zip((before, after), n, strict=True)]
        p = fisher_exact([[right, of - right] for right, of in counts]).pvalue
    elif error:
        p = 2 * norm.sf(abs(difference) / error)
    else:
        p = difference == 0
    return float(p), (difference - reach, difference + reach)


def paired_differences(before: Numbers, after: Numbers, kind: Kind) -> Values:
    """Later minus earlier, question by question.

    Raises ValueError as `estimate` does, and for different numbers of questions.
    """
    x, y = _checked(before, kind), _checked(after, kind)
    if len(x) != len(y):
        raise ValueError(f"not the same questions: {len(x)} and {len(y)} values")
    return y - x


# --- intervals ------------------------------------------------------------------------------------


def bootstrap_interval(values: Values, *, resamples: int, seed: int) -> Interval:
    """95 % percentile bootstrap interval of the mean over questions; see `bootstrap_intervals`."""
    return bootstrap_intervals([values], resamples=resamples, seed=seed)[0]


def bootstrap_intervals(samples: Sequence[Values], *, resamples: int, seed: int) -> list[Interval]:
    """95 % percentile bootstrap intervals of several means over questions.

    Samples of one length share their draws, which makes many cheap. Percentiles, not BCa: they
    mirror when the sign turns, and are defined for every data. Values that are all equal (or one
    alone) give that one point: resampling cannot show a variation that is not in the data.
    """
    import numpy as np

    found: dict[int, Interval] = {}
    varying: dict[int, list[int]] = {}
    for index, values in enumerate(samples):
        if np.all(values == values[0]):
            found[index] = float(values[0]), float(values[0])
        else:
            varying.setdefault(len(values), []).append(index)
    for group in varying.values():
        rows = np.stack([samples[index] for index in group])
        found |= dict(zip(group, _row_intervals(rows, resamples, seed), strict=True))
    return [found[index] for index in range(len(samples))]


def _row_intervals(rows: Values, resamples: int, seed: int) -> list[Interval]:
    """The interval of the mean of each row."""
    import numpy as np
    from scipy.stats import bootstrap

    n = rows.shape[1]

    def means(places: NDArray[np.int64], axis: int) -> Values:
        """{row} × {draw}: how often each place was drawn is the same for all rows."""
        drawn = np.atleast_2d(places)
        flat = (drawn + n * np.arange(len(drawn))[:, None]).ravel()
        counts = np.bincount(flat, minlength=drawn.size).reshape(drawn.shape)
        return np.asarray(rows @ counts.T.astype(np.float64) / n)

    low, high = bootstrap(
        (np.arange(n),),
        means,
        n_resamples=resamples,
        confidence_level=1 - ALPHA,
        method="percentile",
        # Bounds memory: about 100 MB of places and counts at a time.
        batch=max(1, 5_000_000 // n),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return list(zip(low.tolist(), high.tolist(), strict=True))


# --- tests ----------------------------------------------------------------------------------------


def exact_mcnemar(differences: Values) -> tuple[float, int, int]:
    """(p, gained, lost) of a binary metric's differences (McNemar 1947).

    The test looks only at the discordant questions.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue), gained, lost


def paired_t(differences: Values) -> float:
    """p of the paired t test.

    Without variation there is no t: p is 0 where the difference is the same everywhere, and 1 where
    there is none, or one question alone.
    """
    from scipy.stats import ttest_1samp

    if vary(differences):
        return float(ttest_1samp(differences, 0).pvalue)
    return float(len(differences) == 1 or differences[0] == 0)


def vary(values: Values) -> bool:
    """Whether values differ by more than the rounding of equal ones."""
    import numpy as np

    return bool(np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max())))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons after Holm's correction (1979, Scand. J. Statist. 6:65)."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    corrected: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return corrected


# --- how much data would do -----------------------------------------------------------------------


def deviation(differences: Values, kind: Kind) -> float:
    """Standard deviation of the per-question differences; NaN for one of a continuous metric.

    For a binary metric its value where there is no true difference, the root of the discordant
    share (Connor 1987, Biometrics 43:207).
    """
    if kind == "binary":
        return math.sqrt((differences != 0).mean())
    return float(differences.std(ddof=1)) if len(differences) > 1 else math.nan


def detectable_difference(deviation: float, n: int, kind: Kind, alpha: float = ALPHA) -> float:
    """The smallest true difference that `n` questions show with 80 % power.

    (z₁₋α⸝₂ + z₀.₈₀) · deviation / √n (Miller 2024, power analysis), two-sided. With m comparisons
    `alpha` is 0.05 / m, Bonferroni's bound, on the safe side of Holm's. No effect of fewer than
    `fewest_discordant` questions can be shown of a binary metric.
    """
    effect = _z_effect(alpha) * deviation / math.sqrt(n)
    if kind == "continuous":
        return effect
    return min(1.0, max(effect, fewest_discordant(alpha) / n))


def questions_for(
    difference: float, deviation: float, kind: Kind, alpha: float = ALPHA
) -> int | None:
    """The number of questions for which `difference` is the detectable one.

    Returns None if there is no difference to show, or if more than MOST would be needed.
    """
    if not difference or math.isnan(deviation):
        return None
    n = (_z_effect(alpha) * deviation / difference) ** 2
    if kind == "binary":
        n = max(n, fewest_discordant(alpha) / abs(difference))
    return math.ceil(n - 1e-9) if n <= MOST else None


def fewest_discordant(alpha: float = ALPHA) -> int:
    """Discordant questions below which the exact McNemar test cannot come under `alpha`.

    With m of them its smallest p-value is 2 · 0.5^m.
    """
    return math.floor(1 - math.log2(alpha)) + 1


@cache
def _z_effect(alpha: float) -> float:
    """The effect, in standard errors, that a two-sided z test shows with 80 % power."""
    from statsmodels.stats.power import NormalIndPower

    # ratio=0: one sample, here that of the paired differences.
    return float(NormalIndPower().solve_power(None, nobs1=1, alpha=alpha, power=POWER, ratio=0))


# --- values ---------------------------------------------------------------------------------------


def _checked(values: Numbers, kind: Kind) -> Values:
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError("expected one value per question, found none")
    if not np.isfinite(x).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(x)))} is not a finite number")
    if kind == "binary" and kind_of(x.tolist()) != "binary":
        raise ValueError("a binary metric has values other than 0 and 1")
    return x


def rounded(value: Any) -> Any:
    """Six significant digits.

    More than any interval here is worth, fewer than where machines begin to differ.
    """
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") + 0.0 if isinstance(value, float) else value
