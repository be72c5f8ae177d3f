"""User-facing errors: Refused (checked, does not hold; exit 1) and CannotCheck (exit 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from regrpo.core.text import visible

T = TypeVar("T")
LONGEST = 4000
"""Characters of one part of an error's message."""


class RegrpoError(Exception):
    """Something that a user can mend: where it is, what was expected and found, what to do.

    The message is one sentence per part; `exit_code` is what the process ends with. Whatever the
    parts quote (data, a model's files, a server's reply) controls no terminal and is cut to LONGEST
    characters.
    """

    exit_code = 2

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        self.where = visible(where, LONGEST)
        self.expected = visible(expected, LONGEST)
        self.found = visible(found, LONGEST)
        self.remedy = visible(remedy, LONGEST)
        super().__init__(
            f"{self.where}: expected {self.expected}; found {self.found}. {self.remedy}"
        )


class Refused(RegrpoError):
    """Checked, and it does not hold (exit code 1)."""

    exit_code = 1


class CannotCheck(RegrpoError):
    """Could not be checked: something needed is missing or unreachable (exit code 2)."""

    exit_code = 2


def entry(table: Mapping[str, T], name: str, where: str, module: str) -> T:
    """Look up a name in a table; `module` is the file to which users add their own.

    Raises Refused for an unknown name.
    """
    if name not in table:
        raise Refused(
            where,
            expected=f"one of {', '.join(table)}",
            found=repr(name),
            remedy=f"Name one of these, or add yours to {module}.",
        )
    return table[name]


@contextlib.contextmanager
def parsing(where: object, expected: str, remedy: str) -> Iterator[None]:
    """The boundary around every parser of bytes that others wrote: models, data, YAML.

    Whatever a parser raises becomes one line that names the file: Refused for what the bytes hold,
    CannotCheck for a file that the system does not give and for memory that ends.
    """
    try:
        yield
    except RegrpoError:
        raise
    except BaseException as error:
        # What panics in Rust (tokenizers, safetensors) is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kind = CannotCheck if _is_of_system(error) else Refused
        found = _said_by_parser(error)
        raise kind(str(where), expected=expected, found=found, remedy=remedy) from error


def _is_of_system(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or bool(getattr(error, "errno", None))


def _said_by_parser(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "more than there is memory for"
    if isinstance(error, RecursionError):
        return "nesting that is too deep"
    # A bare key or attribute says nothing without its class.
    if isinstance(error, LookupError | TypeError | AttributeError):
        return class_and_message(error)
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class if it has none."""
    lines = visible(error, LONGEST).splitlines()
    return lines[0] if lines else type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def class_and_message(error: BaseException) -> str:
    """An exception as `ValueError: the first line of its message`."""
    return f"{type(error).__name__}: {first_line(error)}"
