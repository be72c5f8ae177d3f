"""Rows from where a dataset lies: a reasoning-gym generator, data/raw/ or the hub at a commit.

Every source yields (place, row); the place, as "data/raw/train.jsonl, line 7", is what an error
about the row names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from importlib import metadata
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


class ReasoningGym(Section):
    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    config: dict[str, Any] = Field(default={})
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        return {"train": self.rows(seed)}

    def rows(self, seed: int) -> Rows:
        """Row i draws from seed + i, so two seeds nearer than `size` share rows."""
        import reasoning_gym

        try:
            dataset = reasoning_gym.create_dataset(
                self.task, seed=seed, size=self.size, **self.config
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise Refused(
                "prepare.source",
                expected=f"a reasoning-gym task and its configuration (task {self.task!r})",
                found=str(error) or type(error).__name__,
                remedy="See reasoning_gym.factory.DATASETS for the tasks and their configurations.",
            ) from error
        for index, row in enumerate(dataset):
            yield f"reasoning-gym {self.task}, row {index}", row

    def describe(self) -> dict[str, Any]:
        return {
            "source": f"reasoning-gym task {self.task}",
            "revision": f"reasoning-gym {metadata.version('reasoning-gym')}",
        }


class Local(Section):
    """Files under data/raw/."""

    kind: Literal["local"]
    train: str
    eval: str | None = None
    license: str

    def _names(self) -> dict[str, str]:
        names = {"train": self.train}
        if self.eval:
            names["eval"] = self.eval
        return names

    def parts(self, seed: int) -> dict[str, Rows]:
        return {
            part: local_rows(file_under(RAW_DATA, name, f"prepare.source.{part}"))
            for part, name in self._names().items()
        }

    def describe(self) -> dict[str, Any]:
        digests = {name: files.sha256(RAW_DATA / name) for name in self._names().values()}
        return {
            "source": f"files under {RAW_DATA}/",
            "revision": files.sha256_json(digests),
            "files": digests,
        }


class Hub(Section):
    """Splits of a hub dataset at a commit.

    `data_dir` is the folder of plain files that holds the splits: how a Parquet conversion
    (refs/convert/parquet) lays out a configuration.
    """

    kind: Literal["hub"]
    repo: str
    config: str | None = None
    data_dir: str | None = None
    revision: str
    train_split: str = "train"
    eval_split: str | None = None
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        splits = {"train": self.train_split}
        if self.eval_split:
            splits["eval"] = self.eval_split
        return {part: self.rows(split) for part, split in splits.items()}

    def rows(self, split: str) -> Rows:
        """Rows of a split. Raises CannotCheck if it cannot be loaded.

        No dataset script is ever run: `datasets` knows none any more.
        """
        from datasets import load_dataset

        require_commit(self.repo, self.revision, "dataset", "prepare.source.revision")
        try:
            dataset = load_dataset(
                self.repo, self.config, data_dir=self.data_dir, revision=self.revision, split=split
            )
        except Exception as error:  # the hub's client raises a different class for each failure
            where = "prepare.source"
            instead = (
                f"copy the files of split {split!r} to {RAW_DATA}/ and use source kind `local`"
            )
            raise hub_failure(error, self.repo, self.revision, "dataset", where, instead) from error
        for index, row in enumerate(dataset):
            yield f"{self.repo} ({split}), row {index}", row

    def describe(self) -> dict[str, Any]:
        return {
            "source": f"hub dataset {self.repo}",
            "repo": self.repo,
            "config": self.config or self.data_dir,
            "revision": self.revision,
        }


def local_rows(path: Path) -> Rows:
    """Rows of a JSONL, JSON, CSV or Parquet file.

    Raises Refused with file and line for what cannot be read as it is. Lines count from 1, rows of
    JSON and Parquet from 0.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.is_dir() or path.suffix not in readers:
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


def _jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _object(_parse(line.strip(), path, number, "one JSON object"), place)


def _json(path: Path) -> Rows:
    text = "".join(line for _, line in _lines(path))
    rows = _parse(text, path, 1, "a JSON list of objects")
    if not isinstance(rows, list):
        raise Refused(
            str(path),
            expected="a JSON list of objects",
            found=type(rows).__name__,
            remedy="Write a list of objects.",
        )
    for index, row in enumerate(rows):
        place = f"{path}, row {index}"
        yield place, _object(row, place)


def _csv(path: Path) -> Rows:
    # Strict: a quote that is left open is an error, not a field that runs on to the file's end.
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
        for fields in reader:
            if not fields:  # a blank line
                continue
            place = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise Refused(
                    place,
                    expected=f"{len(header)} fields, as in the header",
                    found=str(len(fields)),
                    remedy="Quote fields that hold commas.",
                )
            yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise Refused(
            f"{path}, line {reader.line_num}",
            expected="CSV with a header",
            found=str(error),
            remedy="Mend the line.",
        ) from error


def _parquet(path: Path) -> Rows:
    remedy = "Write it again: it is truncated, damaged or no Parquet."
    for start, rows in files.ParquetFile(path, remedy).batches(4096):
        for index, row in enumerate(rows, start):
            yield f"{path}, row {index}", row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of a UTF-8 file.

    Raises Refused for a byte-order mark, a NUL or bytes that are not UTF-8.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                remedy = "Save the file as UTF-8."
                if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    found = "UTF-16"
                    remedy = f"Convert it: `iconv -f UTF-16 -t UTF-8 {path}`."
                raise _bad_text(path, number, found, remedy) from error
            if number == 1 and text.startswith("\ufeff"):
                remedy = f"Remove it: `sed -i '1s/^\\xEF\\xBB\\xBF//' {path}`."
                raise _bad_text(path, number, "a byte-order mark", remedy)
            if "\0" in text:
                raise _bad_text(path, number, "a NUL byte", "Write the row again without it.")
            yield number, text


def _bad_text(path: Path, line: int, found: str, remedy: str) -> Refused:
    return Refused(
        f"{path}, line {line}",
        expected="UTF-8 text without byte-order mark or NUL",
        found=found,
        remedy=remedy,
    )


def _parse(text: str, path: Path, line: int, expected: str) -> Any:
    """JSON that starts on that line of a file.

    Raises Refused for what is none, is nested without end, or holds an endless number.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        found = str(error)
        if isinstance(error, json.JSONDecodeError):
            line += error.lineno - 1
            near = text[max(error.pos - 20, 0) : error.pos + 20]
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
