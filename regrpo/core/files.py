"""Files written whole or not at all, how they are read back, and their SHA-256."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from regrpo.core.errors import Damaged, Refused, parsing, said_by_parser

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

T = TypeVar("T")
Json = dict[str, Any]
"""A mapping as JSON has it."""
AT_ONCE = 64 * 2**20
"""Bytes of rows that are in memory at once; a row that is larger comes alone."""
BATCH = 1024
"""Rows of a Parquet file that are spelled out at once."""
EXPANSION, EXPANDED = 256, 16 * 2**20
"""What people bring may become so many times larger as it is read, or so many bytes if it is small.

Text compresses to a third, rows that repeat a long instruction to a hundredth; a bomb, to a
thousandth and less.
"""
ROW_GROUP = 2**30
"""Bytes that a row group of a Parquet file may state, and that one row may take."""
VALUES = 2**27
"""Values that a row group may state: of equal ones a few bytes hold any number."""
RESTORE = "Restore it with `dvc checkout`, or make it again with `dvc repro`."


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: object) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN (ValueError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_json(value: object) -> str:
    """SHA-256 of `canonical_json(value)`, in hex."""
    return sha256_text(canonical_json(value))


def file_hashes(item: Mapping[str, Any]) -> dict[str, str]:
    """{path: SHA-256} of the files of a recorded input or output, the paths from the root."""
    inside = item.get("files")
    if inside is None:
        return {item["path"]: item["sha256"]}
    return {f"{item['path']}/{name}": sha256 for name, sha256 in inside.items()}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write, a file or a folder.

    It is renamed to `path` on success (POSIX rename is atomic) and removed on failure. An existing
    folder at `path` is replaced. The bytes are on the disk before the name is: after a power loss
    a file is the old one or the new one, never an empty one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    try:
        yield temporary
        _sync(temporary)
        # Unlike a file, a folder that holds something cannot be renamed over.
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        # What ended this before, as a full or read-only disk, is what has to be said.
        with contextlib.suppress(OSError):
            remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the bytes of a file, or of every file of a folder, written to the disk (fsync(2))."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def json_text(value: object) -> str:
    """Indented JSON with sorted keys and a line's end; NaN and infinity raise ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n"


def write_json(path: Path, value: object) -> None:
    """Write `json_text(value)`, atomically."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; raises Damaged for one that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(
            str(path), expected="JSON in UTF-8", found=said_by_parser(error), remedy=RESTORE
        ) from error


def parse_history(data: bytes) -> list[dict[str, float]]:
    """The rows of a history.csv: a number for `step` and each column that was logged at it.

    Raises ValueError for other content.
    """
    rows = []
    for row in csv.DictReader(io.StringIO(data.decode())):
        # None is DictReader's mark of a row that is longer, or shorter, than the header.
        if None in row or None in row.values() or not row.get("step"):
            raise ValueError("a row without step, or of other columns than the header's")
        rows.append({name: float(value) for name, value in row.items() if value})
    return rows


ABSENT = "(absent)"
"""Stands for a value that one of two structures lacks."""


def unequal_leaves(
    before: Any, after: Any, name: str = "", *, into_lists: bool = True
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, before's value, after's value) of what differs between two structures of JSON.

    `ABSENT` stands for a value that is missing. Lists differ as a whole where their lengths do, or
    where `into_lists` is false.
    """
    lists = isinstance(before, list) and isinstance(after, list)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{name}.{key}" if name else str(key)
            was, now = before.get(key, ABSENT), after.get(key, ABSENT)
            yield from unequal_leaves(was, now, inner, into_lists=into_lists)
    elif lists and into_lists and len(before) == len(after):
        for index, (x, y) in enumerate(zip(before, after, strict=True)):
            yield from unequal_leaves(x, y, f"{name}[{index}]")
    elif not equal(before, after):
        yield name, before, after


def equal(a: Any, b: Any) -> bool:
    """Whether two values are equal, NaN to NaN included."""
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or bool(a == b)


