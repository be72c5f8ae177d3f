r"""LaTeX as text: what stands in \boxed{…}, and whether an expression is small enough to be read.

Nothing is computed here. Whether a computer algebra system would take long is told by sizes alone,
so that no clock decides a score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from regrpo.core.answers.protocol import Form

LONGEST = 200
"""Characters of an expression."""
DEEPEST = 6
"""Brackets within brackets."""
MOST_BITS = 50_000.0
"""Of the number that an expression's powers and factorials make, were they worked out."""
MOST_TERMS = 200.0
"""Of the sum that an expression's brackets make, were they multiplied out."""
LETTER_BITS = 50.0
"""Those of a letter: x^{1000} is as large as can be read."""

# --- \boxed{…} ------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_BEHIND = re.compile(r"(?:[\s.$]|\\\)|\\\])*")
"""What may follow the last box: the end of a formula and of a sentence."""


@dataclass(frozen=True, kw_only=True)
class BoxedForm(Form):
    r"""\boxed{…} with balanced braces, which no regular expression reads."""

    def stated(self, completion: str) -> list[str]:
        completion = self.behind_reasoning(completion)
        return [completion[start:end] for start, end in _boxes(completion)]

    def is_whole(self, completion: str) -> bool:
        completion = self.behind_reasoning(completion)
        boxes = _boxes(completion)
        return len(boxes) == 1 and bool(_BEHIND.fullmatch(completion, boxes[0][1] + 1))


