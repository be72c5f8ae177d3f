"""The four splits of a source's rows, which may be more than memory holds.

The rows lie in a temporary database. Where a row goes follows from a hash of the seed and its
class: classes stand in the order of their hashes, and each split takes the next share of them. So
rows that are appended to a source move at most as many other classes from one split to the next as
they bring.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from regrpo.core.errors import Refused
from regrpo.inputs.examples import Plan
from regrpo.inputs.formats import Format, normalise
from regrpo.inputs.readers import Row
from regrpo.inputs.scratch_db import BATCH, key

COLUMNS = ("id", "question", "answer", "solution", "turns", "source_row")
Selection = tuple[str, dict[str, Any]]
"""What follows `select <columns>`, and the values of its parameters."""
_NTH_OF_CLASS = "row_number() over (partition by class order by source_row) as nth"


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, some at a time."""
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


class Splits:
    """Rows are added part by part, then divided, then read back split by split."""

    def __init__(self, database: sqlite3.Connection, plan: Plan, form: Format) -> None:
        self.database = database
        self.plan = plan
        self.form = form
        self.given: dict[str, int] = {}
        """How many rows each part of the source has."""
        self._selections: dict[str, Selection] = {}
        # class: the question's class. place: a random order. spelled: the normalised question.
        database.execute(
            "create table rows (id text, question text, answer text, solution text, turns text,"
            " source_row integer, part text, class blob, place blob, spelled blob)"
        )

    def add(self, part: str, rows: Iterable[Row]) -> None:
        """Keep a part's rows (`train`, `eval`). Raises Refused if there are none."""
        self.given[part] = 0
        for batch in batches(rows):
            self.database.executemany(
                "insert into rows values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._keyed(part, row) for row in batch),
            )
            self.given[part] += len(batch)
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
            self.database.execute(
                "delete from rows where rowid in (select rowid from (select rowid, row_number()"
                " over (partition by spelled order by rowid) as nth from rows where part = ?)"
                " where nth > 1)",
                (part,),
            )

    def _keyed(self, part: str, row: Row) -> tuple[Any, ...]:
        # The seed salts what decides over places, not what says whether two questions are equal.
        seed = str(self.plan.seed)
        return (
            *(row[column] for column in COLUMNS),
            part,
            key(self.form.canonical(row["question"]), seed),
            key(f"{part} {row['source_row']}", seed),
            key(normalise(row["question"])),
        )

    def divide(self) -> None:
        """Choose each split's rows.

        eval and dev hold one question per class; sft and train share out the remaining classes
        whole. Variants of a question that eval or dev holds are left out. Repeats and leaks of data
        that was brought are not (drop_duplicates: false): the gate names them. Raises Refused if
        the source has too few questions.
        """
        plan = self.plan
        brought = "eval" in self.given
        if brought:
            self._take_brought_evaluation()
        elif plan.eval is None:
            raise Refused(
                "prepare.eval",
                expected="a number of questions (the source has no evaluation part)",
                found="null",
                remedy="Set prepare.eval.",
            )
        if not plan.drop_duplicates:
            for name in ("id", "spelled"):
                self.database.execute(
                    f"create table repeated_{name} as select {name} from rows"
                    f" where {name} is not null group by {name} having count(*) > 1"
                )
        # Their rowids, from 1, are the places of the classes in the order of their hashes.
        self.database.execute(
            "create table classes as"
            " select distinct class from rows where part = 'train' order by class"
        )
        [classes] = self.database.execute("select count(*) from classes").fetchone()
        for_eval = 0 if brought else plan.eval or 0
        require(
            classes,
            for_eval + plan.dev + 2,
            "prepare",
            "classes of questions (eval, dev and training)",
        )
        left = classes - for_eval - plan.dev
        for_sft = round(plan.sft * left)
        if plan.sft > 0:
            for_sft = min(max(for_sft, 1), left - 1)  # at least one class each for sft and train
        if not brought:
            self._selections["eval"] = self._one_of_each(0, for_eval)
        self._selections["dev"] = self._one_of_each(for_eval, plan.dev)
        self._selections["sft"] = self._whole(for_eval + plan.dev, for_sft, None)
        self._selections["train"] = self._whole(
            classes - left + for_sft, left - for_sft, plan.train
        )

    def _take_brought_evaluation(self) -> None:
        """Select eval from its own part; to drop duplicates, train on none of its classes."""
        rows = f"from (select *, {_NTH_OF_CLASS} from rows where part = 'eval')"
        if self.plan.drop_duplicates:
            rows += " where nth = 1"
        # A limit of -1 is none.
        self._selections["eval"] = (
            f"{rows} order by source_row limit :most",
            {"most": self.plan.eval or -1},
        )
        require(
            self.count("eval")["rows"],
            self.plan.eval or 1,
            "prepare.eval",
            "questions in the source's evaluation part",
        )
        if self.plan.drop_duplicates:
            self.database.execute(
                "delete from rows where part = 'train' and ("
                "class in (select class from rows where part = 'eval')"
                " or spelled in (select spelled from rows where part = 'eval'))"
            )

    def _range(self, start: int, classes: int) -> dict[str, bytes]:
        """The first and the last of `classes` classes after the `start` first ones."""
        if not classes:
            return {"low": b"\xff", "high": b""}  # a range that holds nothing
        places = {"low": start + 1, "high": start + classes}
        query = "select class from classes where rowid = ?"
        return {
            name: self.database.execute(query, (place,)).fetchone()[0]
            for name, place in places.items()
        }

    def _one_of_each(self, start: int, classes: int) -> Selection:
        """The first row of each class.

        If duplicates are not dropped, also those that repeat an id or a question.
        """
        wanted = "nth = 1"
        if not self.plan.drop_duplicates:
            wanted += (
                " or id is null or id in (select id from repeated_id)"
                " or spelled in (select spelled from repeated_spelled)"
            )
        rows = (
            f"from (select *, {_NTH_OF_CLASS} from rows"
            " where part = 'train' and class between :low and :high)"
        )
        return f"{rows} where {wanted} order by class, source_row", self._range(start, classes)

    def _whole(self, start: int, classes: int, most: int | None) -> Selection:
        """All rows of the classes, or the `most` first of their random order."""
        rows = "from rows where part = 'train' and class between :low and :high"
        values = {**self._range(start, classes), "most": most or -1}
        return f"{rows} order by place limit :most", values

    def count(self, split: str) -> dict[str, int]:
        """`rows` and `classes` of a split."""
        rows, values = self._selections[split]
        found = self.database.execute(
            f"select count(*), count(distinct class) from (select class {rows})", values
        ).fetchone()
        return dict(zip(("rows", "classes"), found, strict=True))

    def rows(self, split: str) -> Iterator[Row]:
        """A split's rows, in its order."""
        rows, values = self._selections[split]
        for found in self.database.execute(f"select {', '.join(COLUMNS)} {rows}", values):
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
