"""Which training questions go on to grpo, by how often sampled answers to them are right.

A question that is always right, or always wrong, gives a group of completions without variance, and
so no gradient. Online methods leave such groups out in every step (Yu et al. 2025, DAPO,
arXiv:2503.14476, section 3.2; Bae et al. 2025, arXiv:2504.03380); this is their filter once, before
the training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import files, text
from regrpo.core.errors import Refused
from regrpo.core.settings import Problem, Section, Seed, invalid

Row = Mapping[str, Any]


class Selection(Section):
    """The band of pass rates, both ends included, or its control."""

    seed: int = Seed
    samples: int = Field(ge=0)
    low: float = Field(default=0.2, ge=0, le=1)
    high: float = Field(default=0.8, ge=0, le=1)
    choose: Literal["band", "random"] = "band"
    stratify: str | None = None

    @classmethod
    def of_section(cls, section: Mapping[str, Any]) -> Self:
        """What select's section of a profile says of the choice, its other keys left alone."""
        return cls.model_validate({key: section[key] for key in cls.model_fields if key in section})

    @model_validator(mode="after")
    def _band_can_hold_something(self) -> Self:
        if self.low > self.high:
            why = f"{self.low} is above `high` ({self.high})"
            raise invalid(Problem("low", why, f"at most {self.high}"))
        rates = [right / self.samples for right in range(self.samples + 1) if self.samples]
        if rates and not any(self.low <= rate <= self.high for rate in rates):
            why = f"{self.samples} answers give no rate from {self.low} to {self.high}"
            raise invalid(Problem("samples", why, "8, or a wider band"))
        if self.choose == "random" and not self.samples:
            why = "random needs `samples`: it draws as many questions as the band holds"
            raise invalid(Problem("choose", why, "band, or samples: 8"))
        return self


def no_verifier() -> Refused:
    """The refusal of sampled answers that nobody can judge."""
    return Refused(
        "select.samples",
        expected="data with a verifier, which says whether a sampled answer is right",
        found="verifier none",
        remedy="Set `samples: 0`, or bring answers and a verifier.",
    )


def chosen(rows: Sequence[Row], rates: Sequence[float], selection: Selection) -> list[int]:
    """The places of the chosen questions among `rows`, in their order.

    The control draws by the hash of seed and id, as many questions as the band holds; with
    `stratify`, as many of each value of that column.
    """
    places = range(len(rows))
    inside = [place for place in places if selection.low <= rates[place] <= selection.high]
    if selection.choose == "band":
        return inside
    values = [str(row.get(selection.stratify or "")) for row in rows]
    wanted = Counter(values[place] for place in inside)
    hashes = [files.sha256_text(f"{selection.seed} {row['id']}") for row in rows]
    drawn = []
    for place in sorted(places, key=lambda place: hashes[place]):
        if wanted[values[place]]:
            wanted[values[place]] -= 1
            drawn.append(place)
    return sorted(drawn)


def summary(rates: Sequence[float], kept: int, selection: Selection) -> dict[str, float]:
    """Counts of questions, shares of them to 6 digits, and the mean of their pass rates."""
    inside = [rate for rate in rates if selection.low <= rate <= selection.high]
    every = len(rates)
    return {
        "questions": every,
        "kept": kept,
        "always_right": round(rates.count(1.0) / every, 6),
        "always_wrong": round(rates.count(0.0) / every, 6),
        "inside": round(len(inside) / every, 6),
        "mean_pass_rate": round(sum(rates) / every, 6),
    }


def require_enough(rates: Sequence[float], needed: int, why: str, selection: Selection) -> None:
    """Refuse a band that holds fewer questions than are `needed`, with one that holds enough."""
    inside = _held(rates, selection.low, selection.high)
    if inside >= needed:
        return
    low, high = wider(rates, needed, selection)
    raise Refused(
        "select.low and select.high",
        expected=f"a band that holds at least {text.count(needed, 'question')} ({why})",
        found=f"{inside} of {len(rates)} from {selection.low} to {selection.high} "
        f"({rates.count(1.0)} are always right, {rates.count(0.0)} always wrong)",
        remedy=f"low: {low}, high: {high} hold {_held(rates, low, high)}; or bring more data.",
    )


def wider(rates: Sequence[float], needed: int, selection: Selection) -> tuple[float, float]:
    """The band, widened at both ends answer by answer until it holds so many; at most 0 to 1."""
    low, high = selection.low, selection.high
    for answers in range(selection.samples + 1):
        low = max(0.0, round(selection.low - answers / selection.samples, 3))
        high = min(1.0, round(selection.high + answers / selection.samples, 3))
        if _held(rates, low, high) >= needed:
            break
    return low, high


def _held(rates: Sequence[float], low: float, high: float) -> int:
    return sum(low <= rate <= high for rate in rates)
