"""User-facing errors: Refused (checked, does not hold; exit 1) and CannotCheck (exit 2)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from regrpo.core.text import visible, without_secrets

T = TypeVar("T")
LONGEST = 4000
"""Characters of one part of an error's message."""


def _shown(text: str) -> str:
    return visible(without_secrets(text), LONGEST)


class RegrpoError(Exception):
    """Something that a user can mend: where it is, what was expected and found, what to do.

    The message is one sentence per part; `exit_code` is what the process ends with. Whatever the
    parts quote (data, a model's files, a server's reply) controls no terminal, holds no secret of
    the environment and is cut to LONGEST characters.
    """

    exit_code = 2

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        self.where = _shown(where)
        self.expected = _shown(expected)
        self.found = _shown(found)
        self.remedy = _shown(remedy)
        super().__init__(
            f"{self.where}: expected {self.expected}; found {self.found}. {self.remedy}"
        )


class Refused(RegrpoError):
    """Checked, and it does not hold (exit code 1)."""

    exit_code = 1


class Damaged(Refused, ValueError):
    """A file whose bytes are not what such a file holds; for its parsers a ValueError."""


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
    except Damaged as error:  # of our own reader
        raise Refused(str(where), expected=expected, found=error.found, remedy=remedy) from error
    except RegrpoError:
        raise
    except BaseException as error:
        # What panics in Rust (tokenizers, safetensors) is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if need_of(error) == ROOM:  # for what is written meanwhile; see `system_refusal`
            raise
        kind = CannotCheck if _is_of_system(error) else Refused
        found = said_by_parser(error)
        raise kind(str(where), expected=expected, found=found, remedy=remedy) from error


@contextlib.contextmanager
def importing(package: str, expected: str, extra: str) -> Iterator[None]:
    """Raise CannotCheck, which says how to install it, where an extra's package is missing."""
    try:
        yield
    except ImportError as error:
        raise CannotCheck(
            package,
            expected=expected,
            found=str(error),
            remedy=f"Install it with `pip install 'regrpo[{extra}]'`.",
        ) from error


def _is_of_system(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or bool(getattr(error, "errno", None))


def said_by_parser(error: BaseException) -> str:
    """What a parser found, in one line."""
    if isinstance(error, MemoryError):
        return "more than there is memory for"
    if isinstance(error, RecursionError):
        return "nesting that is too deep"
    # A bare key or attribute says nothing without its class.
    if isinstance(error, LookupError | TypeError | AttributeError):
        return class_and_message(error)
    said = visible(error, LONGEST).splitlines()
    if len(said) > 1 and said[0].endswith(":"):  # a heading
        return f"{said[0]} {said[1].strip()}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class if it has none."""
    lines = _shown(str(error)).splitlines()
    return lines[0] if lines else type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what caused it, and so on, as a traceback follows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # `raise e from e` is its own cause
        seen.add(id(error))
        yield error
        following = error.__cause__
        if following is None and not error.__suppress_context__:
            following = error.__context__
        error = following


def class_and_message(error: BaseException) -> str:
    """An exception as `ValueError: the first line of its message`."""
    return f"{type(error).__name__}: {first_line(error)}"


# --- what the system refuses ----------------------------------------------------------------------

ROOM = "room on the disk"
RIGHT = "the right to write"
MEMORY = "memory"
PLACES = {ROOM: "disk", RIGHT: "file system", MEMORY: "process"}
BY_ERRNO = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EACCES: RIGHT,
    errno.EPERM: RIGHT,
    errno.EROFS: RIGHT,
    errno.ENOMEM: MEMORY,
}
BY_WORDS = {
    r"No space left|disk is full|disk full|quota ?exceeded|File too large": ROOM,
    # torch.save names no cause; it writes its archive by this class.
    r"inline_container\.cc|PytorchStreamWriter": ROOM,
    r"Read-only file system|Permission denied|readonly database": RIGHT,
    r"annot allocate memory|can't allocate memory|can't start new thread": MEMORY,
    r"failed to map segment|bad_alloc|Unable to allocate": MEMORY,
}
"""Words of libraries that give no number: safetensors, tokenizers, SQLite, torch, ld.so."""
SPEAKERS = (
    "Exception",
    "RuntimeError",
    "OSError",
    "ImportError",
    "OperationalError",
    "SafetensorError",
)
"""The exact classes by which they say so. Another's message may quote anything: data, a completion,
what code of a user's raised.
"""
REMEDIES = {
    ROOM: "Free some (`dvc gc --workspace` drops cached results that no experiment of yours needs) "
    "or raise the quota, then run `dvc repro` again: finished stages and checkpoints are whole.",
    RIGHT: "Make it writable for this user, then run `dvc repro` again.",
    MEMORY: "Raise the limit, end what else holds memory, or lower the section's batch and "
    "lengths (`regrpo plan` says what fits), then run `dvc repro` again.",
}


def system_refusal(error: BaseException) -> CannotCheck | None:
    """What the system refused (room, the right to write, memory), by cause.

    Returns None for any other exception.
    """
    for cause in causes(error):
        need = need_of(cause)
        if need is None:
            continue
        path = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
        return CannotCheck(
            os.fsdecode(path) if isinstance(path, str | bytes) else PLACES[need],
            expected=need,
            found=f"{_said(cause)} ({_state(need)})",
            remedy=REMEDIES[need],
        )
    return None


def need_of(error: BaseException) -> str | None:
    """What the system had too little of, if that is what an exception says."""
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError) and error.errno:
        return BY_ERRNO.get(error.errno)
    if type(error).__name__ in SPEAKERS or isinstance(error, shutil.Error):
        return need_in(_said(error))
    return None


def _said(error: BaseException) -> str:
    """What an exception says; of a folder that was not copied whole, what the first file's said."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        _, target, why = error.args[0][0]
        return f"{target}: {why}"
    return getattr(error, "strerror", None) or first_line(error)


def need_in(text: str) -> str | None:
    """The same, by the words of a library or a server."""
    for words, need in BY_WORDS.items():
        if re.search(words, text, re.IGNORECASE):
            return need
    return None


def peak_memory() -> int:
    """The most resident memory of this process so far, in bytes."""
    # Not ru_maxrss where it can be helped: it begins at what the parent held at the start.
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _state(need: str) -> str:
    """How much there is of it, or who wants it."""
    if need == ROOM:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        free = f"{shutil.disk_usage(Path.cwd()).free / 1e6:,.0f} MB free here"
        if limit == resource.RLIM_INFINITY:
            return free
        return f"{free}; a file may have {limit:,} bytes, `ulimit -f`"
    if need == RIGHT:
        return f"as user {os.geteuid()}"
    held = peak_memory() / 1e6
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return f"{held:,.0f} MB held at most; no limit of the process"
    return f"{held:,.0f} MB held at most; the address space is limited to {limit / 1e6:,.0f} MB"
