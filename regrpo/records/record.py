"""Where pipelines lie (workspace, commits, DVC experiments), their records, and how a user names one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from regrpo.core.dvc import dvc_config
from regrpo.core.errors import CannotCheck
from regrpo.core.git import experiment_refs, git
from regrpo.core.pipeline import Snapshot, stage_key
from regrpo.core.profiles import STAGES
from regrpo.tracking.reader import reading

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
    """run.json's one element (regrpo.records.stage_run writes it)."""

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
    """A run.json as model and as written.

    Also the single object that it was before it became a list.

    Raises CannotCheck for what is no record, or one of a newer regrpo.
    """
    try:
        content = json.loads(data)
        content = content[0] if isinstance(content, list) and len(content) == 1 else content
        if not isinstance(content, dict):
            holds = (
                f"a list of {len(content)}" if isinstance(content, list) else type(content).__name__
            )
            raise ValueError(f"{holds}, not one record")
        version = TypeAdapter(int).validate_python(content["schema_version"])
        if version > NEWEST:
            raise CannotCheck(
                where,
                expected=f"a record of schema_version {NEWEST} or older",
                found=f"schema_version {version}",
                remedy="A newer regrpo made it: use that one.",
            )
        return Record.model_validate(content), content
    except (ValueError, TypeError, KeyError, IndexError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        shown = (
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            if problem
            else str(error) or repr(error)
        )
        raise CannotCheck(
            where,
            expected="a stage's record",
            found=f"a corrupted one ({shown.splitlines()[0][:120]})",
            remedy="Restore it with git, or make it again with `dvc repro`.",
        ) from error


@dataclass(frozen=True)
class Place:
    """A pipeline and what people call the place where it lies.

    The MLflow run that was asked for, if one was.
    """

    name: str
    snapshot: Snapshot
    mlflow_run_id: str | None = None


def workspace(root: Path) -> Place:
    """The workspace at `root`.

    Raises CannotCheck where that is no repository of this pipeline that DVC can read.
    """
    if not (root / "dvc.yaml").is_file() or not (root / ".dvc").is_dir():
        missing = "dvc.yaml" if not (root / "dvc.yaml").is_file() else ".dvc/"
        raise CannotCheck(
            root.name or str(root),
            expected="the root of a repository of this pipeline",
            found=f"no {missing}",
            remedy="Change to the repository's root, or name it.",
        )
    dvc_config(root)
    return Place("workspace", Snapshot(root))


def require_git(root: Path) -> None:
    """Raise CannotCheck where there is no git repository, unless DVC was told to do without (`core.no_scm`)."""
    if not _in_git(root) and not dvc_config(root).get("core", {}).get("no_scm"):
        raise _no_git(root)


def _in_git(root: Path) -> bool:
    return git("-C", str(root), "rev-parse", "--git-dir") is not None


def _no_git(root: Path) -> CannotCheck:
    return CannotCheck(
        root.name or str(root),
        expected="a git repository around dvc.yaml",
        found="none",
        remedy="Change to the root of the clone.",
    )


def experiments(root: Path) -> dict[str, str]:
    """DVC experiments by name → commit (of several with one name, the last listed)."""
    return {ref.split("/", 4)[4]: commit for ref, commit in experiment_refs(root).items()}


def revisions(root: Path) -> Iterator[Place]:
    """Every commit that changed dvc.lock, newest first (HEAD, branches, tags), and every DVC experiment."""
    for name, commit in experiments(root).items():
        yield Place(f"experiment {name}", Snapshot(root, commit))
    listed = git(
        "-C",
        str(root),
        "log",
        "--branches",
        "--tags",
        "--remotes",
        "HEAD",
        "--format=%H",
        "--",
        "dvc.lock",
    )
    for commit in (listed or "").splitlines():
        yield Place(f"commit {commit[:12]}", Snapshot(root, commit))


def find(target: str | None, root: Path, mlflow: bool = True, committed: bool = False) -> Place:
    """What a user means.

    None (the workspace), a git revision, a DVC experiment, or a run's id (MLflow's or ours).

    run.json names its own run, so that a stage's id is found without MLflow. A pipeline row's is in
    no file: that one is looked up there. With `committed` only what git holds counts. Raises
    CannotCheck where it is none of them, or where one name means two commits.
    """
    here = workspace(root)
    if target is None:
        return here
    if committed and not _in_git(root):
        raise _no_git(root)
    is_id = re.fullmatch("[0-9a-f]{32}", target) is not None
    place = _of_run(target, here, committed) if is_id else None
    place = place or _named(target, root)
    place = place or (_of_row(target, here, committed) if is_id and mlflow else None)
    if place is None and re.fullmatch("[0-9a-f]{8,31}", target):
        place = _of_run(target, here, committed)
    if place is None:
        found = "none of that name" if _in_git(root) else "no git repository here"
        raise CannotCheck(
            target,
            expected="an MLflow run id, a git revision or a DVC experiment",
            found=found + (_forgotten(target) if mlflow else ""),
            remedy="`dvc exp list --all` and `git log --all -- dvc.lock` show what there is; "
            "another clone's runs are named there.",
        )
    return place


def _named(target: str, root: Path) -> Place | None:
    """A git revision, or a DVC experiment's name."""
    commit = git(
        "-C",
        str(root),
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{target}^{{commit}}",
    )
    named = {ref: at for ref, at in experiment_refs(root).items() if ref.endswith(f"/{target}")}
    meant = {commit: "git revision"} if commit else {}
    for ref, at in named.items():
        meant.setdefault(at, f"experiment on {''.join(ref.split('/')[2:4])[:7]}")
    if len(meant) > 1:
        raise CannotCheck(
            target,
            expected="one commit of this name",
            found=f"{len(meant)}: "
            + ", ".join(f"{at[:12]} ({what})" for at, what in meant.items()),
            remedy="Give the commit instead.",
        )
    return next(
        (
            Place(f"{'experiment' if named else 'revision'} {target}", Snapshot(root, at))
            for at in meant
        ),
        None,
    )


def _places(here: Place, committed: bool) -> Iterator[Place]:
    """Where to look for a run.

    The workspace, then commits from the oldest on (the one that made it), experiments.
    """
    if not committed:
        yield here
    yield from reversed(list(revisions(here.snapshot.root)))


def _of_run(run: str, here: Place, committed: bool) -> Place | None:
    """The place with a stage's record of this run, by either of its ids."""
    for place in _places(here, committed):
        for record in loose_records(place.snapshot):
            if names_run(run, record):
                return replace(place, mlflow_run_id=record.get("mlflow_run_id"))
    return None


def _of_row(run: str, here: Place, committed: bool) -> Place | None:
    """The place that holds every stage's run of a pipeline's row in MLflow, or what a reproduction reproduced.

    Raises CannotCheck where MLflow knows the row and its results are nowhere.
    """
    with reading() as store:
        found = store.run(run)
    if found is None:
        return None
    tags, root = found["tags"], here.snapshot.root
    if tags.get("regrpo.kind") == "reproduction":
        return Place(
            f"commit {tags['regrpo.revision'][:12]}",
            Snapshot(root, tags["regrpo.revision"]),
            tags.get("regrpo.reproduces"),
        )
    stages = {
        name.removeprefix("regrpo.stage."): at
        for name, at in tags.items()
        if name.startswith("regrpo.stage.")
    }
    for place in _places(here, committed) if stages else ():
        records = {record["stage"]: record for record in loose_records(place.snapshot)}
        ids = {
            stage: (record.get("run"), record.get("mlflow_run_id"))
            for stage, record in records.items()
        }
        if all(at in ids.get(stage, ()) for stage, at in stages.items()):
            return replace(place, mlflow_run_id=run)
    experiment = tags.get("regrpo.experiment")
    why = (
        f"its DVC experiment {experiment!r} was removed"
        if experiment
        else "its results were never committed here"
    )
    raise CannotCheck(
        run,
        expected="a commit that holds the run's dvc.lock and run.json files",
        found=f"none: {why}"
        if stages
        else f"none: it is no run of a pipeline ({tags.get('regrpo.kind', 'foreign')})",
        remedy="Commit dvc.lock and reports/ after a run (or `dvc exp branch NAME BRANCH`), in the run's repository.",
    )


def _forgotten(name: str) -> str:
    """What MLflow remembers of a DVC experiment of this name.

    Silent where there is no store to ask.
    """
    with contextlib.suppress(CannotCheck):
        if re.fullmatch(r"[\w.-]+", name):
            with reading() as store:
                known = store.tagged(regrpo__experiment=name)
            if known:
                return f" (MLflow remembers a DVC experiment of that name: it was removed; run {known[0]['id']})"
    return ""


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
        return {
            stage: data
            for stage, path in paths.items()
            if (data := snapshot.read(path)) is not None
        }
    read = read_many(snapshot.root, [snapshot.revision], list(paths.values()))[snapshot.revision]
    return {stage: data for stage, path in paths.items() if (data := read[path]) is not None}


def read_many(
    root: Path, commits: Sequence[str], paths: Sequence[str]
) -> dict[str, dict[str, bytes | None]]:
    """{commit: {path: bytes, None where it is not there}}, with one git process for all."""
    commits = list(dict.fromkeys(commits))
    asked = "".join(f"{commit}:./{path}\n" for commit in commits for path in paths).encode()
    command = ["git", "-C", str(root), "cat-file", "--batch"]
    answer = io.BytesIO(
        subprocess.run(command, input=asked, capture_output=True, check=False).stdout
        if asked
        else b""
    )
    found: dict[str, dict[str, bytes | None]] = {}
    for commit in commits:
        for path in paths:
            head = answer.readline()
            data = None
            if head and not head.endswith(b" missing\n"):
                data = answer.read(int(head.rsplit(b" ", 1)[1]))
                answer.read(1)
            found.setdefault(commit, {})[path] = data
    return found


def safe_lock(snapshot: Snapshot) -> dict[str, Any]:
    """dvc.lock, or CannotCheck in one line where it cannot be read."""
    from ruamel.yaml.error import YAMLError

    try:
        lock = snapshot.lock()
        for name, entry in lock["stages"].items():
            stage_key(entry)
            for one in [*entry.get("outs", []), *entry.get("deps", [])]:
                if not isinstance(one["path"], str) or not isinstance(one["md5"], str):
                    raise TypeError(f"{name}: {one['path']}: its path or MD5 is no string")
            if not all(isinstance(values, dict) for values in entry.get("params", {}).values()):
                raise TypeError(f"{name}: params are no mapping")
        return lock
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotCheck(
            "dvc.lock",
            expected="DVC's lock file",
            found=f"a corrupted one ({' '.join(str(error).split())[:120]})",
            remedy="Restore it with git.",
        ) from error


def read_records(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Each stage's record at a revision, in running order, checked against dvc.lock.

    Raises CannotCheck where results were not committed, or a record cannot be read or is not the
    one dvc.lock knows.
    """
    from ruamel.yaml import YAML

    where = (snapshot.revision or "workspace")[:10]
    remedy = "Name a commit that holds a finished run (`git log --oneline --all -- dvc.lock`), or commit the results."
    try:
        declared = list(
            YAML(typ="safe").load((snapshot.read("dvc.yaml") or b"").decode())["stages"]
        )
        lock = snapshot.lock()["stages"]
    except Exception as error:  # YAML's many, and KeyError or TypeError for another shape
        found = f"none that can be read ({type(error).__name__})"
        raise CannotCheck(
            where, expected="a pipeline's dvc.yaml and dvc.lock", found=found, remedy=remedy
        ) from error
    missing = [
        name
        for name in declared
        if name not in lock or snapshot.read(f"reports/{name}/run.json") is None
    ]
    if missing:
        found = f"none of {', '.join(missing)}: results that were never committed, or of a pipeline that did not finish"
        raise CannotCheck(
            where, expected="dvc.lock and a run.json of every stage", found=found, remedy=remedy
        )
    return {
        name: _whole_record(snapshot, name, lock[name], f"{where}:reports/{name}/run.json")
        for name in declared
    }


def _whole_record(
    snapshot: Snapshot, stage: str, entry: dict[str, Any], where: str
) -> dict[str, Any]:
    data = snapshot.read(f"reports/{stage}/run.json") or b""
    record = parse_record(data, where)[1]
    known = {out["path"]: out["md5"] for out in entry.get("outs", [])}
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if known.get(f"reports/{stage}/run.json") != md5 or record["key"] != stage_key(entry):
        raise CannotCheck(
            where,
            expected="the record that dvc.lock knows",
            found="another one: it was altered, or is of another run",
            remedy="Restore the file from another commit, or name one whose records are whole.",
        )
    return {"mlflow_run_id": None} | record
