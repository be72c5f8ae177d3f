"""The validation gate.

What must hold before anything trains, as a Great Expectations suite run on every split.

`derive` computes columns (prompt tokens, what repeats where, the verifier's scores, …) of some rows
at a time, `suite` declares expectations on them, and Great Expectations does the checking, batch by
batch: what the verdict says of a row does not depend on the rows that lie in its batch. In the
derived columns null means "nothing wrong" or "already told by another check": its column
expectations skip nulls, so that one fault is reported once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from regrpo.core.verifiers import Verifier
from regrpo.inputs import scratch_db
from regrpo.inputs.checks import CHECKS, KEPT, VERIFIED, Outcome, Prompt, Row, derive
from regrpo.inputs.duplicates import CHAINS, Repeats
from regrpo.inputs.expectations import LONGEST_VALUE, Suites, row_count, schema_rows, suite

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN = 20
"""Offending rows of a check that messages and the report show."""


@dataclass(frozen=True)
class Limits:
    """`prompt_tokens`: the most of a prompt. `rows`: the fewest of a split (sft may be empty.

    Prepare.sft: 0).
    """

    prompt_tokens: int
    rows: int


@dataclass(frozen=True)
class Verdict:
    rows: dict[str, int]
    outcomes: tuple[Outcome, ...]
    not_applicable: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]

    def as_json(self) -> dict[str, Any]:
        """verdict.json: pass or fail and the counts of every check."""
        return {
            "passed": not self.failed,
            "failed_checks": len(self.failed),
            "rows": self.rows,
            "checks": [
                {
                    name: getattr(one, name)
                    for name in ("check", "split", "expectation", "rows", "failed", "passed")
                }
                for one in self.outcomes
            ],
            "not_applicable": list(self.not_applicable),
        }

    def failure_table(self) -> pd.DataFrame:
        """failures.parquet.

        Check, split, id, value (all text), in the order of checks, splits and rows.
        """
        import pandas as pd

        columns = ("check", "split", "id", "value")
        rows = [
            {"check": o.check, "split": o.split, **failure}
            for o in self.outcomes
            for failure in o.failures
        ]
        return pd.DataFrame(
            [{c: row[c] for c in columns} for row in rows], columns=columns, dtype="str"
        )

    def message(self) -> str:
        """Each failed check with split, count, the first offending rows and the remedy."""
        lines = []
        for one in self.failed:
            told = "; ".join(
                f"{shown(f['id'], 60)} ({place(f)}{shown(f['value'], 60)})"
                for f in one.failures[:SHOWN]
            )
            more = f"; and {one.failed - SHOWN} more" if one.failed > SHOWN else ""
            lines.append(f"  {one.check} in {one.split}, {one.failed} failed: {told}{more}")
            lines.append(f"    {CHECKS[one.check].remedy}")
        return "\n".join(lines).removesuffix(".")


def place(failure: Row) -> str:
    return "" if failure["source_row"] is None else f"source row {failure['source_row']}: "


def shown(text: str, longest: int = LONGEST_VALUE) -> str:
    """Text of a dataset made safe for a terminal and short: what cannot be printed is escaped."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return cut if cut.isprintable() else repr(cut)[1:-1]


class Split(Protocol):
    """A split's rows as a pyarrow.Table gives them, which need not be in memory."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def num_rows(self) -> int: ...
    def select(self, columns: list[str]) -> Split: ...
    def to_batches(self, max_chunksize: int) -> Iterable[pa.RecordBatch]: ...


def check(
    tables: Mapping[str, Split],
    canonical: Callable[[str], str],
    verifier: Verifier | None,
    count_tokens: Callable[[Sequence[Prompt]], Sequence[int]],
    limits: Limits,
    docs: Path | None = None,
    batch_rows: int = scratch_db.BATCH,
    progress: Callable[[str, int], None] = lambda split, rows: None,
) -> Verdict:
    """Run every check on every split; `docs` is a folder for Great Expectations' own pages.

    `progress` is told how many rows of a split have been checked. Where the schema does not hold,
    the other checks could not read the rows and are not run. Raises CannotCheck where an
    expectation could not be evaluated.
    """
    suites, tally = Suites(docs), Tally()
    for split, table in tables.items():
        tally.add(suites.run(f"{split} schema", split, *schema_rows(table.schema)))
    if all(one.passed for one in tally.outcomes.values()):
        with scratch_db.database() as database:
            repeats = Repeats(database, canonical)
            looked_at = {split: table.select(list(CHAINS)) for split, table in tables.items()}
            for split, start, rows in _numbered(looked_at, batch_rows):
                repeats.add(split, start, rows)
            repeats.settle()
            suite_of = {split: suite(split, limits.prompt_tokens, verifier) for split in tables}
            for split, start, rows in _numbered(tables, batch_rows):
                told = repeats.of(split, start, start + len(rows))
                frame = derive(start, rows, told, canonical, verifier, count_tokens)
                tally.add(suites.run(split, split, frame, suite_of[split]))
                progress(split, start + len(rows))
        for split, table in tables.items():
            fewest = 0 if split == "sft" and not table.num_rows else limits.rows
            tally.add(suites.run(f"{split} rows", split, *row_count(split, table.num_rows, fewest)))
    suites.write_pages()
    rows_in = {split: table.num_rows for split, table in tables.items()}
    return Verdict(rows_in, tally.in_order(list(tables)), () if verifier else VERIFIED)


class Tally:
    """The batches' outcomes as one for each check and split."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for one in outcomes:
            if known := self.outcomes.get((one.check, one.split)):
                one = dataclasses.replace(
                    known,
                    rows=known.rows + one.rows,
                    failed=known.failed + one.failed,
                    failures=(known.failures + one.failures)[:KEPT],
                )
            self.outcomes[one.check, one.split] = one

    def in_order(self, splits: Sequence[str]) -> tuple[Outcome, ...]:
        """In the order of checks, then splits."""
        keys = [(name, split) for name in CHECKS for split in splits]
        return tuple(self.outcomes[key] for key in keys if key in self.outcomes)


def _numbered(tables: Mapping[str, Split], batch_rows: int) -> Iterator[tuple[str, int, list[Row]]]:
    """Split, number of the first row, and rows of each batch.

    An empty split is one batch without rows.
    """
    for split, table in tables.items():
        start = 0
        for batch in table.to_batches(max_chunksize=batch_rows):
            yield split, start, batch.to_pylist()
            start += batch.num_rows
        if not start:
            yield split, 0, []
