r"""`math`: an expression in \boxed{…} or in the answer tag, compared by math-verify."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

from regrpo.core.answers.latex import BOXED, LONGEST
from regrpo.core.answers.protocol import NO_ROW, TAGGED, Row, Verifier
from regrpo.core.errors import importing
from regrpo.core.settings import Section


class Math(Verifier):
    """An expression, equation, tuple, set, interval or matrix in LaTeX, equal to the gold one."""

    name = "math"
    wants = "the answer, an expression in LaTeX,"
    kind = "an expression that can be read, and not too large"

    class Settings(Section):
        # Where the answer stands: \boxed{…}, or <answer>…</answer>.
        form: Literal["boxed", "answer"] = "boxed"

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.form = BOXED if self.settings.form == "boxed" else TAGGED

    def require_packages(self) -> None:
        _algebra()

    def parse(self, text: str, row: Row = NO_ROW) -> Any:
        return _algebra().read(text) if len(text) <= LONGEST else None

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        """The gold with another number in it; a number, if it has none."""
        golds = self.require_golds(answer, row)
        for text in _others(answer):
            found = self.parse(text, row)
            both = self.parse(f"{answer} or {text}", row)
            if found is not None and found not in golds and both not in golds:
                return text
        raise ValueError(f"no other answer is found beside {answer!r}")


def _algebra() -> ModuleType:
    """The module with SymPy. Raises CannotCheck where the extra is not installed."""
    with importing("math-verify", "the package that compares answers (verifier math)", "math"):
        from regrpo.core.answers import algebra
    return algebra


def _others(answer: str) -> Iterator[str]:
    """Answers that may be wrong ones: each number of the right one raised in turn, then numbers."""
    for more in (1, 10):
        for number in re.finditer(r"[0-9]+", answer):
            raised = str(int(number[0]) + more)
            yield answer[: number.start()] + raised + answer[number.end() :]
    yield from map(str, range(7, 100))
