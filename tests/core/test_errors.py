"""Errors show what others wrote without letting it act on the terminal."""

from __future__ import annotations

import pytest

from regrpo.core.errors import LONGEST, CannotCheck, Refused, first_line

HOSTILE = "\x1b]0;mine\x07\x1b[2J\u202egpj.exe\x9b31m\r"
"""Sets a window's title, clears the screen, turns the direction of reading, colours, overwrites."""


@pytest.mark.parametrize("kind", [Refused, CannotCheck])
@pytest.mark.parametrize("part", ["where", "expected", "found", "remedy"])
def test_what_an_error_quotes_controls_no_terminal(kind: type[Refused], part: str) -> None:
    parts = {"where": "a", "expected": "b", "found": "c", "remedy": "d"} | {part: HOSTILE}
    error = kind(parts.pop("where"), **parts)
    assert str(error).isprintable()
    assert str(getattr(error, part)).isprintable()
    assert "\\x1b]0;mine" in str(error)


def test_a_long_list_is_cut_and_says_so() -> None:
    names = ", ".join(f"column {number}" for number in range(100_000))
    error = Refused("data.jsonl", expected="a question", found=names, remedy="Name one.")
    assert len(str(error)) < LONGEST + 100
    assert "…. Name one." in str(error)


def test_rows_below_each_other_stay_so() -> None:
    error = Refused("data", expected="x", found="two rows:\n  row 1\n  row 2", remedy="Mend them.")
    assert str(error).splitlines()[1:] == ["  row 1", "  row 2. Mend them."]


def test_the_first_line_of_a_foreign_exception_is_shown_alike() -> None:
    assert first_line(ValueError(HOSTILE + "\nsecond")).isprintable()
    assert first_line(ValueError()) == "ValueError"
