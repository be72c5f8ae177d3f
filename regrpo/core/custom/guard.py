"""A verifier of the user's: its class by name, and its faults as refusals by name and row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from regrpo.core.answers.protocol import GOLDS, NO_ROW, Form, Row, Verifier
from regrpo.core.custom.loading import RAISED, VERIFIERS, describe, load_alone
from regrpo.core.errors import Refused, RegrpoError
from regrpo.core.settings import Section

Method = Callable[..., Any]


def verifier_kind(name: str, where: str) -> type[Verifier]:
    """The class `custom.verifiers:<Name>`, guarded.

    Raises Refused for a name that is not there, and for what is no verifier.
    """
    kind = load_alone(name, VERIFIERS, where, "class")
    if fault := _fault(kind):
        raise Refused(
            where,
            expected=f"{name} to be a class of the protocol in regrpo/core/answers/protocol.py",
            found=fault,
            remedy="Write `class Name(Verifier)` with `parse` and `wrong` (docs/rewards.md).",
        )
    return _guarded(kind, name)


def _fault(kind: Any) -> str | None:
    """What makes a class no verifier, in words."""
    if not (isinstance(kind, type) and issubclass(kind, Verifier)):
        return f"{kind!r:.60}, which is no subclass of Verifier"
    lacking = [name for name in ("parse", "wrong") if vars(Verifier)[name] is getattr(kind, name)]
    if lacking:
        return f"a class without {' and '.join(lacking)}"
    columns: Any = kind.columns
    if not isinstance(columns, tuple) or not all(isinstance(one, str) for one in columns):
        return f"columns = {columns!r:.60} instead of a tuple of names"
    if not isinstance(kind.form, Form):
        return f"form = {kind.form!r:.60} instead of a Form"
    if not (isinstance(kind.Settings, type) and issubclass(kind.Settings, Section)):
        return "Settings that is no subclass of regrpo.core.settings.Section"
    return None


def _one_or_zero(value: Any) -> float:
    if value not in (0, 1):
        raise TypeError(f"it returned {value!r:.60}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it returned {value!r:.60}")
    return value


RESULTS: dict[str, tuple[str, Method]] = {
    "__init__": ("a verifier of these settings", lambda value: value),
    "extract": ("a value, or None", lambda value: value),
    "golds": ("the values of the gold answers", list),
    "can_parse": ("true or false", bool),
    "is_formatted": ("true or false", bool),
    "score": ("1 or 0 for any completion", _one_or_zero),
    "render": ("a completion, as text", _text),
    "wrong": ("another answer, as text", _text),
}
"""What each method is to give, in words, and how it is made sure of; `bring` has a rule besides."""


def _guarded(kind: type[Verifier], name: str) -> type[Verifier]:
    """The same class under the profile's name."""
    methods: dict[str, Any] = {}
    for method, (expected, convert) in RESULTS.items():
        methods[method] = _refusing(name, getattr(kind, method), expected, convert)
    methods["wrong"] = _of_its_kind(name, methods["wrong"])
    methods["bring"] = _bringing(name, kind.bring)
    names = {"name": name, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), methods | names)


def _refusing(name: str, method: Method, expected: str, convert: Method) -> Method:
    @functools.wraps(method)
    def guarded(self: Verifier, *given: Any, **named: Any) -> Any:
        try:
            return convert(method(self, *given, **named))
        except RegrpoError:
            raise
        except RAISED as error:
            texts = "".join(f" for {one!r:.80}" for one in given if isinstance(one, str))
            row = next((one for one in given if isinstance(one, Mapping)), NO_ROW)
            found = f"{describe(error)}{texts}"
            raise _refusal(name, row, f"{method.__name__} to give {expected}", found) from error

    return guarded


def _of_its_kind(name: str, wrong: Method) -> Method:
    """`wrong`, whose answer must be right where it is the gold: else nothing is tested by it."""

    @functools.wraps(wrong)
    def guarded(self: Verifier, answer: str, row: Row = NO_ROW) -> str:
        other: str = wrong(self, answer, row)
        if not self.score(self.render(other), other, {**row, GOLDS: None}):
            expected = "wrong to give an answer that scores 1 where it is the gold one"
            raise _refusal(name, row, expected, f"{other!r:.60}, which scores 0")
        return other

    return guarded


def _bringing(name: str, bring: Method) -> Method:
    """`bring`: all that it raises is about the row, as its ValueError is."""

    @functools.wraps(bring)
    def guarded(self: Verifier, row: Row, answer: str | None) -> Any:
        try:
            brought, columns = bring(self, row, answer)
            return brought if brought is None else _text(brought), dict(columns)
        except RAISED as error:
            raise ValueError(f"{describe(error)} (bring of {name})") from error

    return guarded


def _refusal(name: str, row: Row, expected: str, found: str) -> Refused:
    place = f", row {row['id']}" if "id" in row else ""
    return Refused(
        f"prepare.verifier: {name}{place}",
        expected=expected,
        found=found,
        remedy="Mend custom/verifiers.py and run `dvc repro` again.",
    )
