"""The checks as expectations of Great Expectations, and how these are run on frames."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.errors import CannotCheck
from regrpo.core.verifiers import Verifier
from regrpo.inputs.checks import CHECKS, KEPT, VERIFIED, Outcome, Row

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LONGEST_VALUE = 300
"""Characters of an offending value that are kept."""


def suite(split: str, longest_prompt: int, verifier: Verifier | None) -> dict[str, Any]:
    """The expectations on a derived frame, by the name of the check."""
    import great_expectations.expectations as gxe

    def nothing_in(column: str) -> Any:
        return gxe.ExpectColumnValuesToBeNull(column=column)

    def score(column: str) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[float(column[-1])])

    expectations = {
        "id_present": gxe.ExpectColumnValuesToNotBeNull(column="given_id"),
        "id_unique": nothing_in("given_id_again"),
        "id_disjoint": nothing_in("given_id_elsewhere"),
        "not_empty": nothing_in("empty"),
        "prompt_length": gxe.ExpectColumnValuesToBeBetween(
            column="prompt_tokens", min_value=1, max_value=longest_prompt
        ),
        "question_unique": nothing_in("exact_again"),
        "question_unique_normalised": nothing_in("normalised_again"),
        "disjoint": nothing_in("exact_elsewhere"),
        "disjoint_normalised": nothing_in("normalised_elsewhere"),
        "disjoint_canonical": nothing_in("canonical_elsewhere"),
        "valid_unicode": nothing_in("invalid"),
        "nfc": nothing_in("not_nfc"),
        "no_control_characters": nothing_in("control"),
    }
    if split in ("dev", "eval"):
        expectations["class_unique"] = nothing_in("canonical_again")
    if verifier:
        expectations["answer_parses"] = nothing_in("unparsed")
        expectations |= {name: score(name) for name in VERIFIED[1:]}
    return expectations


def schema_rows(given: pa.Schema) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The columns and types that are expected and found, a row per column, and the expectation that they are equal."""
    import great_expectations.expectations as gxe
    import pandas as pd
    import pyarrow as pa

    text = dict.fromkeys(("id", "prompt", "question", "answer", "solution"), pa.string())
    expected = text | {"source_row": pa.int64()}
    found = dict(zip(given.names, given.types, strict=True))
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if found.get("prompt") == messages:
        expected["prompt"] = found["prompt"]
    names = [*expected, *(name for name in found if name not in expected)]
    frame = pd.DataFrame(
        {
            "row": range(len(names)),
            "id": names,
            "expected": [str(expected.get(name, "no such column")) for name in names],
            "found": [str(found.get(name, "no such column")) for name in names],
        }
    )
    return frame, {
        "schema": gxe.ExpectColumnPairValuesToBeEqual(column_A="expected", column_B="found")
    }


def row_count(split: str, rows: int, fewest: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    import great_expectations.expectations as gxe
    import pandas as pd

    enough = gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A="rows", column_B="fewest", or_equal=True
    )
    return pd.DataFrame([{"row": 0, "id": split, "rows": rows, "fewest": fewest}]), {
        "row_count": enough
    }


class Suites:
    """Great Expectations' suites, run on frames.

    Its own pages show each's first frame and the first that fails.
    """

    def __init__(self, docs: Path | None) -> None:
        self.docs, self.context = docs, _context(docs)
        self._known: dict[str, Any] = {}
        self._failed: set[str] = set()

    def run(
        self, name: str, split: str, frame: pd.DataFrame, expectations: Mapping[str, Any]
    ) -> Iterator[Outcome]:
        """Evaluate named expectations on a frame, as one suite.

        Raises CannotCheck for one that cannot be.
        """
        for result in self._results(name, frame, expectations):
            config, found = result.expectation_config, result.result
            if "unexpected_index_list" not in found:
                raise CannotCheck(
                    f"{config.meta['check']} in {split}",
                    expected=f"Great Expectations to evaluate {config.type}",
                    found=str(result.exception_info)[:500],
                    remedy="Please report this: the gate refuses what it cannot check.",
                )
            unexpected = found["unexpected_index_list"] or []
            first = int(frame["row"].iloc[0]) if unexpected else 0
            failures = [
                _failure(frame.iloc[one["row"] - first].to_dict(), one) for one in unexpected[:KEPT]
            ]
            yield Outcome(
                config.meta["check"],
                split,
                config.type,
                len(frame),
                len(unexpected),
                tuple(failures),
            )

    def _results(self, name: str, frame: pd.DataFrame, expectations: Mapping[str, Any]) -> Any:
        import great_expectations as gx

        how = {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["row"],
            "include_unexpected_rows": False,
        }
        if name not in self._known:
            for check_name, expectation in expectations.items():
                expectation.meta = {"check": check_name}
                expectation.description = CHECKS[check_name].holds
            suite = self.context.suites.add(
                gx.ExpectationSuite(name=name, expectations=list(expectations.values()))
            )
            asset = self.context.data_sources.get("prepared").add_dataframe_asset(name)
            data = asset.add_batch_definition_whole_dataframe("all")
            shown = self.context.validation_definitions.add(
                gx.ValidationDefinition(name=name, data=data, suite=suite)
            )
            self._known[name] = shown
            found = shown.run(batch_parameters={"dataframe": frame}, result_format=how)
        else:
            shown = self._known[name]
            found = shown.data.get_batch({"dataframe": frame}).validate(
                shown.suite, result_format=how
            )
            if not found.success and name not in self._failed:
                shown.run(batch_parameters={"dataframe": frame}, result_format=how)
        if not found.success:
            self._failed.add(name)
        return found.results

    def write_pages(self) -> None:
        """Great Expectations' own pages, where they were asked for."""
        if self.docs is not None:
            self.context.build_data_docs()
            shutil.rmtree(
                self.docs / "static" / "images", ignore_errors=True
            )  # 3 MB of stock pictures for every run


def _context(docs: Path | None) -> Any:
    """An in-memory Great Expectations context that is silent and sends nothing.

    Its pages go to `docs`.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)  # failures are told by us
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in context.get_site_names():
        context.delete_data_docs_site(site)
    if docs is not None:
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
        context.add_data_docs_site("gate", site)
    context.data_sources.add_pandas("prepared")
    return context


def _failure(row: Row, found: Row) -> Row:
    """What is kept of an offending row.

    Its id, where it comes from, the value found, the question and the answer.
    """
    import pandas as pd

    values: dict[str, str] = {
        column: "null" if pd.isna(value) else str(value)
        for column, value in found.items()
        if column != "row"
    }
    told = ", ".join(f"{column} {text}" for column, text in values.items())
    known = {
        column: row[column]
        for column in ("id", "source_row", "question", "answer")
        if pd.notna(row.get(column))
    }
    return {
        "id": str(known.get("id", "null")),
        "source_row": int(known["source_row"]) if "source_row" in known else None,
        "value": (told if len(values) > 1 else next(iter(values.values())))[:LONGEST_VALUE],
        "question": str(known.get("question", ""))[:LONGEST_VALUE],
        "answer": str(known.get("answer", ""))[:LONGEST_VALUE],
    }
