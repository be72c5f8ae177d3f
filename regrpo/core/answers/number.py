"""`number`: integers, decimals, fractions and percent, with a unit and a tolerance."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from regrpo.core.answers.protocol import LONGEST, NO_ROW, Row, Verifier
from regrpo.core.settings import Section

_MINUSES = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))
"""MINUS SIGN, EN DASH and the minuses of East Asian text."""
_THIN = "\u00a0\u2009\u202f"
"""Spaces that group digits (no-break, thin, narrow no-break); a plain one parts two numbers."""
_GAP = f"[ {_THIN}]?"
_SHAPES = {
    point: re.compile(
        rf"(?P<whole>[0-9]{{1,3}}(?P<group>[{re.escape(comma)}'{_THIN}])[0-9]{{3}}"
        rf"(?:(?P=group)[0-9]{{3}})*|[0-9]*)"
        rf"(?:{re.escape(point)}(?P<decimals>[0-9]+))?"
        r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3}))?"
    )
    for point, comma in ((".", ","), (",", "."))
}
_FRACTION = re.compile(r"(?:([0-9]+) )?([0-9]+)\s?[/\u2044]\s?([0-9]+)")


class Number(Verifier):
    """A number as people write it; compared exactly, or within a tolerance.

    12% is 0.12, unless `%` is the unit.
    """

    name = "number"
    wants = "the number"
    kind = "a number"
    reads_integers = True

    class Settings(Section):
        # May stand before or behind the number, or be left out: [€, EUR].
        unit: list[str] = Field(default=[], max_length=100)
        # The decimal sign; the other one groups thousands.
        decimal: Literal[".", ","] = "."
        # |gold − found| ≤ max(tolerance, relative · the larger of the two), as math.isclose has it.
        tolerance: float = Field(default=0.0, ge=0)
        relative: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        longest_first = sorted(filter(None, self.settings.unit), key=len, reverse=True)
        unit = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._dressed = re.compile(
            rf"(?P<sign>[-+])?{_GAP}(?P<before>{unit})?{_GAP}(?P<inner>[-+])?"
            rf"(?P<number>.*?){_GAP}(?P<behind>{unit})?",
            re.DOTALL,
        )
        self._shape = _SHAPES[self.settings.decimal]

    def parse(self, text: str, row: Row = NO_ROW) -> Fraction | None:
        if len(text) > LONGEST:
            return None
        text = re.sub(r"[ \t\r\n]+", " ", text.strip().translate(_MINUSES))
        value = self._value(text)
        return self._value(text.removesuffix(".")) if value is None else value

    def _value(self, text: str) -> Fraction | None:
        """The value of a sign, a unit on one side, and a bare number."""
        found = self._dressed.fullmatch(text)
        if found is None or (found["before"] and found["behind"]):
            return None
        if found["sign"] and found["inner"]:
            return None
        value = self._bare(found["number"])
        if value is None:
            return None
        return -value if "-" in (found["sign"], found["inner"]) else value

    def _bare(self, text: str) -> Fraction | None:
        """The value of a number without sign or unit."""
        percent = text.endswith("%")
        if percent:
            text = text[:-1].rstrip()
        if fraction := _FRACTION.fullmatch(text):
            whole, numerator, denominator = (int(part or 0) for part in fraction.groups())
            if not denominator:
                return None
            value = whole + Fraction(numerator, denominator)
        else:
            shape = self._shape.fullmatch(text)
            if shape is None or not (shape["whole"] or shape["decimals"]):
                return None
            digits = re.sub(r"[^0-9]", "", shape["whole"]) or "0"
            plain = f"{digits}.{shape['decimals'] or 0}e{shape['exponent'] or 0}"
            value = Fraction(plain)
        return value / 100 if percent else value

    def equal(self, gold: Fraction, found: Fraction) -> bool:
        given = self.settings
        allowed = Fraction(str(given.relative)) * max(abs(gold), abs(found))
        return abs(gold - found) <= max(Fraction(str(given.tolerance)), allowed)

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        """One more than the largest; where near ones count, one more than twice its size."""
        golds = self.require_golds(answer, row)
        largest = max(golds)
        if self.settings.tolerance or self.settings.relative:
            largest = 2 * max(map(abs, golds))
        value = largest + 1
        if value.denominator == 1:
            return str(value.numerator)
        return f"{value.numerator}/{value.denominator}"
