"""Errors show what others wrote without letting it act on the terminal."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3

import pytest

from regrpo.core import errors
from regrpo.core.errors import (
    LONGEST,
    CannotCheck,
    Refused,
    RegrpoError,
    causes,
    class_and_message,
    first_line,
    parsing,
    system_refusal,
)

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


def test_an_error_holds_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    error = CannotCheck("hf_abcdefgh", expected="a", found="hf_abcdefgh", remedy="b hf_abcdefgh")
    assert str(error) == "***: expected a; found ***. b ***"
    assert class_and_message(OSError("no hf_abcdefgh")) == "OSError: no ***"


def test_the_first_line_of_a_foreign_exception_is_shown_alike() -> None:
    assert first_line(ValueError(HOSTILE + "\nsecond")).isprintable()
    assert first_line(ValueError()) == "ValueError"


class SafetensorError(Exception):
    """As safetensors, which is Rust, names its errors."""


def of_system(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "need"),
    [
        (of_system(errno.ENOSPC, "models/sft/a"), errors.ROOM),
        (of_system(errno.EDQUOT), errors.ROOM),
        (of_system(errno.EFBIG), errors.ROOM),
        # As copytree says it, of each file that it could not copy.
        (shutil.Error([("docs/a", "kept/a", "[Errno 28] No space left on device")]), errors.ROOM),
        (Exception("No space left on device (os error 28)"), errors.ROOM),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errors.ROOM),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5"), errors.ROOM),
        (sqlite3.OperationalError("database or disk is full"), errors.ROOM),
        (of_system(errno.EROFS, "models"), errors.RIGHT),
        (of_system(errno.EACCES, "models"), errors.RIGHT),
        (sqlite3.OperationalError("attempt to write a readonly database"), errors.RIGHT),
        (MemoryError(), errors.MEMORY),
        (of_system(errno.ENOMEM), errors.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), errors.MEMORY),
        (RuntimeError("can't start new thread"), errors.MEMORY),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), errors.MEMORY),
    ],
)
def test_what_the_system_refuses_is_one_line_by_cause(error: Exception, need: str) -> None:
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    refusal = system_refusal(wrapped)
    assert refusal is not None
    assert refusal.exit_code == 2
    assert refusal.expected == need
    assert len(str(refusal).splitlines()) == 1
    if isinstance(error, OSError) and error.filename:
        assert refusal.where == error.filename


def test_any_other_exception_is_a_fault_of_ours() -> None:
    assert system_refusal(KeyError("full")) is None
    assert system_refusal(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None


@pytest.mark.parametrize("kind", [ValueError, KeyError, NotImplementedError, AssertionError])
def test_words_of_the_system_in_anothers_message_say_nothing_of_it(kind: type[Exception]) -> None:
    error = kind("row 7: 'No space left on device'")
    assert system_refusal(error) is None
    with pytest.raises(Refused), parsing("data.jsonl", "questions", "Mend it."):
        raise error


class PanicException(BaseException):
    """As pyo3 names what panics in Rust."""


@pytest.mark.parametrize(
    ("raised", "kind", "found"),
    [
        (ValueError("bad magic\nmore"), Refused, "bad magic"),
        (KeyError("q"), Refused, "KeyError: 'q'"),
        (PanicException("index out of bounds"), Refused, "index out of bounds"),
        (RecursionError("maximum"), Refused, "nesting that is too deep"),
        (MemoryError(), CannotCheck, "more than there is memory for"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), CannotCheck, "[Errno 13]"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_a_parser_raises_names_the_file_and_what_was_expected(
    raised: BaseException, kind: type[RegrpoError], found: str
) -> None:
    with pytest.raises(kind) as caught, parsing("models/raw/x", "a model", "Bring it again."):
        raise raised
    assert str(caught.value).startswith(f"models/raw/x: expected a model; found {found}")
    assert str(caught.value).endswith(". Bring it again.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raised", [KeyboardInterrupt(), SystemExit(3), OSError(errno.ENOSPC, "No space left", "out")]
)
def test_what_no_parser_says_goes_through_the_boundary(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, parsing("models/raw/x", "a model", "Bring it."):
        raise raised
    assert caught.value is raised


def test_an_exception_that_is_its_own_cause_has_one() -> None:
    error = ValueError("round")
    error.__cause__ = error
    assert list(causes(error)) == [error]
    assert errors.system_refusal(error) is None


def test_what_was_handled_before_is_no_cause() -> None:
    try:
        try:
            raise PermissionError(errno.EACCES, "no", "/etc/x")
        except PermissionError:
            raise KeyError("ours") from None
    except KeyError as error:
        assert list(causes(error)) == [error]  # noqa: PT017  (it is no refusal)
        assert errors.system_refusal(error) is None  # noqa: PT017
