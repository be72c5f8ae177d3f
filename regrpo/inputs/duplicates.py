"""Where ids and questions repeat within a split and across splits, of more rows than memory holds.

Each text is kept as the hashes of its spellings, on disk; the texts themselves are in memory a
batch at a time.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from regrpo.inputs.formats import normalise
from regrpo.inputs.scratch_db import key

Row = dict[str, Any]
CHAINS = {"id": ("given_id",), "question": ("exact", "normalised", "canonical")}
"""Of each column its spellings, finest first: a coarser one is told only where no finer one is."""
SPELLINGS = tuple(name for chain in CHAINS.values() for name in chain)


def spellings(canonical: Callable[[str], str]) -> dict[str, Callable[[str], str]]:
    """How a text is spelled."""
    return {"given_id": str, "exact": str, "normalised": normalise, "canonical": canonical}


class Repeats:
    """Rows are added split by split, then settled, then asked for."""

    def __init__(self, database: sqlite3.Connection, canonical: Callable[[str], str]) -> None:
        self.database, self.spellings = database, spellings(canonical)
        self.splits: list[str] = []
        columns = "split integer, row integer, id text, " + ", ".join(
            f"{name} blob" for name in SPELLINGS
        )
        database.execute(f"create table keys ({columns}, primary key (split, row)) without rowid")

    def add(self, split: str, start: int, rows: Iterable[Row]) -> None:
        """Rows of a split, numbered from `start`.

        Of each its `id` and its `question` are looked at.
        """
        if split not in self.splits:
            self.splits.append(split)
        number = self.splits.index(split)
        values = (
            (number, row, str(one["id"]), *self._keys(one)) for row, one in enumerate(rows, start)
        )
        self.database.executemany(
            f"insert into keys values ({', '.join('?' * (3 + len(SPELLINGS)))})", values
        )

    def _keys(self, row: Row) -> Iterable[bytes | None]:
        for column, chain in CHAINS.items():
            text = row[column] or ""
            for name in chain:
                yield key(self.spellings[name](text)) if text.strip() else None

    def settle(self) -> None:
        """Keep, of each key that occurs twice or more, the first row of every split that holds it."""
        for chain in CHAINS.values():
            for depth, name in enumerate(chain):
                earlier = " or ".join(
                    f"exists (select 1 from {finer}_places as p where p.key = keys.{finer} and p.split = keys.split"
                    " and p.first < keys.row)"
                    for finer in chain[:depth]
                )
                self.database.execute(
                    f"create table {name}_again (key blob primary key) without rowid"
                )
                self.database.execute(
                    f"insert into {name}_again select {name} from keys where {name} is not null "
                    f"group by {name} having count(*) > 1"
                )
                self.database.execute(
                    f"create table {name}_places (key blob, split integer, first integer, id text, rows integer, "
                    "primary key (key, split)) without rowid"
                )
                # SQLite takes `id` from the row that holds the minimum
                # (sqlite.org/lang_select.html, section 2.5).
                self.database.execute(
                    f"insert into {name}_places select {name}, split, min(row), id, sum(not ({earlier or 'false'})) "
                    f"from keys where {name} in (select key from {name}_again) group by {name}, split"
                )

    def of(self, split: str, start: int, stop: int) -> Mapping[int, Row]:
        """For rows `start` to `stop` of a split that repeat anything.

        `<spelling>_again` and `<spelling>_elsewhere`.

        The first is true where the split holds it twice, the second tells which other splits hold
        it. A coarser spelling is not told of a row that repeats an earlier one, or another split's,
        in a finer one.
        """
        found: dict[int, dict[str, list[tuple[int, int, str, int]]]] = defaultdict(dict)
        number = self.splits.index(split)
        for name in SPELLINGS:
            rows = self.database.execute(
                f"select row, p.split, first, p.id, rows from keys join {name}_places as p on p.key = keys.{name} "
                "where keys.split = ? and row >= ? and row < ? order by row, p.split",
                (number, start, stop),
            )
            for row, places in groupby(rows, key=itemgetter(0)):
                found[row][name] = [place[1:] for place in places]
        return {row: self._told(number, row, places) for row, places in found.items()}

    def _told(
        self, split: int, row: int, found: Mapping[str, list[tuple[int, int, str, int]]]
    ) -> Row:
        told: Row = {}
        for chain in CHAINS.values():
            repeats = leaks = False
            for name in chain:
                here = [place for place in found.get(name, []) if place[0] == split]
                others = [
                    f"{self.splits[place[0]]} {place[2]}"
                    for place in found.get(name, [])
                    if place[0] != split
                ]
                told[f"{name}_again"] = bool(here) and here[0][3] > 1 and not repeats
                told[f"{name}_elsewhere"] = (
                    "also " + ", ".join(others) if others and not leaks else None
                )
                repeats, leaks = repeats or (bool(here) and here[0][1] < row), leaks or bool(others)
        return told
