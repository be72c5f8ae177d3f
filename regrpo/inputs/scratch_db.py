"""A temporary SQLite database: sorts, groups and looks up more rows than memory holds."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sqlite3
from collections.abc import Iterator

from regrpo.core.errors import CannotCheck

BATCH = 16_384
"""Rows in memory at once."""
MEMORY = 64
"""MiB of pages that are held, and that a sort may use; the rest lies on the disk."""
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Open a database of this process alone.

    It is gone when it is closed or when the process ends, however it ends. Its files lie in
    $SQLITE_TMPDIR, $TMPDIR or /var/tmp (sqlite.org/tempfiles.html, section 5). Raises CannotCheck
    if the disk is full.
    """
    with contextlib.closing(sqlite3.connect("")) as opened:
        # A negative number is one of KiB, not of pages.
        opened.execute(f"pragma cache_size = -{MEMORY * 1024}")
        # Nothing is rolled back or outlives the process, so that no journal is needed.
        opened.execute("pragma journal_mode = off").fetchall()
        opened.execute("pragma temp_store = file")
        try:
            yield opened
        except sqlite3.OperationalError as error:
            # The low byte of an extended error code is the primary one.
            if error.sqlite_errorcode & 0xFF not in NO_ROOM:
                raise
            raise CannotCheck(
                "the disk for temporary files",
                expected="room for the rows, about three times the size of the source",
                found=str(error),
                remedy="Free some, or name another folder: SQLITE_TMPDIR=/where/there/is/room.",
            ) from error


def key(text: str, salt: str = "") -> bytes:
    """16 bytes that stand for a text: BLAKE2b (RFC 7693).

    Among 10⁹ texts two share one with probability 10⁻²¹.
    """
    return hashlib.blake2b(text.encode(), digest_size=16, salt=_salt(salt)).digest()


@functools.cache
def _salt(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
