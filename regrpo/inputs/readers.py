"""Rows of the files that people bring: JSON lines, JSON, CSV and Parquet, compressed or not.

A reader yields (place, row); the place, as "data/raw/train.jsonl, line 7", is what an error about
the row names. The ending says what a file is, its content how it is laid out: JSON lines in a
`.json`, semicolons in a `.csv`, old line ends and byte-order marks are read as they are.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.errors import Refused, parsing
from regrpo.core.text import some

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""Endings that may follow the others. What a file really is, its first bytes say."""
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}
"""The commands that decompress a file in its place."""
LONGEST_CELL = 2**26
"""Characters of a CSV cell: more than a text has, less than the rest of a file after a quote that
is never closed."""
LONGEST_DOCUMENT = 2**28
"""Characters of a line, or of a JSON document: in memory it is some twenty times as large."""
DELIMITERS = ",;\t|"
SPACE = re.compile(r"\s*")


def local_rows(path: Path) -> Rows:
    """Rows of a JSON lines, JSON, CSV or Parquet file.

    Raises Refused with file and line for what cannot be read as it is. Lines count from 1, rows of
    JSON and Parquet from 0.
    """
    readers = {
        ".jsonl": _json,
        ".ndjson": _json,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    endings = [ending for ending in path.suffixes if ending not in COMPRESSED]
    ending = endings[-1] if endings else "no ending"
    if path.is_dir() or ending not in readers:
        raise Refused(
            str(path),
            expected=f"a file ending in {', '.join(readers)}",
            found="a folder" if path.is_dir() else ending,
            remedy="Convert it to one of these.",
        )
    around = _compression(path)
    if ending == ".parquet" and around:
        raise Refused(
            str(path),
            expected="Parquet as it is: it is compressed inside",
            found=f"{around} around it",
            remedy=f"Decompress it with {UNPACK[around]}, and name the file that it leaves.",
        )
    if path.stat().st_size == 0:
        raise Refused(
            str(path),
            expected="at least one row",
            found="an empty file",
            remedy="Bring the data in again.",
        )
    return _guarded(readers[ending](path), path)


def _guarded(rows: Rows, path: Path) -> Rows:
    with parsing(path, "rows of objects or of cells", "Mend the file, or convert it."):
        yield from rows


# --- JSON -----------------------------------------------------------------------------------------


def _json(path: Path) -> Rows:
    """JSON lines one by one; anything else is one document, and read whole."""
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    begin = [*_next(lines), *_next(lines)]
    if begin and not _is_row(begin[0][1].strip(), alone=len(begin) == 1):
        # Blank lines before it, so that an error's line is the file's.
        parts = ["\n" * (begin[0][0] - 1), *_whole(chain(begin, lines), path)]
        for index, row in enumerate(_document("".join(parts), path)):
            place = f"{path}, row {index}"
            yield place, _object(row, place)
        return
    for number, line in chain(begin, lines):
        place = f"{path}, line {number}"
        with _refuse_json(path, number, line, "one JSON object"):
            value = json.loads(line.strip(), object_pairs_hook=_named_once)
        yield place, _object(value, place)


def _whole(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[str]:
    """The lines of a document. Raises Refused for one that is too long to be read whole."""
    left = LONGEST_DOCUMENT
    for _, line in lines:
        left -= len(line)
        if left < 0:
            raise _too_long(str(path))
        yield line


def _too_long(where: str) -> Refused:
    return Refused(
        where,
        expected=f"at most {LONGEST_DOCUMENT:,} characters in one line or JSON document",
        found="more",
        remedy="Write one object a line, as `jq -c '.[]'` does of a list: lines are streamed.",
    )


def _next(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """The next line, or none at the end."""
    line = next(lines, None)
    return [] if line is None else [line]


def _is_row(line: str, alone: bool) -> bool:
    """Whether a file's first line is a row of its own, not the beginning of a document.

    A damaged line counts as a row, so that the error is about it. `alone`: no other line follows.
    """
    if line.startswith("["):
        return False
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        # A document that goes on in the next line has no fault up to there.
        return not line.startswith("{") or error.pos < len(line)
    except (ValueError, RecursionError):
        return True
    if not alone or not isinstance(value, dict):
        return True
    return not (_holds_parts(value) or _table(value))


def _document(text: str, path: Path) -> list[Any]:
    """The rows of a JSON document: of a list, a table, or objects one after the other."""
    decoder = json.JSONDecoder(object_pairs_hook=_named_once)
    values, position = [], 0
    text = text.rstrip()
    while position < len(text):
        position = SPACE.match(text, position).end()  # type: ignore[union-attr]  # it may be none
        with _refuse_json(path, 1, text, "a JSON list of objects, or JSON lines"):
            value, position = decoder.raw_decode(text, position)
        values.append(value)
    if len(values) > 1:
        return values
    [value] = values
    if isinstance(value, dict):
        if _holds_parts(value):
            raise Refused(
                str(path),
                expected="the rows of one part in a file",
                found=f"lists of rows by name: {', '.join(value)}",
                remedy="Write each list to a file of its own, as prepare.source.train and .eval.",
            )
        return _table(value) or [value]
    return value if isinstance(value, list) else values


def _named_once(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object. Raises ValueError for a key that stands twice: json would keep the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r} twice")
    return value


def _holds_parts(value: Row) -> bool:
    """Whether it is several lists of objects by name, as {"train": [{…}], "test": [{…}]}."""
    parts = list(value.values())
    if len(parts) < 2 or not all(isinstance(one, list) and one for one in parts):
        return False
    return all(isinstance(one[0], dict) for one in parts)


def _table(value: Row) -> list[Row]:
    """The rows of an object that holds a table in one of the usual ways; none in any other."""
    lists = [part for part in value.values() if isinstance(part, list)]
    of_objects = [part for part in lists if part and isinstance(part[0], dict)]
    if len(of_objects) == 1:  # {"data": [{…}, …]}
        return of_objects[0]
    if {"columns", "data"} <= set(value):  # pandas, orient="split"
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    objects = [part for part in value.values() if isinstance(part, dict)]
    if len(objects) == len(value) and objects:
        if not all(key.isdigit() for key in objects[0]):  # {"q1": {…}, …}
            return [{"id": key} | row for key, row in value.items()]
        lists = [list(part.values()) for part in objects]  # pandas, orient="columns"
    if len(lists) < len(value) or len({len(column) for column in lists}) != 1:
        return []
    return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]


@contextlib.contextmanager
def _refuse_json(path: Path, line: int, text: str, expected: str) -> Iterator[None]:
    """Raise Refused for text from that line on that is no JSON, is nested without end, or holds an
    endless number."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        found = str(error)
        if isinstance(error, json.JSONDecodeError):
            line += error.lineno - 1
            near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
            found = f"{error.msg} at column {error.colno}, near {near!r}"
        raise Refused(
            f"{path}, line {line}", expected=expected, found=found, remedy="Mend or remove it."
        ) from error


def _object(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        raise Refused(
            place,
            expected="a JSON object",
            found=type(value).__name__,
            remedy="Write one object a row.",
        )
    return value


# --- CSV and Parquet ------------------------------------------------------------------------------


def _csv(path: Path) -> Rows:
    csv.field_size_limit(LONGEST_CELL)
    numbered = ((number, line) for number, line in _lines(path) if line.strip() or number > 1)
    before, first = next(numbered, (1, ""))
    said = re.fullmatch(r"sep=(.)\s*", first)  # by which Excel names the delimiter
    delimiter = said[1] if said else max(DELIMITERS, key=lambda one: len(_fields(first, one)))
    lines = chain([] if said else [first], (line for _, line in numbered))
    # Strict: a quote that is left open is an error, not a field that runs on to the file's end.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    before -= 0 if said else 1
    try:
        header = [name.strip() for name in next(reader, [])]
        named = [name for name in header if name]
        if len(set(named)) < len(named):
            raise Refused(
                f"{path}, line {before + 1}",
                expected="a header that names each column once",
                found=some(header, 20),
                remedy="Rename or remove the repeated column.",
            )
        for fields in reader:
            if not any(fields):  # a blank line
                continue
            place = f"{path}, line {before + reader.line_num}"
            if len(fields) != len(header):
                raise Refused(
                    place,
                    expected=f"{len(header)} fields, as in the header",
                    found=str(len(fields)),
                    remedy=f"Quote fields that hold {delimiter!r}.",
                )
            row = dict(zip(header, fields, strict=True))
            row.pop("", None)  # a column without name, as pandas' index
            yield place, row
    except csv.Error as error:
        raise Refused(
            f"{path}, line {before + reader.line_num}",
            expected="CSV with a header",
            found=str(error),
            remedy="Mend the line, or close the quote that it opens.",
        ) from error


def _fields(line: str, delimiter: str) -> list[str]:
    """A line's fields, if that is what parts them."""
    return next(csv.reader([line], delimiter=delimiter), [])


def _parquet(path: Path) -> Rows:
    remedy = "Write it again: it is truncated, damaged or no Parquet."
    for start, rows in files.ParquetFile(path, remedy, brought=True).batches(4096):
        for index, row in enumerate(rows, start):
            yield f"{path}, row {index}", row


# --- text -----------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text and its end) of a UTF-8 file, whatever its line ends.

    A byte-order mark is left out. Raises Refused for a NUL, for bytes that are not UTF-8, for a
    line that is too long, and for compressed data that breaks off or expands without end.
    """
    with parsing(path, "a whole compressed file", "Bring it again, or decompress it first."):
        left = files.most_bytes(path) if _compression(path) else math.inf
        with _opened(path) as file:
            if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
                remedy = f"Convert it: `iconv -f UTF-16 -t UTF-8 {path}`."
                raise _bad_text(path, 1, "UTF-16", remedy)
            # As they are, bytes that are no text can be told with their place.
            text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
            number = 0
            while line := text.readline(LONGEST_DOCUMENT):
                number += 1
                left -= len(line)
                if left < 0:
                    remedy = "Decompress it first, if all that is meant to be there."
                    raise files.expands(path, remedy)
                if len(line) == LONGEST_DOCUMENT:
                    raise _too_long(f"{path}, line {number}")
                if not line.isascii() and (wrong := re.search("[\udc80-\udcff]", line)):
                    found = f"byte 0x{ord(wrong[0]) - 0xDC00:02x} at column {wrong.start() + 1}"
                    raise _bad_text(path, number, found, "Save the file as UTF-8.")
                if "\0" in line:
                    raise _bad_text(path, number, "a NUL byte", "Write the row again without it.")
                yield number, line


def _opened(path: Path) -> Any:
    """A file's bytes, decompressed, as a buffered reader."""
    match _compression(path):
        case "gzip":
            return gzip.open(path)
        case "bzip2":
            return bz2.open(path)
        case "xz":
            return lzma.open(path)
        case "zstd":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    return path.open("rb")


def _compression(path: Path) -> str:
    """By what a file is compressed, as its first bytes say; "" for none."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, name in MAGIC.items():
        if start.startswith(magic):
            return name
    return ""


def _bad_text(path: Path, line: int, found: str, remedy: str) -> Refused:
    return Refused(
        f"{path}, line {line}",
        expected="UTF-8 text without NUL",
        found=found,
        remedy=remedy,
    )
