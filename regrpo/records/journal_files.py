"""Observer: what the files of a journal hold, checked before the tracker takes anything of them.

A power loss or a failing disk empties files, cuts them off or fills them with anything.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from regrpo.core.files import Json
from regrpo.records.record import Code, Item, Sha256

LONGEST_LINE = 2**20
"""Bytes of a line of metrics; a longer one is none of ours."""
Name = Annotated[str, Field(pattern=r"^[\w.-]{1,200}$")]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Seconds = Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]
"""Since 1970."""
Process = tuple[Annotated[float, Field(ge=0, lt=2**31)], Seconds]
"""A process's id, and when it started."""
MlflowId = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]


class Strict(BaseModel):
    """A number is no text, and text no number; keys that are not named may be there.

    Built when first used: every command and stage imports all of them.
    """

    model_config = ConfigDict(strict=True, extra="allow", defer_build=True)


class Entry(Strict):
    """A stage's entry in dvc.lock, without its outputs."""

    cmd: Text
    params: dict[str, dict[str, Any]]


class Facts(Strict):
    """open.json: what is known at a stage's start."""

    stage: Name
    run: Name
    key: Text
    entry: Entry
    code: Code
    diff: str
    process: Process
    execution: Process | None
    experiment: Text | None
    baseline: Text | None
    profile: Text
    sections: dict[str, dict[str, Any] | None]
    workspace: Text
    started: Seconds


class MadeEnvironment(Strict):
    """Of a record's environment what MLflow gets."""

    sha256: Sha256


class MadeRecord(Strict):
    """Of a stage's record what MLflow gets."""

    stage: Name
    run: Name
    key: Text
    command: Text
    parameters: dict[str, dict[str, Any]]
    inputs: list[Item]
    outputs: list[Item]
    code: Code
    environment: MadeEnvironment


class Closed(Strict):
    """closed.json: how a stage ended. Without `ended`, when the file was last touched."""

    status: Literal["FINISHED", "FAILED", "KILLED"]
    ended: Seconds | None
    record: MadeRecord | None


class Notes(Strict):
    """mlflow.json: the tracker's notes."""

    run_id: MlflowId | None = None
    parent_run_id: MlflowId | None = None
    model_id: MlflowId | None = None
    offset: Annotated[int, Field(ge=0)] = 0
    ended: bool = False
    over_since: Seconds | None = None
    error: str | None = None
    stuck: str | None = None


class Line(Strict):
    """A line of metrics.jsonl."""

    step: Annotated[int, Field(ge=0, lt=2**62)]
    time: Seconds
    values: dict[str, float | bool]


def read(path: Path, model: type[Strict]) -> Json:
    """A file of a journal. Raises ValueError (or OSError) if it does not hold what it must."""
    data = path.read_bytes()
    # Its parser bounds the depth, which Python's does not.
    model.model_validate_json(data)
    content: Json = json.loads(data)
    return content


def read_lines(data: bytes) -> list[Json]:
    """The metrics of whole lines; what cannot be read is left out (history.csv is the record)."""
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            if len(line) <= LONGEST_LINE:
                Line.model_validate_json(line)
                found.append(json.loads(line))
    return found
