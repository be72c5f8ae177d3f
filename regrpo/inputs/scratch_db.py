"""A temporary SQLite database: sorts, groups and looks up more rows than memory holds."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator

from regrpo.core.errors import CannotCheck

BATCH = 16_384
"""Rows in memory at once."""
MEMORY = 64
"""MiB of pages that are held, and that a sort may use; the rest lies on the disk."""


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """A database of this process alone, gone when it is closed or the process ends, however it ends.

    Its files lie in $SQLITE_TMPDIR, $TMPDIR or /var/tmp (sqlite.org/tempfiles.html, section 5). Raises CannotCheck
    where the disk is full.
    """
    with contextlib.closing(sqlite3.connect("")) as opened:
        for setting in (
            f"cache_size = -{MEMORY * 1024}",
            "journal_mode = off",
            "temp_store = file",
        ):
            opened.execute(f"pragma {setting}").fetchall()
        try:
            yield opened
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_FULL,
                sqlite3.SQLITE_IOERR,
                sqlite3.SQLITE_CANTOPEN,
            ):
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
    return hashlib.blake2b(
        text.encode(), digest_size=16, salt=hashlib.sha256(salt.encode()).digest()[:16]
    ).digest()
