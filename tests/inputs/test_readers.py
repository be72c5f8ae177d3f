"""Files as people bring them: what is read, and the one line that names what cannot be."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core.errors import Refused
from regrpo.inputs import readers
from tests.support import hostile

GOOD = b'{"question": "1+1=", "answer": "2"}\n'


def read(folder: Path, name: str, content: bytes) -> list[tuple[str, dict[str, Any]]]:
    (folder / name).write_bytes(content)
    return list(readers.local_rows(folder / name))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b"", ["a.jsonl: ", "an empty file", "Bring the data in again"]),
        (
            "a.jsonl",
            GOOD + b'{"question": "1+',
            ["a.jsonl, line 2", "Unterminated string", "Mend or remove"],
        ),
        (
            "a.jsonl",
            GOOD + GOOD + b'{"question" 1}\n' + GOOD,
            ["a.jsonl, line 3", "at column 13", "Mend or remove"],
        ),
        ("a.jsonl", GOOD + b"[1, 2]\n", ["a.jsonl, line 2", "a JSON object; found list"]),
        (
            "a.jsonl",
            GOOD + b'{"question": "\xff"}\n',
            ["a.jsonl, line 2", "byte 0xff at column 15", "as UTF-8"],
        ),
        (
            "a.jsonl",
            GOOD + b'{"question": "\0"}\n',
            ["a.jsonl, line 2", "a NUL byte", "without it"],
        ),
        ("a.jsonl", GOOD.decode().encode("utf-16"), ["a.jsonl, line 1", "UTF-16", "iconv"]),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl, line 1", "recursion"]),
        ("a.jsonl", b'{"answer": ' + b"9" * 5000 + b"}", ["a.jsonl, line 1", "4300 digits"]),
        ("a.json", b'[{"question": 1},\n {"question": }]', ["a.json, line 2", "Expecting value"]),
        ("a.jsonl", b'{"answer": 1, "answer": 2}\n' + GOOD, ["line 1", "the key 'answer' twice"]),
        ("a.json", b'[{"a": {"b": 1, "b": 2}}]', ["line 1", "the key 'b' twice"]),
        (
            "a.json",
            b'{"train": [{"question": "1"}, {"question": "2"}], "test": [{"question": "3"}]}',
            ["lists of rows by name: train, test", "a file of its own"],
        ),
        ("a.json", b"3", ["a.json, line 1", "a JSON object; found int"]),
        ("a.json", b'[{"question": 1}, 2]', ["a.json, row 1", "a JSON object; found int"]),
        ("a.json", b"[\n\xff]", ["a.json, line 2", "byte 0xff"]),
        (
            "a.csv",
            b"question,answer\n1+1=,2\n1+2=,3,4\n",
            ["a.csv, line 3", "2 fields", "found 3", "Quote fields"],
        ),
        ("a.csv", b"question,answer\n1+1=\n", ["a.csv, line 2", "2 fields", "found 1"]),
        (
            "a.csv",
            b'question,answer\n1+1=,2\n"1+2=,3\n',
            ["a.csv, line 3", "unexpected end of data"],
        ),
        ("a.csv", b"question,question\n1+1=,2\n", ["a.csv, line 1", "each column once", "Rename"]),
        (
            "a.csv",
            b"question,answer\n1+1=,\xe9\n",
            ["a.csv, line 2", "byte 0xe9 at column 6", "as UTF-8"],
        ),
        ("a.parquet", b"PAR1 and no more", ["a.parquet: ", "Parquet", "Write it again"]),
        (
            "a.txt",
            GOOD,
            ["a.txt", "ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet; found .txt"],
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name_place_and_remedy(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    with pytest.raises(Refused) as refusal:
        read(tmp_path, name, content)
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def test_every_kind_of_file_gives_the_same_rows_and_its_own_places(tmp_path: Path) -> None:
    rows = [{"question": "1+1=", "answer": "2"}, {"question": 'say "1,\n2"', "answer": "3"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    contents = {
        "a.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "b.json": json.dumps(rows).encode(),
        "a.csv": b'question,answer\r\n1+1=,2\r\n\r\n"say ""1,\n2""",3\r\n',
        "b.parquet": (tmp_path / "b.parquet").read_bytes(),
    }
    places = {"a.jsonl": "line 2", "b.json": "row 1", "a.csv": "line 5", "b.parquet": "row 1"}
    for name, content in contents.items():
        found = read(tmp_path, name, content)
        assert [row for _, row in found] == rows, name
        assert found[1][0] == f"{tmp_path / name}, {places[name]}"


