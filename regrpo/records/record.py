"""A stage's record (reports/<stage>/run.json) as a checked model, and those of a whole pipeline."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from regrpo.core.errors import CannotCheck
from regrpo.core.files import Json
from regrpo.core.pipeline import Snapshot, entry_misfits, record_path
from regrpo.core.profiles import STAGES

NEWEST = 1
"""The newest `schema_version` of run.json that this code reads."""


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("a path inside the repository")
    return path


PathInside = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Item(BaseModel):
    """An input or output in a record: a file, or a folder with the SHA-256 of each file in it."""

    path: PathInside
    sha256: Sha256
    size: int
    files: dict[PathInside, Sha256] | None = None


class Code(BaseModel):
    """The commit that the code was at; None without git."""

    revision: str | None
    dirty: bool | None
    diff_sha256: str | None = None


class Environment(BaseModel, extra="allow"):
    """Installed packages by name; Python, system and devices are extra fields."""

    packages: dict[str, str]
    sha256: Sha256


class Record(BaseModel, extra="allow"):
    """run.json's one element (regrpo.records.stage_run writes it)."""

    schema_version: int
    stage: str
    run: str
    key: str
    command: str
    parameters: dict[str, Json]
    inputs: list[Item]
    outputs: list[Item]
    code: Code
    environment: Environment
    started: str
    ended: str
    mlflow_run_id: str | None = None


def parse_record(data: bytes, where: str) -> tuple[Record, Json]:
    """A run.json as model and as written.

    Raises CannotCheck, which names `where`, for what is no record, or one of a newer regrpo.
    """
    try:
        content = json.loads(data)
        if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
            raise ValueError("no list of one record")
        version = TypeAdapter(int).validate_python(content[0]["schema_version"])
        if version > NEWEST:
            raise CannotCheck(
                where,
                expected=f"a record of schema_version {NEWEST} or older",
                found=f"schema_version {version}",
                remedy="A newer regrpo made it: use that one.",
            )
        return Record.model_validate(content[0]), content[0]
    except (ValueError, TypeError, KeyError) as error:
        raise CannotCheck(
            where,
            expected="a stage's record",
            found=f"a corrupted one ({_problem(error)[:120]})",
            remedy="Restore it with git, or make it again with `dvc repro`.",
        ) from error


def _problem(error: Exception) -> str:
    """The first line of what is wrong, with the field that pydantic names."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".splitlines()[0]
    return (str(error) or repr(error)).splitlines()[0]


def read_records(snapshot: Snapshot) -> dict[str, Json]:
    """Each stage's record at a revision, in running order, checked against dvc.lock.

    Raises CannotCheck if results were not committed, or dvc.lock or a record cannot be read, or a
    record is not the one that dvc.lock knows.
    """
    where = (snapshot.revision or "workspace")[:10]
    entries, data = snapshot.lock()["stages"], snapshot.record_bytes()
    missing = [stage for stage in STAGES if stage not in entries or stage not in data]
    if missing:
        raise CannotCheck(
            where,
            expected="dvc.lock and a run.json of every stage",
            found=f"none of {', '.join(missing)}: results that were never committed, "
            "or of a pipeline that did not finish",
            remedy="Name a commit that holds a finished run (`git log --oneline --all -- "
            "dvc.lock`), or commit the results.",
        )
    records = {}
    for stage in STAGES:
        path = f"{where}:{record_path(stage)}"
        records[stage] = parse_record(data[stage], path)[1]
        if entry_misfits(stage, entries[stage], data[stage], records[stage]):
            raise CannotCheck(
                path,
                expected="the record that dvc.lock knows",
                found="another one: it was altered, or is of another run",
                remedy="Restore the file from another commit, or name one whose records are whole.",
            )
    return records
