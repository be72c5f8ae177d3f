"""The checks as expectations of Great Expectations, and how these are run on frames."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import CannotCheck
from regrpo.inputs.checks import CHECKS, ON_ROUND_TRIP, SCORES, Row

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

KEPT = 1000
"""Offending rows of a check in a split that failures.parquet holds; all are counted."""
LONGEST_VALUE = 300
"""Characters of an offending value that are kept."""
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["row"],
    "include_unexpected_rows": False,
}


@dataclass
class Outcome:
    """One check on one split: of `rows` rows `failed` did.

    `failures` holds the first KEPT of these: id, source_row, value, question, answer. `allowed`:
    the profile accepts them.
    """

    check: str
    split: str
    expectation: str
    rows: int = 0
    failed: int = 0
    failures: list[Row] = field(default_factory=list)
    allowed: bool = False

    @property
    def passed(self) -> bool:
        return not self.failed or self.allowed


def on_rows(
    split: str, longest_prompt: int, verifier: Verifier | None, style: str
) -> dict[str, Any]:
    """The expectations on a derived frame of a split, by the name of the check."""
    import great_expectations.expectations as gxe

    nothing_in = {
        "id_unique": "given_id_again",
        "id_disjoint": "given_id_elsewhere",
        "not_empty": "empty",
        "question_unique": "exact_again",
        "question_unique_normalised": "normalised_again",
        "disjoint": "exact_elsewhere",
        "disjoint_normalised": "normalised_elsewhere",
        "disjoint_canonical": "canonical_elsewhere",
        "valid_unicode": "invalid",
        "nfc": "not_nfc",
        "no_control_characters": "control",
    }
    nothing_in |= ON_ROUND_TRIP
    if style != "chat":
        del nothing_in["template_keeps"]
    if split != "sft":
        del nothing_in["turn_ends"]
    if not verifier:
        del nothing_in["answer_survives"]
    # Training may hold variants of a question: only what is measured on must be independent.
    if split in ("dev", "eval"):
        nothing_in["class_unique"] = "canonical_again"
    if verifier:
        nothing_in["answer_parses"] = "unparsed"
    expectations = {
        check: gxe.ExpectColumnValuesToBeNull(column=column) for check, column in nothing_in.items()
    }
    expectations["id_present"] = gxe.ExpectColumnValuesToNotBeNull(column="given_id")
    expectations["prompt_length"] = gxe.ExpectColumnValuesToBeBetween(
        column="prompt_tokens", min_value=1, max_value=longest_prompt
    )
    if verifier:
        for name in SCORES:
            score = float(name[-1])
            expectations[name] = gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[score])
    return expectations


def on_schema() -> dict[str, Any]:
    """The expectation on a frame of `schema_frame`."""
    import great_expectations.expectations as gxe

    return {"schema": gxe.ExpectColumnPairValuesToBeEqual(column_A="expected", column_B="found")}


def schema_frame(given: pa.Schema, keep: Collection[str] = ()) -> pd.DataFrame:
    """The types of a split's columns, expected and found: a row for each column.

    Those of `keep` (prepare.keep) may have any type.
    """
    import pandas as pd
    import pyarrow as pa

    text = ("id", "prompt", "question", "answer", "solution")
    expected = dict.fromkeys(text, "string") | {"source_row": "int64"}
    found = {field.name: str(field.type) for field in given}
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if "prompt" in found and given.field("prompt").type == messages:
        expected["prompt"] = found["prompt"]
    expected |= {name: found.get(name, "a column of prepare.keep") for name in keep}
    names = list(expected | found)
    frame = pd.DataFrame({"expected": expected, "found": found}, index=names)
    frame = frame.fillna("no such column").rename_axis("id").reset_index()
    frame["row"] = range(len(frame))
    return frame


def on_row_count() -> dict[str, Any]:
    """The expectation on a frame of one row: a split's `rows`, and the `fewest` it may have."""
    import great_expectations.expectations as gxe

    enough = gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A="rows", column_B="fewest", or_equal=True
    )
    return {"row_count": enough}


