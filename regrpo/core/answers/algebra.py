"""Expressions read and compared with math-verify, and its parser, and SymPy (extra `math`).

Imported only where they are used: SymPy takes a second. Of math-verify the normaliser, the parser
of LaTeX and the comparison are used; not its search for an answer, which takes a mention for one,
nor its clock, which makes a score depend on the machine's load. What it compares by solving
equations, or one way only, is compared part by part here: that ends, and is alike in either order.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended import (
    NormalizationConfig,
    is_expr_of_only_symbols,
    latex2sympy,
    normalize_latex,
)
from math_verify import verify
from sympy.core.relational import Relational

from regrpo.core.answers.latex import cleaned, is_small

logging.getLogger("math_verify.grader").setLevel(logging.ERROR)  # it warns of a clock that is off

_NORMALISED = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
_OF_SETS = (sympy.Union, sympy.Complement, sympy.Intersection)
_WORDS = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z ]+")
"""`no solution` is no product of letters."""
_MOST_ELEMENTS = 20
"""Of a set or tuple: each may be compared with each."""
_PLACES = ("1.37", "2.23", "1.71", "2.69", "1.13", "1.93")
"""Values of letters at which two expressions are compared before any algebra is done."""
_NEAR, _ZERO = 1e-9, 1e-50
"""Relative; and what is too near to zero to be told from it."""


@dataclass(frozen=True, eq=False)
class Expression:
    """What an answer's text means, as an object of SymPy. Equal are those that mean the same."""

    value: Any
    percent: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Expression):
            return False
        try:
            if self.percent == other.percent:
                return _same(self.value, other.value)
            # As math-verify and MATH's own script have it, 50% is 50, and 0.5.
            share, plain = (self.value, other.value) if self.percent else (other.value, self.value)
            return _same(share, plain) or _same(share / 100, plain)
        except Exception:  # what SymPy cannot compare is not known to be the same
            return False

    __hash__ = None  # type: ignore[assignment]  # equal ones may look different


@functools.lru_cache(maxsize=4096)  # a group of completions has one gold
def read(text: str) -> Expression | None:
    """What a text means; None for what is no expression, too large, or left to be worked out."""
    text = cleaned(text)
    percent = text.endswith("%")
    if percent:
        text = text.removesuffix("%").removesuffix("\\")
    if _WORDS.fullmatch(text):
        text = rf"\text{{{text}}}"
    text = normalize_latex(text, _NORMALISED)
    if not text or not is_small(text):
        return None
    try:
        value = _interval(latex2sympy(text, is_real=True, normalization_config=None))
        is_answer = _is_answer(value)
    except Exception:  # of a parser and an algebra system, for text that is no expression
        return None
    if not is_answer or (percent and not isinstance(value, sympy.Expr)):
        return None
    return Expression(value, percent)


def _is_answer(value: Any) -> bool:
    r"""Whether it is finite, holds no calculus, and no numbers that are left to be worked out.

    The question's `3 + 5` is no answer for the gold 8; `2^{10}` and `1 + \sqrt{2}` are answers.
    """
    if isinstance(value, sympy.MatrixBase):
        return all(map(_is_answer, value.flat()))
    if not isinstance(value, sympy.Basic):
        return False
    for part in sympy.preorder_traversal(value):
        if part in (sympy.nan, sympy.zoo) or isinstance(part, sympy.Derivative):
            return False
        if isinstance(part, sympy.FiniteSet | sympy.Tuple) and len(part.args) > _MOST_ELEMENTS:
            return False
        # Sets of equations are compared one by one; unions of such would be left to SymPy.
        if isinstance(part, _OF_SETS) and part.has(Relational):
            return False
        if isinstance(part, sympy.Add | sympy.Mul):
            numbers = [one for one in part.args if one.is_Number and one != -1]
            if len(numbers) > 1:
                return False
    return True


# --- whether two mean the same --------------------------------------------------------------------


