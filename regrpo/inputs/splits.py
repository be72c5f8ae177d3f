"""The four splits of a source's rows, which may be more than memory holds.

The rows lie in a temporary database. Where a row goes follows from a hash of the seed and its
class: classes stand in the order of their hashes, and each split takes the next share of them. So
rows that are appended to a source move at most as many other classes from one split to the next as
they bring.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from regrpo.core.errors import Refused, first_line
from regrpo.core.files import in_batches
from regrpo.inputs.examples import Plan, kept_columns
from regrpo.inputs.formats import Format, normalise
from regrpo.inputs.readers import Row
from regrpo.inputs.scratch_db import BATCH, key

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "question", "answer", "solution", "turns", "source_row")
Selection = tuple[str, dict[str, Any]]
"""What follows `select <columns>`, and the values of its parameters."""
_NTH_OF_CLASS = "row_number() over (partition by class order by source_row) as nth"


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, some at a time: at most BATCH, and as many as fit into memory."""
    return in_batches(rows, BATCH)


class Splits:
    """Rows are added part by part, then divided, then read back split by split."""

    def __init__(self, database: sqlite3.Connection, plan: Plan, form: Format) -> None:
        self.database = database
        self.plan = plan
        self.form = form
        self.given: dict[str, int] = {}
        """How many rows each part of the source has."""
        self.kept = Kept(kept_columns(plan))
        self._selections: dict[str, Selection] = {}
        # class: the question's class. place: a random order. spelled: the normalised question.
        # packing, packed: the further columns.
        database.execute(
            "create table rows (id text, question text, answer text, solution text, turns text,"
            " source_row integer, part text, class blob, place blob, spelled blob,"
            " packing integer, packed blob)"
        )

    def add(self, part: str, rows: Iterable[Row]) -> None:
        """Keep a part's rows (`train`, `eval`). Raises Refused if there are none."""
        self.given[part] = 0
        for batch in batches(rows):
            packed = self.kept.pack(part, [row.get("raw", {}) for row in batch])
            self.database.executemany(
                "insert into rows values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(self._keyed, repeat(part), batch, packed),
            )
            before = self.given[part]
            self.given[part] += len(batch)
            if self.given[part] // (BATCH * 32) > before // (BATCH * 32):
                print(f"prepare: {part}: {self.given[part]:,} rows read ...", flush=True)
        if not self.given[part]:
            raise Refused(
                f"prepare.source.{part}",
                expected="at least one row",
                found="none",
                remedy="Bring the data again.",
            )
        self.kept.require_all(part)
        if self.plan.drop_duplicates:
            self.database.execute(
                "delete from rows where rowid in (select rowid from (select rowid, row_number()"
                " over (partition by spelled order by rowid) as nth from rows where part = ?)"
                " where nth > 1)",
                (part,),
            )

    def _keyed(self, part: str, row: Row, packed: tuple[Any, Any]) -> tuple[Any, ...]:
        # The seed salts what decides over places, not what says whether two questions are equal.
        seed = str(self.plan.seed)
        return (
            *(row[column] for column in COLUMNS),
            part,
            key(self.form.canonical(row["question"]), seed),
            key(f"{part} {row['source_row']}", seed),
            key(normalise(row["question"])),
            *packed,
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
                    f"create table repeated_{name} as select {name} from rows"  # noqa: S608  (names of ours; values are bound)
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
        rows = f"from (select *, {_NTH_OF_CLASS} from rows where part = 'eval')"  # noqa: S608  (names of ours; values are bound)
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
            f"from (select *, {_NTH_OF_CLASS} from rows"  # noqa: S608  (names of ours; values are bound)
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
            f"select count(*), count(distinct class) from (select class {rows})",  # noqa: S608  (names of ours; values are bound)
            values,
        ).fetchone()
        return dict(zip(("rows", "classes"), found, strict=True))

    def rows(self, split: str) -> Iterator[Row]:
        """A split's rows, in its order."""
        rows, values = self._selections[split]
        columns = ", ".join(COLUMNS)
        query = f"select packing, packed, {columns} {rows}"
        for number, data, *found in self.database.execute(query, values):
            yield dict(zip(COLUMNS, found, strict=True)) | self.kept.unpack(number, data)


def require(found: int, wanted: int, key: str, what: str) -> None:
    """Refuse a profile that asks for more than the source has."""
    if found < wanted:
        raise Refused(
            key,
            expected=f"at least {wanted} {what}",
            found=str(found),
            remedy="Lower prepare.eval or prepare.dev, or bring more data.",
        )


class Kept:
    """Packs the further columns (prepare.keep) into bytes, a row each, and learns their types.

    These are Arrow's over all rows of the source: numbers stay numbers, lists and objects stay
    nested (an object's keys are those of all rows, null where a row lacks one).
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.schema: pa.Schema | None = None
        """The types in all rows so far; None before the first."""
        self._packed: list[pa.Schema] = []
        self._seen: set[str] = set()

    def pack(self, part: str, rows: Sequence[Row]) -> list[tuple[int, bytes] | tuple[None, None]]:
        """For each row what `unpack` takes.

        Raises Refused for a column whose values have no common type.
        """
        if not self.columns:
            return [(None, None)] * len(rows)
        import pyarrow as pa

        values = []
        for row in rows:
            self._seen |= row.keys()
            values.append({column: row.get(column) for column in self.columns})
        try:
            batch = pa.RecordBatch.from_pylist(values)
            known = [batch.schema] if self.schema is None else [self.schema, batch.schema]
            self.schema = pa.unify_schemas(known, promote_options="permissive")
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise Refused(
                f"prepare.keep: {', '.join(self.columns)}",
                expected="columns whose values have one type in all rows",
                found=f"{first_line(error)[:300]} (part {part})",
                remedy="Write the column with one type (as text, say), or leave it out.",
            ) from error
        self._packed.append(batch.schema)
        number = len(self._packed) - 1
        singles = [batch.slice(index, 1) for index in range(len(rows))]
        return [(number, single.serialize().to_pybytes()) for single in singles]

    def unpack(self, number: int | None, data: bytes | None) -> Row:
        """The columns of a row again."""
        if number is None or data is None:
            return {}
        import pyarrow as pa

        batch = pa.ipc.read_record_batch(pa.py_buffer(data), self._packed[number])
        row: Row = batch.to_pylist()[0]
        return row

    def require_all(self, part: str) -> None:
        """Refuse a column that no row has (its name is misspelled), and objects without keys."""
        missing = [column for column in self.columns if column not in self._seen]
        if missing:
            raise Refused(
                "prepare.keep",
                expected=f"columns of the source ({', '.join(sorted(self._seen))})",
                found=f"{', '.join(missing)}, which no row of part {part} has",
                remedy="Correct the name.",
            )
        if self.schema is not None and "struct<>" in str(self.schema):
            raise Refused(
                f"prepare.keep: {', '.join(self.columns)}",
                expected="objects with a key in some row, as Parquet knows no others",
                found=" ".join(str(self.schema).split()),
                remedy="Leave the empty column out, or write it as text.",
            )