class Suites:
    """Makes suites of Great Expectations, whose own pages go to the folder `docs` (None: none)."""

    def __init__(self, docs: Path | None, allowed: Sequence[str] = ()) -> None:
        self.docs = docs
        self.allowed = allowed
        """Checks whose failures the profile accepts."""
        self.context = _context(docs)
        self.outcomes: list[Outcome] = []
        """What the suites have found so far, in the order in which they were added."""

    def add(self, name: str, split: str, expectations: Mapping[str, Any]) -> Suite:
        """Declare a suite of expectations, given by the name of the check."""
        import great_expectations as gx

        outcomes = {}
        for check, expectation in expectations.items():
            expectation.meta = {"check": check}
            expectation.description = CHECKS[check].holds
            outcomes[check] = Outcome(
                check, split, expectation.expectation_type, allowed=check in self.allowed
            )
        self.outcomes += outcomes.values()
        suite = gx.ExpectationSuite(name=name, expectations=list(expectations.values()))
        asset = self.context.data_sources.get("prepared").add_dataframe_asset(name)
        definition = gx.ValidationDefinition(
            name=name,
            data=asset.add_batch_definition_whole_dataframe("all"),
            suite=self.context.suites.add(suite),
        )
        return Suite(self.context.validation_definitions.add(definition), outcomes)

    def write_pages(self) -> None:
        """Write Great Expectations' own pages, if there is a folder for them."""
        if self.docs is None:
            return
        self.context.build_data_docs()
        # 3 MB of stock pictures, which every run would keep.
        shutil.rmtree(self.docs / "static" / "images", ignore_errors=True)


class Suite:
    """A suite that is run on one frame of a split after the other.

    Great Expectations' own pages show the first frame and the first that fails: one page a frame
    would be thousands.
    """

    def __init__(self, definition: Any, outcomes: Mapping[str, Outcome]) -> None:
        self.definition = definition
        self.outcomes = outcomes
        self.on_pages: set[bool] = set()
        """Whether the frames that the pages show passed."""

    def run(self, frame: pd.DataFrame) -> None:
        """Evaluate the expectations on a frame, and add what is found to the outcomes.

        Raises CannotCheck for an expectation that cannot be evaluated.
        """
        for result in self._results(frame):
            self._add(frame, result)

    def _results(self, frame: pd.DataFrame) -> Any:
        data = {"dataframe": frame}
        if self.on_pages:
            batch = self.definition.data.get_batch(data)
            found = batch.validate(self.definition.suite, result_format=RESULT_FORMAT)
            if found.success or False in self.on_pages:
                return found.results
        # Unlike `validate`, this keeps the result for the pages.
        found = self.definition.run(batch_parameters=data, result_format=RESULT_FORMAT)
        self.on_pages.add(found.success)
        return found.results

    def _add(self, frame: pd.DataFrame, result: Any) -> None:
        config = result.expectation_config
        outcome = self.outcomes[config.meta["check"]]
        if "unexpected_index_list" not in result.result:
            raise CannotCheck(
                f"{outcome.check} in {outcome.split}",
                expected=f"Great Expectations to evaluate {config.type}",
                found=str(result.exception_info)[:500],
                remedy="Please report this: the gate refuses what it cannot check.",
            )
        unexpected = result.result["unexpected_index_list"] or []
        outcome.rows += len(frame)
        outcome.failed += len(unexpected)
        for found in unexpected[: KEPT - len(outcome.failures)]:
            position = found["row"] - frame["row"].iloc[0]
            outcome.failures.append(_failure(frame.iloc[position], found))


def _context(docs: Path | None) -> Any:
    """An in-memory context of Great Expectations that is silent and sends nothing."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # The gate reports failures itself.
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    if docs is not None:
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
        (default,) = context.get_site_names()
        context.update_data_docs_site(default, site)
    context.data_sources.add_pandas("prepared")
    return context


def _failure(row: pd.Series[Any], found: Row) -> Row:
    """What is kept of an offending row: id, source_row, the value found, question and answer.

    `found` holds the row's number and the value of each column that the expectation looks at.
    """
    import pandas as pd

    def text(value: Any, absent: str) -> str:
        return absent if pd.isna(value) else str(value)

    values = {column: text(found[column], "null") for column in found if column != "row"}
    if len(values) == 1:
        (value,) = values.values()
    else:
        value = ", ".join(f"{column} {text}" for column, text in values.items())
    source_row = row.get("source_row")
    return {
        "id": text(row["id"], "null"),
        "source_row": None if pd.isna(source_row) else int(source_row),
        "value": value[:LONGEST_VALUE],
        "question": text(row.get("question"), "")[:LONGEST_VALUE],
        "answer": text(row.get("answer"), "")[:LONGEST_VALUE],
    }