def _same(a: Any, b: Any) -> bool:
    if bool(_relations(a)) != bool(_relations(b)):  # x = 5 and 5
        a, b = _assigned(a), _assigned(b)
    if _relations(a) or _relations(b):
        return _same_relations(_relations(a), _relations(b))
    a, b = _only(a), _only(b)
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and _same_parts(a.flat(), b.flat())
    if isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet):
        return _within(a.args, b.args) and _within(b.args, a.args)
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        are_open = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return are_open and _same_parts((a.start, a.end), (b.start, b.end))
    if _listed(a) and _listed(b):  # (1, 2) and 1, 2
        return _same_parts(_listed(a), _listed(b))
    if isinstance(a, sympy.Set) and isinstance(b, sympy.Set):
        return _verified(a, b)
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _same_scalars(a, b)
    return False


def _same_parts(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(_same, first, second))


def _within(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(any(_same(one, other) for other in others) for one in some)


def _only(value: Any) -> Any:
    """The element of a set that has but one; anything else as it is."""
    if isinstance(value, sympy.FiniteSet) and len(value.args) == 1:
        return value.args[0]
    return value


def _listed(value: Any) -> Sequence[Any]:
    """What a tuple or list holds, in its order; (1, 2) is parsed as an open interval."""
    if isinstance(value, sympy.Interval) and value.left_open and value.right_open:
        return value.start, value.end
    if isinstance(value, sympy.Tuple | sympy.FiniteSet):
        written: Sequence[Any] = getattr(value, "_unsorted_args", value.args)
        return written
    return ()


def _same_scalars(a: Any, b: Any) -> bool:
    a, b = a.doit(), b.doit()
    if a == b or (a.is_Number and b.is_Number):
        return bool(a == b)
    # Most wrong answers end here: simplifying what is not equal takes longest.
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    places = dict(zip(letters, map(sympy.Rational, itertools.cycle(_PLACES)), strict=False))
    one, other = a.evalf(15, subs=places), b.evalf(15, subs=places)
    if one.is_Number and other.is_Number and one.is_finite and other.is_finite:
        size = max(abs(one), abs(other))
        if size > _ZERO and abs(one - other) > _NEAR * size:
            return False
    return _verified(a, b)


def _verified(a: Any, b: Any) -> bool:
    # Both ways, as it is not symmetrical.
    return bool(verify(a, b, timeout_seconds=None) and verify(b, a, timeout_seconds=None))


# --- equations and inequalities -------------------------------------------------------------------


def _relations(value: Any) -> Sequence[Any]:
    """The relations of a chain like a < b < c, in their order; none of what is no relation."""
    chain = getattr(value, "_unsorted_args", ()) if isinstance(value, sympy.And) else (value,)
    return chain if all(isinstance(one, Relational) for one in chain) else ()


def _assigned(value: Any) -> Any:
    """The value of x in x = 5, or x = … = 5; anything else as it is."""
    chain = _relations(value)
    if not chain or not all(isinstance(one, sympy.Eq) for one in chain):
        return value
    return chain[-1].rhs if is_expr_of_only_symbols(chain[0].lhs) else value


def _interval(value: Any) -> Any:
    """x > 3 and 1 < x < 3 as intervals; anything else as it is."""
    chain = _relations(value)
    sides = [side for one in chain for side in one.args]
    letters = {side for side in sides if side.free_symbols}
    if any(isinstance(one, sympy.Eq) for one in chain) or len(letters) != 1:
        return value
    return value.as_set() if letters.pop().is_Symbol else value


def _same_relations(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(_same_relation, first, second))


def _same_relation(a: Any, b: Any) -> bool:
    """Whether two have one sign, and sides that differ alike: 2x + 2y = 6 and x = 3 - y."""
    a, b = _ascending(a), _ascending(b)
    if a.func != b.func:
        return False
    if not all(isinstance(side, sympy.Expr) for side in (*a.args, *b.args)):  # x ∈ [1, 2]
        return _same_parts(a.args, b.args)
    one, other = _difference(a), _difference(b)
    either_way = isinstance(a, sympy.Eq | sympy.Ne)
    return _same(one, other) or (either_way and _same(one, -other))


def _ascending(relation: Any) -> Any:
    return relation.reversed if isinstance(relation, sympy.Gt | sympy.Ge) else relation


def _difference(relation: Any) -> Any:
    """The left side minus the right one, without the factor that its numbers have in common."""
    return (relation.lhs - relation.rhs).expand().primitive()[1]
