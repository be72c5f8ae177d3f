"""The two ways a check ends badly, and the one form in which an error is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class RegrpoError(Exception):
    """Something a user can mend: where it is, what was expected, what was found, what to do.

    The message is one sentence per part; `exit_code` is what the process ends with.
    """

    exit_code = 2

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        self.where, self.expected, self.found, self.remedy = where, expected, found, remedy
        super().__init__(f"{where}: expected {expected}; found {found}. {remedy}")


class Refused(RegrpoError):
    """Checked, and it does not hold (exit code 1)."""

    exit_code = 1


class CannotCheck(RegrpoError):
    """Could not be checked: something needed is missing or unreachable (exit code 2)."""

    exit_code = 2


def entry(table: Mapping[str, T], name: str, where: str, module: str) -> T:
    """The entry of that name; `module` is the file to which users add theirs.

    Raises Refused where there is none.
    """
    if name not in table:
        raise Refused(
            where,
            expected=f"one of {', '.join(table)}",
            found=repr(name),
            remedy=f"Name one of these, or add yours to {module}.",
        )
    return table[name]
