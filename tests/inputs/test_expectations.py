"""Great Expectations: its schema, its own pages, and what it cannot evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from regrpo.core.errors import CannotCheck
from regrpo.inputs import expectations, gate
from tests.support.splits import (
    CANONICAL,
    EXACT,
    LIMITS,
    good,
    table,
    trip_on,
    write,
)


def test_great_expectations_own_pages_show_a_fault_wherever_it_lies(
    check: Callable[..., gate.Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = good()
    splits["train"][3]["answer"] = "?"
    monkeypatch.setattr(gate, "BATCH", 2)
    check(splits, docs=tmp_path)
    assert (tmp_path / "index.html").read_text().count("fa-times text-danger") == 1
    first, failing = sorted((tmp_path / "validations/train").rglob("*.html"))
    assert ("fa-times" in first.read_text(), "fa-times" in failing.read_text()) == (False, True)


def test_great_expectations_own_pages_go_to_the_folder_that_is_asked_for(
    check: Callable[..., gate.Verdict], tmp_path: Path
) -> None:
    check(good(), docs=tmp_path / "docs")
    assert (tmp_path / "docs/index.html").exists()
    assert (
        len(list((tmp_path / "docs/validations").rglob("*.html"))) == 12
    )  # schema, row count and rows of four splits


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda t: t.drop_columns(["solution"]),
            {"solution": "expected string, found no such column"},
        ),
        (
            lambda t: t.append_column("extra", pa.array([1] * 4)),
            {"extra": "expected no such column, found int64"},
        ),
        (
            lambda t: t.set_column(3, "answer", pa.array([1] * 4)),
            {"answer": "expected string, found int64"},
        ),
        (
            lambda t: t.set_column(1, "prompt", pa.array([["1+1="]] * 4)),
            {"prompt": "expected string, found list<element: string>"},
        ),
    ],
)
def test_another_schema_is_refused_by_column_before_the_rows_are_looked_at(
    base: Path,
    tmp_path: Path,
    change: Callable[[pa.Table], pa.Table],
    found: dict[str, str],
) -> None:
    splits = {
        "sft": write(tmp_path / "sft.parquet", table(good()["sft"])),
        "train": write(tmp_path / "train.parquet", change(table(good()["train"]))),
    }
    trip = trip_on(base, "text", EXACT)
    verdict = gate.check(splits, CANONICAL, EXACT, trip, LIMITS)
    assert {one.check for one in verdict.outcomes} == {"schema"}
    assert [(one.check, one.split) for one in verdict.failed] == [("schema", "train")]
    assert {failure["id"]: failure["value"] for failure in verdict.failed[0].failures} == found


def test_an_expectation_that_cannot_be_evaluated_is_no_pass(
    check: Callable[..., gate.Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    import great_expectations.expectations as gxe

    wrong = {"nfc": gxe.ExpectColumnValuesToBeNull(column="no_such_column")}
    monkeypatch.setattr(expectations, "on_rows", lambda *_: wrong)
    with pytest.raises(
        CannotCheck,
        match=r"nfc in sft: expected Great Expectations to evaluate expect_column_values_to_be",
    ):
        check(good())
