"""Rows from where a dataset lies.

A reasoning-gym generator, a file under data/raw/, a hub repository at a commit.

Every source yields (place, row); the place, as "data/raw/train.jsonl, line 7", is what an error
about the row names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from regrpo.core import files
from regrpo.core.errors import Refused
from regrpo.core.hub import file_under, hub_failure, require_commit
from regrpo.core.settings import Section

RAW_DATA = Path("data/raw")
Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]


def reasoning_gym_rows(task: str, seed: int, size: int, config: dict[str, Any]) -> Rows:
    """Rows of a procedural task.

    Row i draws from seed + i, so two seeds nearer than `size` share rows.
    """
    import reasoning_gym

    try:
        dataset = reasoning_gym.create_dataset(task, seed=seed, size=size, **config)
    except (ValueError, TypeError, AssertionError) as error:
        raise Refused(
            "prepare.source",
            expected=f"a reasoning-gym task and its configuration (task {task!r})",
            found=str(error) or type(error).__name__,
            remedy="See reasoning_gym.factory.DATASETS for the tasks and their configuration classes.",
        ) from error
    for index, row in enumerate(dataset):
        yield f"reasoning-gym {task}, row {index}", row


def local_rows(path: Path) -> Rows:
    """Rows of a JSONL, JSON, CSV or Parquet file.

    Raises Refused with file and line for what cannot be read as it is.

    Lines count from 1, rows of JSON and Parquet from 0.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers or path.is_dir():
        raise Refused(
            str(path),
            expected=f"a file ending in {', '.join(readers)}",
            found="a folder" if path.is_dir() else path.suffix or "no ending",
            remedy="Convert it to one of these.",
        )
    if path.stat().st_size == 0:
        raise Refused(
            str(path),
            expected="at least one row",
            found="an empty file",
            remedy="Bring the data in again.",
        )
    return readers[path.suffix](path)


def _bad_text(where: str, found: str, remedy: str) -> Refused:
    return Refused(
        where, expected="UTF-8 text without byte-order mark or NUL", found=found, remedy=remedy
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of a UTF-8 file.

    Refused for a BOM, a NUL or bytes that are not UTF-8.
    """
    with path.open("rb") as f:
        for number, raw in enumerate(f, start=1):
            where = f"{path}, line {number}"
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raise _bad_text(
                    where,
                    "a byte-order mark",
                    f"Remove it: `sed -i '1s/^\\xEF\\xBB\\xBF//' {path}`.",
                )
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise _bad_text(where, "UTF-16", f"Convert it: `iconv -f UTF-16 -t UTF-8 {path}`.")
            if b"\0" in raw:
                raise _bad_text(where, "a NUL byte", "Write the row again without it.")
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _bad_text(
                    where,
                    f"byte 0x{raw[error.start]:02x} at column {error.start + 1}",
                    "Save the file as UTF-8.",
                ) from error


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise Refused(
            where,
            expected="a JSON object",
            found=type(value).__name__,
            remedy="Write one object a row.",
        )
    return value


def _parse(text: str, path: Path, line: int, expected: str) -> Any:
    """JSON that starts on that line.

    Refused for what is none, is nested without end, or holds an endless number.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        found = str(error)
        if isinstance(error, json.JSONDecodeError):
            line += error.lineno - 1
            found = f"{error.msg} at column {error.colno}, near {text[max(error.pos - 20, 0) : error.pos + 20]!r}"
        raise Refused(
            f"{path}, line {line}", expected=expected, found=found, remedy="Mend or remove it."
        ) from error


def _jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(_parse(line.strip(), path, number, "one JSON object"), where)


def _json(path: Path) -> Rows:
    rows = _parse("".join(line for _, line in _lines(path)), path, 1, "a JSON list of objects")
    if not isinstance(rows, list):
        raise Refused(
            str(path),
            expected="a JSON list of objects",
            found=type(rows).__name__,
            remedy="Write a list of objects.",
        )
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", _object(row, f"{path}, row {index}")


def _csv(path: Path) -> Rows:
    import csv

    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise Refused(
                f"{path}, line 1",
                expected="a header that names each column once",
                found=", ".join(header),
                remedy="Rename or remove the repeated column.",
            )
        for fields in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise Refused(
                    where,
                    expected=f"{len(header)} fields, as in the header",
                    found=str(len(fields)),
                    remedy="Quote fields that hold commas.",
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise Refused(
            f"{path}, line {reader.line_num}",
            expected="CSV with a header",
            found=str(error),
            remedy="Mend the line.",
        ) from error


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                batch.validate(full=True)  # text in a Parquet file need not be UTF-8
                for index, row in enumerate(batch.to_pylist(), start):
                    yield f"{path}, row {index}", row
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Refused(
            f"{path}, from row {start}" if start else str(path),
            expected="a whole Parquet file with UTF-8 text",
            found=str(error).splitlines()[0],
            remedy="Write it again: it is truncated, damaged or no Parquet.",
        ) from error


def hub_rows(
    repo: str, config: str | None, revision: str, split: str, data_dir: str | None = None
) -> Rows:
    """Rows of a hub dataset's split at a commit. Raises CannotCheck where it cannot be loaded.

    `data_dir` is the folder of plain files that holds the splits: how a Parquet conversion
    (refs/convert/parquet) lays out a configuration. No dataset script is ever run: `datasets` knows
    none any more.
    """
    from datasets import load_dataset

    require_commit(repo, revision, "dataset", "prepare.source.revision")
    try:
        dataset = load_dataset(repo, config, data_dir=data_dir, revision=revision, split=split)
    except Exception as error:  # the hub's client raises a different class for each kind of failure
        instead = f"copy the files of split {split!r} to {RAW_DATA}/ and use source kind `local`"
        raise hub_failure(error, repo, revision, "dataset", "prepare.source", instead) from error
    for index, row in enumerate(dataset):
        yield f"{repo} ({split}), row {index}", row


class ReasoningGym(Section):
    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    config: dict[str, Any] = Field(default={})
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        return {"train": reasoning_gym_rows(self.task, seed, self.size, self.config)}

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "source": f"reasoning-gym task {self.task}",
            "revision": f"reasoning-gym {version('reasoning-gym')}",
        }


class Local(Section):
    kind: Literal["local"]
    train: str
    eval: str | None = None
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        names = {"train": self.train} | ({"eval": self.eval} if self.eval else {})
        return {
            part: local_rows(file_under(RAW_DATA, name, f"prepare.source.{part}"))
            for part, name in names.items()
        }

    def describe(self) -> dict[str, Any]:
        digests = {name: files.sha256(RAW_DATA / name) for name in (self.train, self.eval) if name}
        return {
            "source": f"files under {RAW_DATA}/",
            "revision": files.sha256_json(digests),
            "files": digests,
        }


class Hub(Section):
    kind: Literal["hub"]
    repo: str
    config: str | None = None
    data_dir: str | None = None
    revision: str
    train_split: str = "train"
    eval_split: str | None = None
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        names = {"train": self.train_split} | ({"eval": self.eval_split} if self.eval_split else {})
        return {
            part: hub_rows(self.repo, self.config, self.revision, name, self.data_dir)
            for part, name in names.items()
        }

    def describe(self) -> dict[str, Any]:
        return {
            "source": f"hub dataset {self.repo}",
            "repo": self.repo,
            "config": self.config or self.data_dir,
            "revision": self.revision,
        }
