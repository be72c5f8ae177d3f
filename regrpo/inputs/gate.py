"""The validation gate: what must hold before anything trains, checked on every split.

The splits are read some rows at a time. What the verdict says of a row does not depend on the rows
that are looked at together with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.answers.protocol import Verifier
from regrpo.core.files import ParquetFile
from regrpo.core.text import one_line
from regrpo.inputs import expectations
from regrpo.inputs.checks import CHECKS, VERIFIED, Row, derive
from regrpo.inputs.duplicates import CHAINS, Repeats
from regrpo.inputs.expectations import Outcome
from regrpo.inputs.formats import Canonical
from regrpo.inputs.round_trip import RoundTrip
from regrpo.inputs.scratch_db import BATCH, database

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Offending rows of a check that messages and the report show."""


@dataclass(frozen=True)
class Limits:
    """The most tokens of a prompt, and the fewest rows of a split.

    sft may be empty all the same (prepare.sft: 0). `allowed`: checks whose failures are accepted.
    """

    prompt_tokens: int
    rows: int
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The outcome of every check on every split, and how many rows the splits have."""

    rows: dict[str, int]
    outcomes: list[Outcome]
    not_applicable: tuple[str, ...] = ()
    unformatted: tuple[str, ...] = ()
    """The rows, as `split id`, whose solution scores 1 and is not in the asked format."""
    longest: dict[str, int] = field(default_factory=dict)
    """Tokens of each split's longest prompt."""
    answers: dict[str, Counter[int]] = field(default_factory=dict)
    """For each split, how many rows have a right answer of so many tokens at least."""

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]

    @property
    def accepted(self) -> list[Outcome]:
        """The checks that do not hold, as the profile allows."""
        return [outcome for outcome in self.outcomes if outcome.failed and outcome.allowed]

    def as_json(self) -> dict[str, Any]:
        """verdict.json: pass or fail and the counts of every check."""
        checks = []
        for outcome in self.outcomes:
            values = vars(outcome) | {"passed": outcome.passed}
            del values["failures"]
            if not values["allowed"]:
                del values["allowed"]
            checks.append(values)
        return {
            "passed": not self.failed,
            "failed_checks": len(self.failed),
            "rows": self.rows,
            "checks": checks,
            "not_applicable": list(self.not_applicable),
            "unformatted_solutions": len(self.unformatted),
        }

    def failure_table(self) -> pd.DataFrame:
        """failures.parquet: check, split, id and value, all text.

        In the order of checks, splits and rows.
        """
        import pandas as pd

        rows = [
            (outcome.check, outcome.split, failure["id"], failure["value"])
            for outcome in self.outcomes
            for failure in outcome.failures
        ]
        return pd.DataFrame(rows, columns=("check", "split", "id", "value"), dtype="str")

    def message(self) -> str:
        """Each failed check with split, count, the first offending rows and the remedy."""
        lines = []
        for outcome in self.failed:
            lines.append(f"  {with_rows(outcome)}")
            lines.append(f"    {CHECKS[outcome.check].remedy}")
        return "\n".join(lines).removesuffix(".")


def with_rows(outcome: Outcome) -> str:
    """A check that did not hold, on one line with its first offending rows."""
    rows = "; ".join(map(_in_one_line, outcome.failures[:SHOWN]))
    if outcome.failed > SHOWN:
        rows += f"; and {outcome.failed - SHOWN} more"
    return f"{outcome.check} in {outcome.split}, {outcome.failed} failed: {rows}"


def _in_one_line(failure: Row) -> str:
    place = ""
    if failure["source_row"] is not None:
        place = f"source row {failure['source_row']}: "
    return f"{one_line(failure['id'], 60)} ({place}{one_line(failure['value'], 60)})"


def check(
    splits: Mapping[str, ParquetFile],
    canonical: Canonical,
    verifier: Verifier | None,
    trip: RoundTrip,
    limits: Limits,
    docs: Path | None = None,
    keep: Collection[str] = (),
) -> Verdict:
    """Run every check on every split; `docs` is a folder for Great Expectations' own pages.

    `keep` names the columns besides the usual ones. If a schema does not hold, the rows could not
    be read and the other checks are not run. Raises CannotCheck if an expectation cannot be
    evaluated.
    """
    suites = expectations.Suites(docs, limits.allowed)
    unformatted: list[str] = []
    longest = dict.fromkeys(splits, 0)
    answers: dict[str, Counter[int]] = {split: Counter() for split in splits}
    for split, file in splits.items():
        suite = suites.add(f"{split} schema", split, expectations.on_schema())
        suite.run(expectations.schema_frame(file.schema, keep))
    if all(outcome.passed for outcome in suites.outcomes):
        for split, file in splits.items():
            suite = suites.add(f"{split} rows", split, expectations.on_row_count())
            suite.run(_row_count_frame(split, file.num_rows, limits.rows))
        with database() as opened:
            repeats = Repeats(opened, canonical)
            # All splits first, as a row's verdict tells which others repeat it.
            for split, file in splits.items():
                for start, rows in file.batches(BATCH, list(CHAINS)):
                    repeats.add(split, start, rows)
            repeats.settle()
            for split, file in splits.items():
                rules = expectations.on_rows(split, limits.prompt_tokens, verifier, trip.style)
                suite = suites.add(split, split, rules)
                for start, rows in file.batches(BATCH):
                    stop = start + len(rows)
                    found = repeats.of(split, start, stop)
                    trips = trip.columns(split, rows)
                    tokens = [one.get("prompt_tokens", 0) for one in trips]
                    longest[split] = max(longest[split], *tokens)
                    answers[split].update(
                        one["answer_tokens"] for one in trips if "answer_tokens" in one
                    )
                    suite.run(derive(start, rows, found, canonical, verifier, trips))
                    if verifier:
                        unformatted += _unformatted(split, rows, verifier)
                    if file.num_rows > BATCH:
                        print(f"validate: {split} {stop:,} of {file.num_rows:,} rows", flush=True)
    suites.write_pages()
    order = list(CHECKS)
    return Verdict(
        rows={split: file.num_rows for split, file in splits.items()},
        outcomes=sorted(suites.outcomes, key=lambda outcome: order.index(outcome.check)),
        not_applicable=() if verifier else VERIFIED,
        unformatted=tuple(unformatted),
        longest=longest,
        answers=answers,
    )


def _unformatted(split: str, rows: list[Row], verifier: Verifier) -> list[str]:
    found = []
    for row in rows:
        solution = row["solution"] or ""
        scored = verifier.score(solution, row["answer"], row)
        if scored and not verifier.is_formatted(solution, row):
            found.append(f"{split} {row['id']}")
    return found


def _row_count_frame(split: str, rows: int, fewest: int) -> pd.DataFrame:
    import pandas as pd

    # prepare.sft: 0 leaves the warm start out.
    if split == "sft" and not rows:
        fewest = 0
    return pd.DataFrame([{"row": 0, "id": split, "rows": rows, "fewest": fewest}])