BOXED = BoxedForm(
    description=r"in \boxed{…}",
    answer_opening=r"\boxed{",
    answer_closing="}",
    # Kojima et al. 2022 (arXiv:2205.11916), section 3.
    reasoning_opening="Let's think step by step.\n",
    reasoning_closing="</think>",
)


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where the contents of the outermost boxes begin and end; none if one is left open.

    A box that is cut off at the very end is no box, and contradicts none.
    """
    boxes = []
    depth = start = within = 0
    for brace in _BRACE.finditer(text):
        is_box = brace[0].startswith(r"\boxed")
        if is_box and not depth:
            depth, start, within = 1, brace.end(), 0
        elif depth and (is_box or brace[0] == "{"):
            depth += 1
            within += is_box
        elif depth and brace[0] == "}":
            depth -= 1
            if not depth:
                boxes.append((start, brace.start()))
    return [] if depth and within else boxes


# --- an expression's text -------------------------------------------------------------------------

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b0": ""})
_THIN = re.compile(r"(?<=[0-9])(?:\\[,!]|\{,\})(?=[0-9]{3}(?![0-9]))")
_SPACING = re.compile(r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\s+")
_GROUPED = re.compile(r"(?:\\?\$)?-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_DECIMAL = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")
_UNIT = re.compile(r"(?<=.)\\(?:text|textrm|mbox|mathrm) ?\{[^{}]*\}(?:\^\{?[0-9]\}?)?$")
_STYLED = re.compile(r"\\(?:text|textrm|textbf|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_MIXED = re.compile(r"(?<![0-9./])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9./])")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{(?:[pb]?matrix|array)\}(?:\{[clr|]*\})?")
_QUOTIENT = r"\\frac\{[0-9]+\}\{[0-9]+\}"
_NUMBER = rf"(?:[0-9/]+|{_QUOTIENT})"
_SIDE_BY_SIDE = re.compile(
    r"[0-9]\s+[0-9]"
    rf"|(?:(?<![_0-9])[0-9]+|\)|\](?!\{{)|{_QUOTIENT})\s*[(\[{{]\s*{_NUMBER}\s*[)\]}}]"
    rf"|(?:[)\]]|{_QUOTIENT})\s*(?:[0-9]|{_QUOTIENT})"
)
r"""Numbers with no sign between them: latex2sympy reads 2(3) as 2 + 3, like 2\frac{1}{2}."""
_BARE_POWER = re.compile(r"(?:\||\\\})\s*[\^!]")
"""A power of what stands between bars, or of a matrix: its size is not looked for."""
_MARK = re.compile(r"[0-9]+|\\[a-zA-Z]+|\\.|\S", re.DOTALL)
_OPENING = frozenset(["(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\lvert"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rfloor", r"\rceil", r"\rvert"])
_DIGITS = frozenset("0123456789")
_APART = frozenset(["+", "-", ",", ";", "=", "<", ">", "&", r"\\", r"\pm", r"\cup"])
"""What stands between the terms of a sum, a list, a relation or a matrix."""
_KNOWN = re.compile(
    r"\\(?:frac|sqrt|binom|pi|cdot|times|div|pm|infty|circ|text|textbf|math(?:rm|bf|bb)"
    r"|cup|cap|setminus|in|emptyset|le|leq|ge|geq|lt|gt|ne|neq|[lr](?:floor|ceil|vert)"
    r"|ln|log|sin|cos|tan|sec|csc|cot|arcsin|arccos|arctan|overline|bar|vec|hat"
    r"|alpha|beta|[gG]amma|[dD]elta|epsilon|varepsilon|zeta|eta|[tT]heta|iota|kappa|[lL]ambda|mu"
    r"|nu|[xX]i|Pi|rho|[sS]igma|tau|[pP]hi|varphi|chi|[pP]si|[oO]mega)"
)
"""The commands of an answer. Sums, integrals, limits and determinants are none."""


def cleaned(text: str) -> str:
    r"""An expression without what is around it: $…$, a box, a unit in \text{…}, a full stop.

    Decimals become fractions, so that numbers are compared exactly.
    """
    text = _SPACING.sub(" ", _THIN.sub("", text.translate(_SIGNS))).strip()
    text = text.removesuffix(".").rstrip()
    for opening, closing in _WRAPPERS:
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(text) - len(opening) - len(closing):
            text = inner.strip()
    boxes = _boxes(text)
    if len(boxes) == 1 and text.startswith(r"\boxed") and boxes[0][1] == len(text) - 1:
        text = text[slice(*boxes[0])].strip()
    if styled := _STYLED.fullmatch(text):
        text = styled[1].strip()
    text = _UNIT.sub("", text).rstrip().replace(r"\varnothing", r"\emptyset")
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    return _DECIMAL.sub(_fraction, text)


def _fraction(decimal: re.Match[str]) -> str:
    whole, decimals = decimal.groups()
    return rf"\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}}"


def _braces(environment: re.Match[str]) -> str:
    return r"\{" if environment[1] == "begin" else r"\}"


def is_small(text: str) -> bool:
    """Whether an expression has known commands and balanced brackets, and is within the limits."""
    text = _ENVIRONMENT.sub(_braces, text)
    marks = _MARK.findall(text)
    depth = deepest = 0
    for mark in marks:
        depth += (mark in _OPENING) - (mark in _CLOSING)
        deepest = max(deepest, depth)
        is_command = mark.startswith("\\") and mark[1:].isalpha()
        if depth < 0 or (is_command and not _KNOWN.fullmatch(mark)):
            return False
    if depth or deepest > DEEPEST or _SIDE_BY_SIDE.search(text) or _BARE_POWER.search(text):
        return False
    size = _sequence(iter(marks))
    return size.bits <= MOST_BITS and size.terms <= MOST_TERMS


@dataclass
class Size:
    """What a part of an expression is at most, were it worked out and multiplied out."""

    bits: float = 0.0
    """Of its numbers, each letter counted as LETTER_BITS."""
    terms: float = 1.0
    """Of the sum that it is."""
    magnitude: float = 0.0
    """The binary logarithm of its value."""

    def times(self, other: Size) -> Size:
        terms = min(self.terms * other.terms, 1e100)
        return Size(self.bits + other.bits, terms, self.magnitude + other.magnitude)

    def to_the(self, exponent: Size) -> Size:
        power = 2.0 ** min(exponent.magnitude, 100.0)
        # Of (a + b + …)^n: the ways to share n among the terms.
        shares = math.lgamma(self.terms + power) - math.lgamma(self.terms) - math.lgamma(power + 1)
        terms = math.exp(min(shares, 100.0))
        return Size(self.bits * power, terms, self.magnitude * power)


_LETTER = Size(LETTER_BITS, magnitude=1.5)  # e is less than 2^1.5
_SIGN = Size(bits=1.0)


def _sequence(marks: Iterator[str]) -> Size:
    """The size of what stands up to a closing bracket: a sum of products of powers."""
    total = None
    product, last = Size(), Size()
    for mark in marks:
        if mark in _CLOSING:
            break
        if mark in _APART:
            total = _plus(total, product.times(last))
            product, last = Size(), Size()
        elif mark == "^":
            last = last.to_the(_exponent(marks))
        elif mark == "!":
            last = last.to_the(last)  # n! is less than n^n
        else:
            product, last = product.times(last), _item(mark, marks)
    return _plus(total, product.times(last))


def _plus(total: Size | None, product: Size) -> Size:
    if total is None:
        return product
    magnitude = max(total.magnitude, product.magnitude) + 1
    return Size(total.bits + product.bits, total.terms + product.terms, magnitude)


def _exponent(marks: Iterator[str]) -> Size:
    mark = next(marks, "")
    while mark in ("+", "-"):
        mark = next(marks, "")
    return _item(mark, marks)


def _item(mark: str, marks: Iterator[str]) -> Size:
    if mark in _OPENING:
        return _sequence(marks)
    if mark == r"\frac":
        return _exponent(marks).times(_exponent(marks))
    if mark == r"\binom":
        above = _exponent(marks)
        return above.to_the(above).times(_exponent(marks))
    if mark == r"\sqrt":
        mark = next(marks, "")
        if mark == "[":
            return _sequence(marks).times(_exponent(marks))
        return _item(mark, marks)
    if mark[:1] in _DIGITS:
        bits = math.log2(int(mark) + 1)
        return Size(bits=bits, magnitude=bits)
    return _LETTER if mark.isalpha() else _SIGN