@pytest.fixture
def parquet(tmp_path: Path) -> bytes:
    pq.write_table(
        pa.table({"question": [f"{i}+1=" for i in range(10_000)]}), tmp_path / "whole.parquet"
    )
    return (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.parquet"])
def test_compressed_parquet_is_refused_with_what_to_do(
    tmp_path: Path, parquet: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(parquet))
    with pytest.raises(Refused, match="found gzip around it"):
        list(readers.local_rows(tmp_path / name))


def test_a_truncated_parquet_is_refused(tmp_path: Path, parquet: bytes) -> None:
    with pytest.raises(
        Refused, match=r"cut\.parquet: expected a whole Parquet file .* Write it again"
    ):
        read(tmp_path, "cut.parquet", parquet[: len(parquet) // 2])


def test_a_parquet_with_a_damaged_page_is_refused(tmp_path: Path, parquet: bytes) -> None:
    damaged = parquet[:50] + b"\xff" * 5000 + parquet[5050:]
    with pytest.raises(Refused, match=r"bad\.parquet"):
        read(tmp_path, "bad.parquet", damaged)


def test_text_in_a_parquet_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"1+1=", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": raw}), tmp_path / "raw.parquet")
    with pytest.raises(Refused, match=r"raw\.parquet, from row 0: .*UTF-8 text; found .*UTF8"):
        list(readers.local_rows(tmp_path / "raw.parquet"))


# --- what is readable -----------------------------------------------------------------------------

ROWS = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)


def zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", LINES),
        ("lines.ndjson", LINES),
        ("list.jsonl", json.dumps(ROWS)),
        ("list.json", json.dumps(ROWS, indent=2)),
        ("pretty.jsonl", "".join(json.dumps(row, indent=2) + "\n" for row in ROWS)),
        ("blank.json", "\n\n" + LINES.replace("\n", "\n\n")),
        ("data.json", json.dumps({"version": "1", "data": ROWS})),
        ("data-pretty.json", json.dumps({"data": ROWS}, indent=1)),
        ("mark.jsonl", "\ufeff" + LINES),
        ("old.jsonl", LINES.replace("\n", "\r")),
        ("windows.jsonl", LINES.replace("\n", "\r\n")),
        ("records.json", pd.DataFrame(ROWS).to_json(orient="records")),
        ("columns.json", pd.DataFrame(ROWS).to_json()),
        ("split.json", pd.DataFrame(ROWS).to_json(orient="split")),
        ("lists.json", json.dumps(pd.DataFrame(ROWS).to_dict(orient="list"))),
        ("comma.csv", TABLE),
        ("semicolon.csv", TABLE.replace(",", ";")),
        ("tab.csv", TABLE.replace(",", "\t")),
        ("tab.tsv", TABLE.replace(",", "\t")),
        ("bar.csv", TABLE.replace(",", "|")),
        ("excel.csv", "\ufeffsep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")),
        ("mac.csv", TABLE.replace("\n", "\r")),
        ("mark.csv", "\ufeff" + TABLE),
        ("spaced.csv", TABLE.replace("question,answer", " question , answer")),
        ("index.csv", pd.DataFrame(ROWS).to_csv()),
        ("unnamed.csv", TABLE.replace("\n", ",,\n")),
        ("lines.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("lines.jsonl.zst", zst(LINES.encode())),
        ("lines.jsonl.xz", lzma.compress(LINES.encode())),
        ("list.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("table.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("disguised.jsonl", gzip.compress(LINES.encode(), mtime=0)),
        ("my.data.v2.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_what_is_readable_is_read_however_it_is_laid_out(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    data = content.encode() if isinstance(content, str) else content
    assert [row for _, row in read(tmp_path, name, data)] == ROWS


def test_places_are_those_of_the_file_whatever_its_line_ends_and_first_lines(
    tmp_path: Path,
) -> None:
    def places(name: str, text: str) -> list[str]:
        found = read(tmp_path, name, text.encode())
        return [place.rpartition(", ")[2] for place, _ in found]

    assert places("a.jsonl", LINES.replace("\n", "\r")) == ["line 1", "line 2", "line 3"]
    assert places("a.csv", TABLE.replace("\n", "\r")) == ["line 2", "line 3", "line 4"]
    assert places("b.csv", "sep=;\n" + TABLE.replace(",", ";")) == ["line 3", "line 4", "line 5"]
    assert places("c.csv", '"a",b\n"x\ny",1\n\n2,3\n') == ["line 3", "line 5"]
    with pytest.raises(Refused, match="line 4: expected a JSON list"):
        read(tmp_path, "a.json", b"\n\n[{},\n{]]")


def test_objects_by_name_are_rows_with_that_id(tmp_path: Path) -> None:
    content = json.dumps({"q1": ROWS[0], "q2": ROWS[1] | {"id": "own"}}).encode()
    found = [row for _, row in read(tmp_path, "a.json", content)]
    assert [row["id"] for row in found] == ["q1", "own"]


def test_a_cell_longer_than_the_csv_modules_limit_is_read(tmp_path: Path) -> None:
    long = "It was a long day. " * 7500
    content = f'question,answer\n"{long}",1\nshort,2\n'.encode()
    assert [row["question"] for _, row in read(tmp_path, "a.csv", content)] == [long, "short"]


def test_a_quote_that_is_never_closed_does_not_take_in_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST_CELL", 1000)
    content = b'question,answer\n"open,1\n' + b"x,2\n" * 10_000
    with pytest.raises(
        Refused, match=r"a\.csv, line \d\d\d: .*field limit \(1000\).*close the quote"
    ):
        read(tmp_path, "a.csv", content)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zst])
def test_compressed_data_that_breaks_off_is_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress("".join(f'{{"question": "{i * 7919}"}}\n' for i in range(5000)).encode())
    with pytest.raises(Refused, match=r"a\.jsonl\.gz: expected a whole compressed file; found"):
        read(tmp_path, "a.jsonl.gz", whole[: len(whole) // 2])


def test_json_lines_are_streamed_whatever_the_file_is_called(tmp_path: Path) -> None:
    """The second row comes before the fault in the third is looked at."""
    (tmp_path / "a.json").write_bytes(GOOD * 2 + b"no JSON")
    rows = readers.local_rows(tmp_path / "a.json")
    assert [next(rows)[1]["answer"] for _ in range(2)] == ["2", "2"]
    with pytest.raises(Refused, match="line 3"):
        next(rows)


def test_a_parquets_numbers_come_as_they_are(tmp_path: Path) -> None:
    table = pa.table({"answer": pa.array([Decimal("80.00"), None], pa.decimal128(5, 2))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["answer"] for _, row in readers.local_rows(tmp_path / "a.parquet")] == [
        Decimal("80.00"),
        None,
    ]


# --- what would take all memory or time -----------------------------------------------------------


def count(path: Path) -> None:
    for _ in readers.local_rows(path):
        pass


@pytest.mark.parametrize(
    ("compress", "content"),
    [(gzip.compress, b"\n"), (bz2.compress, b"0"), (lzma.compress, b'{"a": 1},'), (zst, b"[")],
)
def test_a_file_that_decompresses_without_end_is_refused_while_it_is_read(
    tmp_path: Path, compress: Callable[[bytes], bytes], content: bytes
) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(compress(content * (20_000_000 // len(content))))
    message = hostile.ended(partial(count, bomb), memory=2**29)
    assert "bomb.jsonl.gz: expected at most 256 times its" in message
    assert "Decompress it first" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one-line.jsonl", b'{"a": "' + b"x" * 2000),
        ("a.json", b"[" + b'{"a": 1},\n' * 300),
        ("b.csv", b"x" * 2000),
    ],
)
def test_a_line_or_document_that_is_too_long_to_hold_is_refused(
    tmp_path: Path, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 1000)
    with pytest.raises(Refused, match=rf"{name}.*at most 1,000 characters in one line.*jq -c"):
        read(tmp_path, name, content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"a": ' + b"9" * 1_000_000 + b"}",
        b"[" + b"{}," * 300_000 + b"{}]",
        b'{"columns": 1, "data": [[1]]}',
        b'{"columns": [1], "data": [1]}',
        b"," * 1_000_000,
        b'"' * 1_000_000,
        b"sep=\r\na\rb",
        b"\r" * 1_000_000,
    ],
    ids=lambda content: str(content[:20]),
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_megabyte_of_nonsense_ends_with_an_error_of_ours_or_none(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    message = hostile.ended(partial(count, tmp_path / name), memory=2**30)
    assert "\n" not in message
    assert len(message) < 1000
    assert not message or name in message