def write_parquet(path: Path, frame: pd.DataFrame, fields: Sequence[pa.Field] = ()) -> None:
    """Write a table as Parquet, atomically.

    The same table gives the same bytes (no index, no pandas metadata). `fields` are the types of
    the columns that prepare kept; those of the others follow from their values.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = frame.drop(columns=[field.name for field in fields])
    table = pa.Table.from_pandas(plain, preserve_index=False).replace_schema_metadata(None)
    for field in fields:
        table = table.append_column(field, [pa.array(frame[field.name].tolist(), field.type)])
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a Parquet file of this pipeline into a frame (chat prompts as arrays of dicts).

    Raises Refused for a file that is no readable Parquet.
    """
    import pyarrow.parquet as pq

    with _refuse_damaged(str(path), RESTORE), path.open("rb") as file:
        frame: pd.DataFrame = pq.read_table(file).to_pandas()
    return frame


def read_rows(path: Path) -> list[Json]:
    """Read a Parquet file of this pipeline as plain Python values (chat prompts as lists of dicts).

    Raises Refused for a file that is no readable Parquet.
    """
    rows = []
    for _, batch in ParquetFile(path).batches(BATCH):
        rows += batch
    return rows


def find_rows(path: Path, ids: Container[str], columns: Sequence[str]) -> dict[str, Json]:
    """The rows of a Parquet file of this pipeline that have these ids, by id, with these columns.

    Raises Refused for a file that is no readable Parquet.
    """
    found = {}
    for _, batch in ParquetFile(path).batches(BATCH, ["id", *columns]):
        for row in batch:
            if row["id"] in ids:
                found[row["id"]] = row
    return found


