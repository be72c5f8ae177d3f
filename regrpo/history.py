"""Where pipelines lie (workspace, commits, DVC experiments), their records, and how a user names one."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from regrpo import lineage
from regrpo.errors import CannotCheck
from regrpo.lineage import Snapshot
from regrpo.params import STAGES

NEWEST = 1
"""The newest `schema_version` of run.json that this code reads."""


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("a path inside the repository")
    return path


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Item(BaseModel):
    """An input or output in a record."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: Sha256
    size: int
    files: dict[Annotated[str, AfterValidator(_inside)], Sha256] | None = None


class Code(BaseModel):
    revision: str | None
    dirty: bool | None
    diff_sha256: str | None = None


class Environment(BaseModel, extra="allow"):
    packages: dict[str, str]
    sha256: Sha256


class Record(BaseModel, extra="allow"):
    """run.json's one element (regrpo.records writes it)."""

    schema_version: int
    stage: str
    run: str
    key: str
    command: str
    parameters: dict[str, Any]
    inputs: list[Item]
    outputs: list[Item]
    code: Code
    environment: Environment
    started: str
    ended: str
    mlflow_run_id: str | None = None


def parse_record(data: bytes, where: str) -> tuple[Record, dict[str, Any]]:
    """A run.json as model and as written; also the single object that it was before it became a list.

    Raises CannotCheck for what is no record, or one of a newer regrpo.
    """
    try:
        content = json.loads(data)
        content = content[0] if isinstance(content, list) and len(content) == 1 else content
        if not isinstance(content, dict):
            holds = f"a list of {len(content)}" if isinstance(content, list) else type(content).__name__
            raise ValueError(f"{holds}, not one record")
        version = TypeAdapter(int).validate_python(content["schema_version"])
        if version > NEWEST:
            raise CannotCheck(
                where, expected=f"a record of schema_version {NEWEST} or older", found=f"schema_version {version}",
                remedy="A newer regrpo made it: use that one.",
            )  # fmt: skip
        return Record.model_validate(content), content
    except (ValueError, TypeError, KeyError, IndexError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        shown = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem else str(error) or repr(error)
        raise CannotCheck(
            where, expected="a stage's record", found=f"a corrupted one ({shown.splitlines()[0][:120]})",
            remedy="Restore it with git, or make it again with `dvc repro`.",
        ) from error  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A pipeline and what people call the place where it lies."""

    name: str
    snapshot: Snapshot


def workspace(root: Path) -> Place:
    """The workspace at `root`. Raises CannotCheck where that is no repository of this pipeline."""
    if not (root / "dvc.yaml").is_file() or not (root / ".dvc").is_dir():
        missing = "dvc.yaml" if not (root / "dvc.yaml").is_file() else ".dvc/"
        raise CannotCheck(
            root.name or str(root), expected="the root of a repository of this pipeline", found=f"no {missing}",
            remedy="Change to the repository's root, or name it.",
        )  # fmt: skip
    return Place("workspace", Snapshot(root))


def experiments(root: Path) -> dict[str, str]:
    """DVC experiments by name → commit (of several with one name, the last listed)."""
    return {ref.split("/", 4)[4]: commit for ref, commit in lineage.experiments(root).items()}


def revisions(root: Path) -> Iterator[Place]:
    """Every commit that changed dvc.lock, newest first (HEAD, branches, tags), and every DVC experiment."""
    for name, commit in experiments(root).items():
        yield Place(f"experiment {name}", Snapshot(root, commit))
    listed = lineage.git(
        "-C", str(root), "log", "--branches", "--tags", "--remotes", "HEAD", "--format=%H", "--", "dvc.lock"
    )
    for commit in (listed or "").splitlines():
        yield Place(f"commit {commit[:12]}", Snapshot(root, commit))


def find(target: str | None, root: Path, mlflow: bool = True) -> Place:
    """What a user means: None (the workspace), a git revision, a DVC experiment, or a run's id (MLflow's or ours).

    Raises CannotCheck where it is none of them.
    """
    here = workspace(root)
    if target is None:
        return here
    if (commit := experiments(root).get(target)) is not None:
        return Place(f"experiment {target}", Snapshot(root, commit))
    if re.fullmatch("[0-9a-f]{32}", target) and (place := _holding(target, here, mlflow)):
        return place
    commit = lineage.git(
        "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{target}^{{commit}}"
    )
    if commit:
        return Place(f"revision {target}", Snapshot(root, commit))
    if re.fullmatch("[0-9a-f]{8,31}", target) and (place := _holding(target, here, mlflow=False)):
        return place
    in_git = lineage.git("-C", str(root), "rev-parse", "--git-dir") is not None
    raise CannotCheck(
        target,
        expected="an MLflow run id, a git revision, a DVC experiment or a folder",
        found="none of that name" if in_git else "no git repository here",
        remedy="`dvc exp list` and `git log -- dvc.lock` show what there is (a deleted experiment is gone); "
        "another clone's runs are named there.",
    )


def _holding(run: str, here: Place, mlflow: bool) -> Place | None:
    """The place whose records, or whose whole pipeline, are the run's; the workspace before any other."""
    key = None
    places = [here, *revisions(here.snapshot.root)]
    for place in places:
        if any(names_run(run, record) for record in loose_records(place.snapshot)):
            return place
    if mlflow:
        from regrpo import tracking
        from regrpo.mlflow_store import open_reader

        key = open_reader(tracking.tracking_uri()).pipeline_key(run)
    for place in places if key else ():
        with contextlib.suppress(CannotCheck):
            if lineage.pipeline_key(safe_lock(place.snapshot)) == key:
                return place
    return None


