"""The temporary database: a full disk is reported as such, and nothing else is."""

from __future__ import annotations

import sqlite3

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.inputs import scratch_db
from regrpo.inputs.formats import get_format
from stages import prepare
from tests.support.prepared import params, placed, questions


def test_a_mistake_of_ours_in_sql_is_no_full_disk() -> None:
    with (
        pytest.raises(sqlite3.OperationalError, match="no such column"),
        scratch_db.database() as database,
    ):
        database.execute("select nonsense")


def test_a_full_disk_is_told_in_one_line() -> None:
    def fill() -> None:
        with scratch_db.database() as database:
            database.execute("pragma max_page_count = 8")
            made = prepare.Splits(database, params(), get_format("question_answer"))
            made.add(
                "train", prepare.read_part(placed(questions(2000)), params(), made.form, "train")
            )

    with pytest.raises(
        CannotCheck, match=r"room for the rows.*database or disk is full.*SQLITE_TMPDIR"
    ):
        fill()
