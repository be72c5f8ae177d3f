"""Files that are read back."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.errors import Damaged, RegrpoError
from tests.support import hostile
from tests.support.splits import good, table


@pytest.mark.parametrize("damage", ["truncated", "not UTF-8", "missing"])
def test_a_parquet_file_that_cannot_be_read_is_refused_by_file_and_remedy(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "train.parquet"
    if damage == "not UTF-8":
        pq.write_table(
            pa.table({"question": pa.array([b"\xff"], pa.binary()).view(pa.string())}), path
        )
    elif damage == "truncated":
        pq.write_table(table(good()["train"]), path)
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        RegrpoError,
        match=r"train\.parquet(, from row 0)?: expected a whole Parquet file with UTF-8 text; "
        r"found .*dvc checkout",
    ):
        files.read_rows(path)


def read(path: Path, brought: bool = False) -> list[Any]:
    """The rows; a row of its own each, and nothing is kept of a large one."""
    return [len(rows) for _, rows in files.ParquetFile(path, "Mend it.", brought).batches(4096)]


def repeat(path: Path, value: Any, times: int, **options: Any) -> Path:
    """A Parquet file that holds a value once and states it many times."""
    places = pa.array([0] * times, pa.int32())
    repeated = pa.DictionaryArray.from_arrays(places, pa.array([value]))
    pq.write_table(pa.table({"question": repeated}), path, compression="zstd", **options)
    return path


def test_a_kilobyte_that_would_become_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    bomb = repeat(tmp_path / "bomb.parquet", "x" * 10_000_000, 4000)
    assert bomb.stat().st_size < 5000
    message = hostile.ended(partial(read, bomb, True), memory=2**30)
    assert "bomb.parquet: expected at most 256 times its" in message
    assert "found more than 16,777,216 bytes. Write the rows as JSON lines" in message


def test_millions_of_equal_rows_in_a_few_bytes_are_refused(tmp_path: Path) -> None:
    bomb = repeat(tmp_path / "rows.parquet", "x", 20_000_000, row_group_size=20_000_000)
    message = hostile.ended(partial(read, bomb, True), memory=2**30)
    assert "expected at most 256 times its" in message


def test_rows_are_read_as_many_at_a_time_as_memory_should_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "AT_ONCE", 1000)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    turns = [[{"role": "user", "content": "x" * 300}] * number for number in (0, 1, 2, 3, 4, 0, 1)]
    given = pa.table({"turns": pa.array(turns, pa.list_(message)), "n": range(7)})
    for large in (False, True):  # one after the other in a row group, each in one of its own
        path = tmp_path / f"{large}.parquet"
        pq.write_table(given, path, row_group_size=1 if large else 7)
        batches = list(files.ParquetFile(path).batches(3))
        assert [row for _, rows in batches for row in rows] == given.to_pylist()
        assert [start for start, _ in batches] == [
            sum(len(r) for _, r in batches[:i]) for i in range(len(batches))
        ]
    assert max(files.characters(rows) for _, rows in batches) < 1400


def test_a_row_group_that_states_too_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repeat(tmp_path / "a.parquet", "x", 100)
    monkeypatch.setattr(files, "VALUES", 99)
    with pytest.raises(RegrpoError, match=r"row group 0: .*100 values\. Write it in smaller ones"):
        read(path)


@pytest.mark.parametrize("zone", ["Evil/Zone", "../../etc/passwd", "\x1b[2J", "+99:99"])
def test_a_time_zone_that_there_is_not_is_refused_with_the_file(tmp_path: Path, zone: str) -> None:
    path = tmp_path / "zone.parquet"
    pq.write_table(pa.table({"when": pa.array([1], pa.timestamp("us", zone))}), path)
    message = hostile.ended(partial(read, path))
    assert "zone.parquet, from row 0: expected a whole Parquet file" in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["x" * 100, None], pa.large_string()),
        pa.array([[["a"], []], None]),
        pa.array([{"k": "v"}, None]),
        pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
        pa.array([[1, 2], None]),
        pa.array([b"1", None]),
        pa.array([1, None], pa.decimal128(5, 2)),
    ],
    ids=lambda values: str(values.type),
)
def test_every_type_is_measured_and_read(tmp_path: Path, values: pa.Array) -> None:
    table = pa.table({"a": values})
    pq.write_table(table, tmp_path / "a.parquet")
    assert files.read_rows(tmp_path / "a.parquet") == table.to_pylist()


def test_batches_end_at_the_count_and_at_the_bytes_whichever_comes_first() -> None:
    rows = [{"a": "x" * length} for length in (1, 1, 1, 1, 50, 200, 1)]
    batches = list(files.in_batches(rows, 3, 100))
    assert [[len(row["a"]) for row in batch] for batch in batches] == [
        [1, 1, 1],
        [1, 50],
        [200],
        [1],
    ]
    assert list(files.in_batches([], 3)) == []


def test_the_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss after a rename without fsync leaves an empty file under the good name."""
    happened: list[str] = []

    def sync(descriptor: int) -> None:
        happened.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        assert not (tmp_path / "a.json").exists()

    monkeypatch.setattr(os, "fsync", sync)
    files.write_json(tmp_path / "a.json", {})
    assert [Path(path).parent for path in happened] == [tmp_path]
    assert (tmp_path / "a.json").exists()


@pytest.mark.parametrize("content", [b'{"a": \x9e}', b'{"a": ', b"", b"[" * 100_000, b"{}{}"])
def test_json_that_is_damaged_is_refused_with_its_file_and_how_to_make_it_again(
    tmp_path: Path, content: bytes
) -> None:
    """A run.json with one wrong byte made the card's stage end in a traceback."""
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"run\.json: expected JSON in UTF-8; found .*dvc checkout"):
        files.read_json(path)
    with pytest.raises(ValueError, match=r"run\.json: "):
        files.read_json(path)