def names_run(text: str, record: Mapping[str, Any]) -> bool:
    """Whether this is the id of a record's run (MLflow's or ours), or its first 8 digits or more."""
    ids = (str(record.get("mlflow_run_id")), str(record.get("run")))
    return bool(re.fullmatch("[0-9a-f]{8,32}", text)) and any(one.startswith(text) for one in ids)


def loose_records(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """The records that can be read at all, unchecked."""
    for stage, data in record_bytes(snapshot).items():
        try:
            yield parse_record(data, stage)[1]
        except CannotCheck:
            continue


def record_bytes(snapshot: Snapshot) -> dict[str, bytes]:
    """{stage: run.json's bytes}; of a revision with one git process for all."""
    paths = {stage: f"reports/{stage}/run.json" for stage in STAGES}
    if snapshot.revision is None:
        return {stage: data for stage, path in paths.items() if (data := snapshot.read(path)) is not None}
    asked = "".join(f"{snapshot.revision}:./{path}\n" for path in paths.values()).encode()
    command = ["git", "-C", str(snapshot.root), "cat-file", "--batch"]
    answer = subprocess.run(command, input=asked, capture_output=True, check=False).stdout
    found: dict[str, bytes] = {}
    for stage in STAGES:
        head, _, answer = answer.partition(b"\n")
        if head.endswith(b" missing") or not head:
            continue
        size = int(head.rsplit(b" ", 1)[1])
        found[stage], answer = answer[:size], answer[size + 1 :]
    return found


def safe_lock(snapshot: Snapshot) -> dict[str, Any]:
    """dvc.lock, or CannotCheck in one line where it cannot be read."""
    from ruamel.yaml.error import YAMLError

    try:
        lock = snapshot.lock()
        for name, entry in lock["stages"].items():
            lineage.stage_key(entry)
            for one in [*entry.get("outs", []), *entry.get("deps", [])]:
                if not isinstance(one["path"], str) or not isinstance(one["md5"], str):
                    raise TypeError(f"{name}: {one['path']}: its path or MD5 is no string")
            if not all(isinstance(values, dict) for values in entry.get("params", {}).values()):
                raise TypeError(f"{name}: params are no mapping")
        return lock
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotCheck(
            "dvc.lock", expected="DVC's lock file", found=f"a corrupted one ({' '.join(str(error).split())[:120]})",
            remedy="Restore it with git.",
        ) from error  # fmt: skip
