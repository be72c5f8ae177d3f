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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.errors import Refused, first_line

if TYPE_CHECKING:
    import pandas as pd

Json = dict[str, Any]
"""A mapping as JSON has it."""
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


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with sorted keys, atomically; NaN and infinity raise ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet, atomically.

    The same table gives the same bytes (no index, no pandas metadata).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
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
    for _, batch in ParquetFile(path).batches(1024):
        rows += batch
    return rows


class ParquetFile:
    """A Parquet file that is read some rows at a time.

    Opening and reading raise Refused for a file that is damaged or whose text is not UTF-8;
    `remedy` says what to do then.
    """

    def __init__(self, path: Path, remedy: str = RESTORE) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.remedy = remedy
        with _refuse_damaged(str(path), remedy), path.open("rb") as file:
            metadata = pq.read_metadata(file)
        self.num_rows: int = metadata.num_rows
        self.schema = metadata.schema.to_arrow_schema()

    def batches(
        self, rows: int, columns: list[str] | None = None
    ) -> Iterator[tuple[int, list[Json]]]:
        """Yield at most `rows` rows at a time, with all columns or those named.

        Beside them stands the number of their first row in the file, from 0.
        """
        import pyarrow.parquet as pq

        start = 0
        with _refuse_damaged(str(self.path), self.remedy), self.path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(rows, columns=columns):
                # Reading alone does not look at the text, and to_pylist would not say where it is.
                with _refuse_damaged(f"{self.path}, from row {start}", self.remedy):
                    batch.validate(full=True)
                yield start, batch.to_pylist()
                start += batch.num_rows


@contextlib.contextmanager
def _refuse_damaged(where: str, remedy: str) -> Iterator[None]:
    """Raise Refused where pyarrow cannot read a file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise Refused(
            where,
            expected="a whole Parquet file with UTF-8 text",
            found=first_line(error),
            remedy=remedy,
        ) from error
