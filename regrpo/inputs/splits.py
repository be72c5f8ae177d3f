"""The four splits of a source's rows, which may be more than memory holds.

They lie in a temporary database.

Where a row goes follows from a hash of the seed and its class: classes stand in the order of their
hashes, and each split takes the next share of them. So rows that are appended to a source move at
most as many other classes from one split to the next as they bring.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from regrpo.core.errors import Refused
from regrpo.inputs.examples import Plan
from regrpo.inputs.formats import Format, normalise
from regrpo.inputs.scratch_db import BATCH, key
from regrpo.inputs.sources import Row

COLUMNS = ("id", "question", "answer", "solution", "source_row")
Selection = tuple[str, str, dict[str, Any]]
"""What follows `select …`.

Which rows, then their order or their limit, and the values of the parameters.
"""
_FROM_EVAL = "from rows where part = 'eval'"
_NTH = "row_number() over (partition by class order by source_row) as nth"


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, some at a time."""
    iterator = iter(rows)
    while some := list(islice(iterator, BATCH)):
        yield some


class Splits:
    """Rows are added part by part, then divided, then read back split by split."""

    def __init__(self, database: sqlite3.Connection, plan: Plan, form: Format) -> None:
        self.database, self.plan, self.form = database, plan, form
        self.given: dict[str, int] = {}
        self._selections: dict[str, Selection] = {}
        columns = "id text, question text, answer text, solution text, source_row integer"
        database.execute(
            f"create table rows ({columns}, part text, class blob, place blob, spelled blob)"
        )

    def add(self, part: str, rows: Iterable[Row]) -> None:
        """Keep a part's rows (`train`, `eval`). Raises Refused where there are none."""
        self.given[part] = 0
        for some in batches(rows):
            self.database.executemany(
                f"insert into rows values ({', '.join('?' * 9)})", self._keyed(part, some)
            )
            self.given[part] += len(some)
            if self.given[part] % (BATCH * 32) == 0:
                print(f"prepare: {part}: {self.given[part]:,} rows read ...", flush=True)
        if not self.given[part]:
            raise Refused(
                f"prepare.source.{part}",
                expected="at least one row",
                found="none",
                remedy="Bring the data again.",
            )
        if self.plan.drop_duplicates:
            nth = "row_number() over (partition by spelled order by rowid) as nth"
            again = f"select rowid from (select rowid, {nth} from rows where part = '{part}') where nth > 1"
            self.database.execute(f"delete from rows where rowid in ({again})")

    def _keyed(self, part: str, rows: list[Row]) -> Iterator[tuple[Any, ...]]:
        seed = f"{self.plan.seed}"
        for row in rows:
            found = key(self.form.canonical(row["question"]), seed)
            place = key(f"{part} {row['source_row']}", seed)
            yield (
                *(row[name] for name in COLUMNS),
                part,
                found,
                place,
                key(normalise(row["question"])),
            )

    def divide(self) -> None:
        """eval and dev hold one question per class.

        Sft and train share out the remaining classes whole.

        Variants of a question that eval or dev holds are left out. Repeats and leaks of data that
        was brought are not (drop_duplicates: false): the gate names them. Raises Refused where the
        source has too few questions.
        """
        plan, drop = self.plan, self.plan.drop_duplicates
        if "eval" in self.given:
            self._selections["eval"] = self._brought_evaluation()
            require(
                self.count("eval")["rows"],
                plan.eval or 1,
                "prepare.eval",
                "questions in the source's evaluation part",
            )
            if drop:
                same = " or ".join(
                    f"{name} in (select {name} {_FROM_EVAL})" for name in ("class", "spelled")
                )
                self.database.execute(f"delete from rows where part = 'train' and ({same})")
        elif plan.eval is None:
            raise Refused(
                "prepare.eval",
                expected="a number of questions (the source has no evaluation part)",
                found="null",
                remedy="Set prepare.eval.",
            )
        if not drop:
            for name in ("id", "spelled"):
                repeated = f"select {name} from rows where {name} is not null group by {name} having count(*) > 1"
                self.database.execute(f"create table repeated_{name} as {repeated}")
        ordered = "select distinct class from rows where part = 'train' order by class"
        self.database.execute(f"create table classes as {ordered}")
        [classes] = self.database.execute("select count(*) from classes").fetchone()
        for_eval = 0 if "eval" in self.given else plan.eval or 0
        require(
            classes,
            for_eval + plan.dev + 2,
            "prepare",
            "classes of questions (eval, dev and training)",
        )
        left = classes - for_eval - plan.dev
        for_sft = min(max(round(plan.sft * left), plan.sft > 0), left - 1)
        if for_eval:
            self._selections["eval"] = self._one_of_each(0, for_eval)
        self._selections["dev"] = self._one_of_each(for_eval, plan.dev)
        self._selections["sft"] = self._whole(for_eval + plan.dev, for_sft, None)
        self._selections["train"] = self._whole(
            for_eval + plan.dev + for_sft, left - for_sft, plan.train
        )

    def _brought_evaluation(self) -> Selection:
        given = f"select *, {_NTH} {_FROM_EVAL}"
        where = "where nth = 1" if self.plan.drop_duplicates else ""
        return (
            f"from ({given}) {where}",
            "order by source_row limit :most",
            {"most": self.plan.eval or -1},
        )

    def _range(self, start: int, classes: int) -> dict[str, Any]:
        """The first and the last of some classes that follow each other.

        Of none, a range that holds nothing.
        """
        found = [
            self.database.execute("select class from classes where rowid = ?", (rowid,)).fetchone()[
                0
            ]
            for rowid in (start + 1, start + classes)
            if classes
        ]
        return dict(zip(("low", "high"), found or (b"\xff", b""), strict=True))

    def _one_of_each(self, start: int, classes: int) -> Selection:
        """The first of each class.

        Where duplicates are not dropped, those that repeat an id or a question too.
        """
        given = f"select *, {_NTH} from rows where part = 'train' and class between :low and :high"
        again = "id is null or id in (select id from repeated_id) or spelled in (select spelled from repeated_spelled)"
        wanted = "nth = 1" if self.plan.drop_duplicates else f"nth = 1 or {again}"
        return (
            f"from ({given}) where {wanted}",
            "order by class, source_row",
            self._range(start, classes),
        )

    def _whole(self, start: int, classes: int, most: int | None) -> Selection:
        limit, values = ("limit :most", {"most": most}) if most else ("", {})
        rows = "from rows where part = 'train' and class between :low and :high"
        return rows, f"order by place {limit}", self._range(start, classes) | values

    def count(self, split: str) -> dict[str, int]:
        """`rows` and `classes` of a split."""
        rows, order, values = self._selections[split]
        chosen = f"select class {rows} {order if 'limit' in order else ''}"
        each = f"select count(*) as n from ({chosen}) group by class"
        found = self.database.execute(
            f"select coalesce(sum(n), 0), count(*) from ({each})", values
        ).fetchone()
        return dict(zip(("rows", "classes"), found, strict=True))

    def rows(self, split: str) -> Iterator[Row]:
        """A split's rows, in its order."""
        rows, order, values = self._selections[split]
        for found in self.database.execute(f"select {', '.join(COLUMNS)} {rows} {order}", values):
            yield dict(zip(COLUMNS, found, strict=True))


def require(found: int, wanted: int, key: str, what: str) -> None:
    """Refuse a profile that asks for more than the source has."""
    if found < wanted:
        raise Refused(
            key,
            expected=f"at least {wanted} {what}",
            found=str(found),
            remedy="Lower prepare.eval or prepare.dev, or bring more data.",
        )
