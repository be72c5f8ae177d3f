"""What an evaluation shows and how sure it is.

Estimates per model, paired comparisons between models.

Two kinds of metric: binary (each question right or wrong) and continuous (each question a number).
Two models are compared question by question, because they answer the same ones (Miller 2024,
"Adding Error Bars to Evals", arXiv:2411.00640: paired differences).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.evaluate.results import Estimate, Interval, Kind, Pair

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Numbers = Sequence[float] | Values

ALPHA, POWER = 0.05, 0.80
FEWEST_DISCORDANT = math.floor(1 - math.log2(ALPHA)) + 1
"""The exact McNemar test cannot come under ALPHA with fewer discordant questions.

2 · 0.5^m < 0.05 from m = 6.
"""


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

    The frames hold prompt, answer and value, and the questions' ids as their index.
    """
    import numpy as np

    both = before.index.intersection(after.index).sort_values()
    x, y = before.loc[both], after.loc[both]
    asked_x, asked_y = x[["prompt", "answer"]], y[["prompt", "answer"]]
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
    is the exact McNemar test's, which looks only at the discordant questions (McNemar 1947).
    Comparing the other way round gives the same with signs turned. Raises ValueError as `estimate`
    does, and for different numbers of questions.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    x, y = _checked(before, kind), _checked(after, kind)
    if len(x) != len(y):
        raise ValueError(f"not the same questions: {len(x)} and {len(y)} values")
    differences = y - x
    p = gained = lost = None
    if kind == "binary":
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        both, neither = int((x * y).sum()), int(((1 - x) * (1 - y)).sum())
        p = float(mcnemar([[both, lost], [gained, neither]], exact=True).pvalue)
    return Pair(
        difference=float(differences.mean()),
        ci95=bootstrap_interval(differences, resamples=resamples, seed=seed),
        p_mcnemar=p,
        gained=gained,
        lost=lost,
        minimum_detectable_effect=minimum_detectable_effect(differences, kind),
    )


def bootstrap_interval(values: Values, *, resamples: int, seed: int) -> Interval:
    """95 % percentile bootstrap interval of the mean over questions.

    Percentiles, not BCa: they mirror exactly when the sign turns, and are defined for every data.
    Values that are all equal (or one alone) give that one point: resampling cannot show a variation
    that is not in the data.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if np.all(values == values[0]):
        return float(values[0]), float(values[0])
    low, high = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=1 - ALPHA,
        method="percentile",
        # Bounds memory: about 100 MB of indices and values at a time.
        batch=max(1, 5_000_000 // len(values)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(low), float(high)


def minimum_detectable_effect(differences: Values, kind: Kind) -> float | None:
    """The smallest true difference that this many questions would show.

    At α = 0.05 (two-sided) with 80 % power: (z₀.₉₇₅ + z₀.₈₀) · sd / √n with sd the standard
    deviation of the per-question differences (Miller 2024, power analysis); None for one question
    of a continuous metric, which has none. For a binary metric sd² is the discordant share, its
    value where there is no true difference (Connor 1987, Biometrics 43:207), and no effect of fewer
    than FEWEST_DISCORDANT questions can be shown.
    """
    import numpy as np
    from statsmodels.stats.power import NormalIndPower

    n = len(differences)
    # ratio=0: one sample, here that of the paired differences.
    in_deviations = NormalIndPower().solve_power(None, nobs1=n, alpha=ALPHA, power=POWER, ratio=0)
    if kind == "continuous":
        return float(in_deviations * np.std(differences, ddof=1)) if n > 1 else None
    effect = in_deviations * math.sqrt(np.mean(differences != 0))
    return float(min(1.0, max(effect, FEWEST_DISCORDANT / n)))


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