class ParquetFile:
    """A Parquet file that is read some rows at a time, as many as AT_ONCE bytes hold.

    Opening and reading raise Refused for a file that is damaged, whose text is not UTF-8 or whose
    row groups are too large; `remedy` says what to do then. One that was `brought` may not expand
    beyond EXPANSION either.
    """

    def __init__(self, path: Path, remedy: str = RESTORE, brought: bool = False) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.remedy = remedy
        self.left = most_bytes(path) if brought else None
        with _refuse_damaged(str(path), remedy), path.open("rb") as file:
            self.metadata = pq.read_metadata(file)
            self.num_rows: int = self.metadata.num_rows
            self.schema = self.metadata.schema.to_arrow_schema()

    def batches(
        self, rows: int, columns: list[str] | None = None
    ) -> Iterator[tuple[int, list[Json]]]:
        """Yield at most `rows` rows at a time, with all columns or those named.

        Beside them stands the number of their first row in the file, from 0.
        """
        start = 0
        with _refuse_damaged(str(self.path), self.remedy):
            for batch in self._pieces(rows, columns):
                # Reading alone does not look at the text, and to_pylist would not say where it is.
                with _refuse_damaged(f"{self.path}, from row {start}", self.remedy):
                    batch.validate(full=True)
                    found = batch.to_pylist()
                yield start, found
                start += batch.num_rows

    def _pieces(self, rows: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        """Batches that fit into memory once their values are spelled out.

        A value that a row group repeats lies in the file once, in a dictionary, and its size in
        rows stands nowhere. So each row group is first read with its dictionaries, to be measured.
        """
        import pyarrow.parquet as pq

        with self.path.open("rb") as file, self.path.open("rb") as other:
            plain = pq.ParquetFile(file, metadata=self.metadata)
            packed = pq.ParquetFile(
                other, metadata=self.metadata, read_dictionary=self._text_columns()
            )
            # Each batch repeats the dictionary so far: few batches of many windows are quick.
            many = max(1, 2**16 // rows) * rows
            for group in range(self.metadata.num_row_groups):
                self._require_stated(group)
                read = {"row_groups": [group], "columns": columns}
                largest = 0
                for batch in packed.iter_batches(many, **read):
                    sizes = list(map(spelled_out, _windows(batch, rows)))
                    self._require_expansion(sum(sizes))
                    largest = max(largest, *sizes)
                if largest <= AT_ONCE:
                    yield from plain.iter_batches(rows, **read)
                    continue
                for batch in packed.iter_batches(many, **read):
                    for window in _windows(batch, rows):
                        yield from self._parted(window)

    def _text_columns(self) -> list[str]:
        """The paths of what can be read as dictionaries."""
        schema = self.metadata.schema
        found = []
        for column in map(schema.column, range(len(schema.names))):
            is_text = column.logical_type.type in ("STRING", "NONE", "JSON", "ENUM", "BSON")
            if column.physical_type == "BYTE_ARRAY" and is_text:
                found.append(column.path)
        return found

    def _require_stated(self, group: int) -> None:
        """Refuse a row group that says itself that it is too large."""
        about = self.metadata.row_group(group)
        columns = list(map(about.column, range(about.num_columns)))
        values = sum(column.num_values for column in columns)
        size = sum(column.total_uncompressed_size for column in columns)
        if values > VALUES or size > ROW_GROUP:
            raise Refused(
                f"{self.path}, row group {group}",
                expected=f"at most {ROW_GROUP:,} bytes and {VALUES:,} values",
                found=f"{size:,} bytes and {values:,} values",
                remedy="Write it in smaller ones: `df.to_parquet(path, row_group_size=10_000)`.",
            )

    def _require_expansion(self, size: int) -> None:
        if self.left is None:
            return
        self.left -= size
        if self.left < 0:
            raise expands(self.path, "Write the rows as JSON lines, where each has its own bytes.")

    def _parted(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The batch in halves of halves that fit. Raises Refused for a row that never does."""
        size, half = spelled_out(batch), batch.num_rows // 2
        if size <= AT_ONCE or (not half and size <= ROW_GROUP):
            yield batch
            return
        if not half:
            raise Refused(
                str(self.path),
                expected=f"rows of at most {ROW_GROUP:,} bytes",
                found=f"one of {size:,}",
                remedy="Shorten or remove it.",
            )
        yield from self._parted(batch.slice(0, half))
        yield from self._parted(batch.slice(half))


def _windows(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def spelled_out(values: pa.RecordBatch | pa.Array) -> int:
    """Bytes of Arrow's values, each of a dictionary's as often as it stands."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, pa.RecordBatch):
        return sum(map(spelled_out, values.columns))
    kind = values.type
    if pa.types.is_dictionary(kind) and values.dictionary.type in (pa.string(), pa.binary()):
        lengths = pc.binary_length(values.dictionary).take(values.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(spelled_out, values.flatten()))
    if pa.types.is_map(kind):  # has no `flatten` of its own
        first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
        parts = (part.slice(first, last - first) for part in (values.keys, values.items))
        return sum(map(spelled_out, parts))
    if pa.types.is_nested(kind):
        return spelled_out(values.flatten())
    return int(values.nbytes)


def most_bytes(path: Path) -> int:
    """How many bytes a file that somebody brought may become (see EXPANSION)."""
    return max(EXPANDED, EXPANSION * path.stat().st_size)


def expands(path: Path, remedy: str) -> Refused:
    """The refusal of a file that becomes larger than `most_bytes`."""
    return Refused(
        str(path),
        expected=f"at most {EXPANSION} times its {path.stat().st_size:,} bytes when it is read",
        found=f"more than {most_bytes(path):,} bytes",
        remedy=remedy,
    )


@contextlib.contextmanager
def _refuse_damaged(where: str, remedy: str) -> Iterator[None]:
    """The boundary around pyarrow: a time zone, say, is looked up only when a value is read."""
    with parsing(where, "a whole Parquet file with UTF-8 text", remedy):
        yield


# --- rows in memory -------------------------------------------------------------------------------


def characters(value: object) -> int:
    """How many characters or bytes the texts in a value of JSON have; anything else counts 8."""
    total, left = 0, [value]
    while left:
        one = left.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            left += one.keys()
            left += one.values()
        elif isinstance(one, list):
            left += one
        else:
            total += 8
    return total


def in_batches(
    items: Iterable[T], most: int, at_once: int = AT_ONCE, size: Callable[[T], int] = characters
) -> Iterator[list[T]]:
    """The items, at most `most` at a time and of `at_once` bytes together; a larger one alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        weight = size(item)
        if batch and (len(batch) == most or total + weight > at_once):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight
    if batch:
        yield batch
