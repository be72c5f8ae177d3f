"""Which ids and questions occur twice, within a split and across splits.

There may be more rows than memory holds: of each text the hashes of its spellings are kept, on
disk; the texts themselves are in memory a batch at a time.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from regrpo.inputs.formats import Canonical, normalise
from regrpo.inputs.scratch_db import key

Row = dict[str, Any]
CHAINS = {"id": ("given_id",), "question": ("exact", "normalised", "canonical")}
"""The spellings of each column, finest first: a coarser one is reported only if no finer one is."""
SPELLINGS = ("given_id", "exact", "normalised", "canonical")


def spellings(canonical: Canonical) -> dict[str, Canonical]:
    """How a text is spelled: a function for each name in SPELLINGS."""
    return {"given_id": str, "exact": str, "normalised": normalise, "canonical": canonical}


class Place(NamedTuple):
    """Where a split holds a text that occurs twice or more."""

    split: int
    first: int
    """The first row that holds it."""
    id: str
    """That row's id."""
    rows: int
    """How many rows hold it and do not repeat an earlier row in a finer spelling."""


class Repeats:
    """Rows are added split by split, then settled, then asked for."""

    def __init__(self, database: sqlite3.Connection, canonical: Canonical) -> None:
        self.database = database
        self.spellings = spellings(canonical)
        self.splits: list[str] = []
        database.execute(
            "create table keys (split integer, row integer, id text, given_id blob, exact blob,"
            " normalised blob, canonical blob, primary key (split, row)) without rowid"
        )

    def add(self, split: str, start: int, rows: Iterable[Row]) -> None:
        """Add the `id` and the `question` of a split's rows, which are numbered from `start`."""
        if split not in self.splits:
            self.splits.append(split)
        number = self.splits.index(split)
        values = (
            (number, index, str(row["id"]), *self._keys(row))
            for index, row in enumerate(rows, start)
        )
        self.database.executemany("insert into keys values (?, ?, ?, ?, ?, ?, ?)", values)

    def _keys(self, row: Row) -> Iterable[bytes | None]:
        """The key of each spelling; None for an absent or blank text, which repeats nothing."""
        for column, chain in CHAINS.items():
            text = row[column] or ""
            for name in chain:
                yield key(self.spellings[name](text)) if text.strip() else None

    def settle(self) -> None:
        """Find the keys that occur twice or more, and where each split holds them."""
        for chain in CHAINS.values():
            for depth, name in enumerate(chain):
                self._settle(name, chain[:depth])

    def _settle(self, name: str, finer: Iterable[str]) -> None:
        run = self.database.execute
        earlier = ["false"]
        for other in finer:
            earlier.append(
                f"exists (select 1 from {other}_places as p where p.key = keys.{other}"  # noqa: S608  (names of ours; values are bound)
                " and p.split = keys.split and p.first < keys.row)"
            )
        run(
            f"create table {name}_places (key blob, split integer, first integer, id text,"
            " rows integer, primary key (key, split)) without rowid"
        )
        # SQLite takes `id` from the row that holds the minimum
        # (sqlite.org/lang_select.html, section 2.5).
        run(
            f"insert into {name}_places select {name}, split, min(row), id,"  # noqa: S608  (names of ours; values are bound)
            f" sum(not ({' or '.join(earlier)})) from keys"
            f" where {name} in (select {name} from keys where {name} is not null"
            f" group by {name} having count(*) > 1) group by {name}, split"
        )

    def of(self, split: str, start: int, stop: int) -> dict[int, Row]:
        """Describe the rows `start` to `stop` (exclusive) of a split that repeat anything.

        `<spelling>_again` is true if the split holds it twice, `<spelling>_elsewhere` says which
        other splits hold it, and where. A coarser spelling is not reported for a row that
        repeats an earlier one, or another split's, in a finer one.
        """
        number = self.splits.index(split)
        places: dict[int, dict[str, dict[int, Place]]] = defaultdict(dict)
        for name in SPELLINGS:
            found = self.database.execute(
                "select row, p.split, first, p.id, rows from keys"  # noqa: S608  (names of ours; values are bound)
                f" join {name}_places as p on p.key = keys.{name}"
                " where keys.split = ? and row >= ? and row < ? order by row, p.split",
                (number, start, stop),
            )
            for row, group in groupby(found, key=itemgetter(0)):
                places[row][name] = {values[1]: Place(*values[1:]) for values in group}
        return {row: self._describe(number, row, found) for row, found in places.items()}

    def _describe(self, split: int, row: int, places: Mapping[str, Mapping[int, Place]]) -> Row:
        described: Row = {}
        for chain in CHAINS.values():
            repeats_earlier = leaks = False
            for name in chain:
                if name not in places:
                    continue
                here = places[name][split]
                others = [
                    f"{self.splits[place.split]} {place.id}"
                    for place in places[name].values()
                    if place.split != split
                ]
                described[f"{name}_again"] = here.rows > 1 and not repeats_earlier
                if others and not leaks:
                    described[f"{name}_elsewhere"] = "also " + ", ".join(others)
                repeats_earlier = repeats_earlier or here.first < row
                leaks = leaks or bool(others)
        return described
