"""prepare.keep: the source's further columns, with their types, in every split."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.errors import Refused
from regrpo.inputs import splits as splitting
from stages import prepare
from tests.support.prepared import Rows, params, questions, refusal, splits

KEEP = ["level", "tests", "meta", "hint"]


def rows(count: int = 30) -> Rows:
    return [
        row
        | {
            "level": index % 3 + 1,
            "tests": [str(index), None],
            "meta": {"source": "x", "weights": [0.5, index], "seen": index % 2 == 0},
            "hint": "think" if index % 5 else None,
            "left_out": index,
        }
        for index, row in enumerate(questions(count))
    ]


def test_kept_columns_reach_every_split_with_their_types_and_nothing_else_does() -> None:
    given = rows()
    made = splits(given, keep=KEEP)
    for split in made.values():
        assert split
        for row in split:
            source = given[row["source_row"]]
            assert {name: row[name] for name in KEEP} == {name: source[name] for name in KEEP}
            assert type(row["level"]) is int
            assert "left_out" not in row


def test_batches_of_different_types_have_one_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(splitting, "BATCH", 4)  # null first, then integers, then numbers
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    given = questions(20)
    for index, row in enumerate(given[8:], start=8):
        row["score"] = index if index < 12 else index + 0.5
        row["meta"] = {"a": index} if index % 2 else {"b": "x"}
    Path("data/raw/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    prepare.prepare(params(keep=["score", "meta"]))
    tables = [pq.read_table(file) for file in sorted(Path("data/prepared").glob("*.parquet"))]
    assert {str(table.schema.field("score").type) for table in tables} == {"double"}
    assert len({str(table.schema) for table in tables}) == 1
    found = {row["source_row"]: row for table in tables for row in table.to_pylist()}
    assert [found[index]["score"] for index in (0, 8, 19)] == [None, 8.0, 19.5]
    assert found[9]["meta"] == {"a": 9, "b": None}
    assert files.read_json(Path("data/prepared/dataset.json"))["keep"] == ["score", "meta"]


def test_parquets_own_types_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    when = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)
    extra = {"when": when, "price": Decimal("1.50"), "raw": b"\x00\xff", "day": when.date()}
    pq.write_table(pa.Table.from_pylist(questions(20, **extra)), "data/raw/train.parquet")
    source = {"kind": "local", "train": "train.parquet", "license": "MIT"}
    prepare.prepare(params(source=source, keep=list(extra)))
    for split in ("sft", "train", "dev", "eval"):
        for row in files.read_rows(Path(f"data/prepared/{split}.parquet")):
            assert {name: row[name] for name in extra} == extra


def test_without_keep_the_files_hold_what_they_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)

    def written(given: Rows) -> dict[str, str]:
        Path("data/raw/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        prepare.prepare(params())
        assert "keep" not in files.read_json(Path("data/prepared/dataset.json"))
        parquet = sorted(Path("data/prepared").glob("*.parquet"))
        return {file.name: files.sha256(file) for file in parquet}

    assert written(rows()) == written(questions(30))


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["answer"], "answer: prepare, TRL or samples.parquet has a column of that name"),
        (["completions"], "completions: prepare, TRL or"),
        (["level", "level"], "names a column twice"),
        ("level", "keep"),
    ],
)
def test_a_name_that_is_taken_is_refused(keep: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        params(keep=keep)


def test_a_column_that_no_row_has_is_refused_with_those_there_are() -> None:
    said = refusal(rows(), keep=["levl"])
    assert "prepare.keep: expected columns of the source (answer, hint, left_out, level," in said
    assert "found levl, which no row of part train has" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [([1, "two"], "'two' with type str"), ([{}, {}], "objects with a key"), (["\ud800"], "surrog")],
)
def test_values_that_parquet_cannot_hold_are_refused(values: list[Any], said: str) -> None:
    given = [row | {"mixed": values[i % len(values)]} for i, row in enumerate(questions(20))]
    assert said in refusal(given, keep=["mixed"])
