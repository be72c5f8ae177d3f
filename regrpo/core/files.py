"""Files written whole or not at all, and their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


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
    """A temporary sibling to write.

    Renamed to `path` on success (POSIX rename is atomic), removed on failure.

    The sibling may become a file or a folder; an existing folder at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with sorted keys, atomically; NaN and infinity raise ValueError."""
    write_text(
        path,
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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

    with replacing(path) as temporary:
        pq.write_table(
            pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None),
            temporary,
        )


@contextlib.contextmanager
def told_if_no_parquet(path: Path) -> Iterator[None]:
    """Raises Refused for a file of this pipeline that is no readable Parquet."""
    import pyarrow as pa

    from regrpo.core.errors import Refused

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise Refused(
            str(path),
            expected="a whole Parquet file with UTF-8 text",
            found=str(error).splitlines()[0],
            remedy="Restore it with `dvc checkout`, or make it again with `dvc repro`.",
        ) from error


def read_parquet(path: Path) -> pd.DataFrame:
    """Read one Parquet file written by this pipeline into a frame (chat prompts come back as lists of dicts).

    Raises Refused for a file that is no readable Parquet.
    """
    import pyarrow.parquet as pq

    with told_if_no_parquet(path), path.open("rb") as f:
        frame: pd.DataFrame = pq.read_table(f).to_pandas()
        return frame
