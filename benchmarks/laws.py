"""Which of two growth laws fits measured seconds: a line, or a power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """seconds = start + factor · x^power, and the share of the variance that it explains."""

    start: float
    factor: float
    power: float
    r2: float

    def sentence(self, of: str) -> str:
        """The law in words, of `of` (plural)."""
        if self.power == 1:
            text = f"{self.start:.3g} s + {1000 * self.factor:.3g} ms × {of}"
        else:
            text = f"{self.factor:.3g} s × ({of})^{self.power:.2f}"
        return f"{text} (R² {self.r2:.3f})"


def fit(xs: Sequence[float], seconds: Sequence[float]) -> Law:
    """The better of the two by R², both by least squares, the power's of the logarithms.

    A line whose start is below 0 is no law of time: then the power. Needs three points or more.
    """
    if len(xs) < 3:
        raise ValueError(f"three points or more make a law, not {len(xs)}")
    x, y = np.array(xs, float), np.array(seconds, float)
    slope, start = np.polyfit(x, y, 1)
    power, logarithm = np.polyfit(np.log(x), np.log(y), 1)
    factor = float(np.exp(logarithm))
    line = Law(float(start), float(slope), 1.0, explained(y, start + slope * x))
    curve = Law(0.0, factor, float(power), explained(y, factor * x**power))
    if line.start < 0 or curve.r2 > line.r2:
        return curve
    return line


def explained(measured: np.ndarray, fitted: np.ndarray) -> float:
    """R²: 1 less what is left of the squares around the mean."""
    left = float(((measured - fitted) ** 2).sum())
    whole = float(((measured - measured.mean()) ** 2).sum())
    return 1 - left / whole if whole else 0.0
