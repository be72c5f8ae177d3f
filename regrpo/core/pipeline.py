"""What dvc.lock and the records say of a pipeline, in a workspace or at a git revision.

Stage keys, the files of a revision, and the one check that they all belong together (`misfits`).
A record here is run.json's element as plain data; regrpo.records.record has it as a checked model.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from regrpo.core.dvc import cache_folder, dvc_root, md5_of, read_object, read_object_inside
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.files import Json, file_hashes, sha256_json
from regrpo.core.git import Files, read_files
from regrpo.core.profiles import BY_DVC, STAGES, parse_yaml

LOCK = Path("dvc.lock")
CODE = ("stages", "regrpo", "custom", "dvc.yaml", "pyproject.toml", "constraints.txt")
"""What counts as code, for the "dirty" flag (DVC itself rewrites params.yaml and the reports)."""
RAW = ("data/raw", "models/raw")
"""The folders of data and weights that users bring."""


def record_path(stage: str) -> str:
    """Where a stage leaves its record."""
    return f"reports/{stage}/run.json"


# --- keys -----------------------------------------------------------------------------------------


def stage_key(entry: Json) -> str:
    """SHA-256 over a dvc.lock entry's command, dependency hashes and parameters: "the same stage".

    Outputs are no part of it, so it is known before the stage runs.
    """
    return sha256_json(
        {
            "cmd": entry["cmd"],
            "deps": sorted([dep["path"], dep["md5"]] for dep in entry.get("deps", [])),
            "params": entry.get("params", {}),
        }
    )


def pipeline_key(lock: Json) -> str | None:
    """SHA-256 over the keys of all stages. Returns None if dvc.lock lacks a stage."""
    stages = lock.get("stages", {})
    if not set(STAGES) <= set(stages):
        return None
    return sha256_json({name: stage_key(stages[name]) for name in STAGES})


def out_md5s(entry: Json) -> dict[str, str]:
    """{path: MD5} of a dvc.lock entry's outs."""
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def recorded_params(entries: Mapping[str, Json]) -> Json:
    """Each stage's section of the profile as these dvc.lock entries recorded it."""
    sections: Json = {}
    for entry in entries.values():
        for values in entry.get("params", {}).values():
            sections |= values
    return sections


def recorded_profile(entries: Mapping[str, Json]) -> str:
    """The profile that dvc.lock's parameters came from; the last stage's, if they differ."""
    profile = ""
    for entry in entries.values():
        for path in entry.get("params", {}):
            profile = path
    return profile


# --- whether it all belongs together --------------------------------------------------------------


@dataclass(frozen=True)
class Misfit:
    """One thing in a pipeline's files that does not fit the rest, as far as `stage` shows it.

    kind      path           what is wrong
    "entry"   dvc.lock       it does not hold the stage
    "record"  the run.json   there is none that can be read
    "md5"     the run.json   it is not the one that dvc.lock knows
    "key"     the run.json   dvc.lock's entry gives another key
    "input"   the input      the stage read other bytes than `maker` recorded (SHA-256)

    `expected` and `found` are hashes; `expected` is None for a file that `maker` did not make.
    """

    stage: str
    kind: Literal["entry", "record", "md5", "key", "input"]
    path: str
    expected: str | None = None
    found: str | None = None
    maker: str = ""


def misfits(lock: Json, data: Mapping[str, bytes], records: Mapping[str, Json]) -> list[Misfit]:
    """Everything that keeps dvc.lock and the records from being one pipeline, in running order.

    `lock`: dvc.lock. `data` and `records`: by stage, run.json's bytes and what they say; a stage
    whose record cannot be read has none of the latter.
    """
    found: list[Misfit] = []
    inputs = chain_misfits(records, data)
    for stage in STAGES:
        entry = lock["stages"].get(stage)
        if entry is None:
            found.append(Misfit(stage, "entry", str(LOCK)))
        if stage not in records:
            found.append(Misfit(stage, "record", record_path(stage)))
        elif entry is not None:
            found += entry_misfits(stage, entry, data[stage], records[stage])
        found += [one for one in inputs if one.stage == stage]
    return found


def entry_misfits(stage: str, entry: Json, data: bytes, record: Json) -> list[Misfit]:
    """Where dvc.lock's entry is not that of this record: the file's MD5, the stage's key."""
    path = record_path(stage)
    found = []
    known, md5 = out_md5s(entry).get(path), md5_of(data)
    if known != md5:
        found.append(Misfit(stage, "md5", path, known, md5))
    key = stage_key(entry)
    if record.get("key") != key:
        found.append(Misfit(stage, "key", path, record.get("key"), key))
    return found


def chain_misfits(
    records: Mapping[str, Json], data: Mapping[str, bytes] | None = None
) -> list[Misfit]:
    """Where a stage read other bytes than the stage that makes them recorded as its output.

    With `data`, the records themselves count as outputs: the last stage reads some of them.
    """
    made: dict[str, dict[str, str]] = {}
    for stage, record in records.items():
        made[stage] = {}
        for out in record["outputs"]:
            made[stage] |= hashes(out)
        if data is not None and stage in data:
            made[stage][record_path(stage)] = hashlib.sha256(data[stage]).hexdigest()
    found = []
    for stage, record in records.items():
        for item in record["inputs"]:
            maker = maker_of(item["path"], made)
            if maker is None:
                continue
            for path, digest in hashes(item).items():
                expected = made[maker].get(path)
                if expected != digest:
                    found.append(Misfit(stage, "input", path, expected, digest, maker))
                    break  # of a folder with another hash its files are not listed besides
    return found


def hashes(item: Mapping[str, Any]) -> dict[str, str]:
    """{path: SHA-256} of a recorded input or output as a whole, and of a folder's files."""
    return {item["path"]: item["sha256"]} | file_hashes(item)


def maker_of(path: str, made: Mapping[str, Container[str]]) -> str | None:
    """The stage that has the path, or a folder around it, among its outputs."""
    around = [path, *(str(parent) for parent in Path(path).parents)]
    for stage, outputs in made.items():
        if any(one in outputs for one in around):
            return stage
    return None


# --- the files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """The small files of a pipeline that git holds: in a folder, or at a git revision of it."""

    root: Path
    revision: str | None = None
    loaded: Files = field(default_factory=dict, compare=False, repr=False)
    """What was read already (`load`)."""

    @property
    def is_workspace(self) -> bool:
        """Whether the files lie in a folder, and not in a git revision."""
        return self.revision is None

    def read(self, path: str | Path) -> bytes | None:
        """A file's bytes. Returns None if it is not there."""
        return self.read_all([str(path)]).get(str(path))

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Those of the files that are there, by path; a revision's with one git process."""
        wanted = list(paths)
        if self.revision is None:
            files = [path for path in wanted if (self.root / path).is_file()]
            return {path: (self.root / path).read_bytes() for path in files}
        missing = [path for path in wanted if path not in self.loaded]
        found = self.loaded | read_files(self.root, [self.revision], missing)[self.revision]
        known = {path: found[path] for path in wanted}
        return {path: data for path, data in known.items() if data is not None}

    def output(self, path: str) -> bytes | None:
        """The bytes of an output, or of a file in one, from here or the DVC cache.

        Returns None if neither has it.
        """
        data = self.read(path)
        if data is not None:
            return data
        for entry in self.lock()["stages"].values():
            for out, md5 in out_md5s(entry).items():
                if path == out:
                    return read_object(cache_folder(dvc_root()), md5)
                if path.startswith(f"{out}/"):
                    name = path.removeprefix(f"{out}/")
                    return read_object_inside(cache_folder(dvc_root()), md5, name)
        return None

    def json(self, path: str | Path) -> Any:
        """A JSON file's content. Returns None if it is not there."""
        data = self.read(path)
        return None if data is None else json.loads(data)

    def lock(self) -> Json:
        """dvc.lock; without stages if there is none. Raises CannotCheck if it cannot be read."""
        return copy.deepcopy(parse_lock(self.read(LOCK) or b""))

    def params(self) -> Json:
        """Each stage's section as dvc.lock recorded it."""
        return recorded_params(self.lock()["stages"])

    def profile(self) -> str:
        """The profile that dvc.lock's parameters came from; the last stage's, if they differ."""
        return recorded_profile(self.lock()["stages"])

    def record(self, stage: str) -> Json | None:
        """The one element of a stage's run.json. Returns None if there is none."""
        return self.records().get(stage)

    def records(self) -> dict[str, Json]:
        """The record of each stage that has one that can be read, in running order."""
        records = {}
        for stage, data in self.record_bytes().items():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                records[stage] = dict(json.loads(data)[0])
        return records

    def record_bytes(self) -> dict[str, bytes]:
        """{stage: run.json's bytes} of the stages that have one, in running order."""
        found = self.read_all(record_path(stage) for stage in STAGES)
        return {stage: found[record_path(stage)] for stage in STAGES if record_path(stage) in found}

    def holds(self, stage: str, run: str) -> bool:
        """Whether dvc.lock and run.json are here as that run of the stage left them."""
        record, entry = self.record(stage), self.lock()["stages"].get(stage)
        return bool(record and entry and record["run"] == run and record["key"] == stage_key(entry))

    def pipeline_key(self) -> str | None:
        """The pipeline's key. Returns None if this is not one whole pipeline (see `misfits`)."""
        lock = self.lock()
        whole = not misfits(lock, self.record_bytes(), self.records())
        return pipeline_key(lock) if whole else None


def load(snapshots: Iterable[Snapshot], paths: Iterable[str]) -> list[Snapshot]:
    """The snapshots of one repository; a revision's have these files read, by one git process."""
    many = list(snapshots)
    commits = [one.revision for one in many if one.revision]
    read = read_files(many[0].root, commits, list(paths)) if many else {}
    return [replace(one, loaded=read.get(one.revision or "", {})) for one in many]


@functools.lru_cache(maxsize=256)
def parse_lock(data: bytes) -> Json:
    """dvc.lock's content, in the shapes that are read here. Raises CannotCheck if it has others.

    Kept, since parsing takes a tenth of a second, and a command asks for the same one twenty times.
    """
    try:
        lock: Json = parse_yaml(data, str(LOCK), BY_DVC) or {"stages": {}}
        # Each of these raises where it meets another shape, `join` for what is no string.
        recorded_params(lock["stages"])
        for entry in lock["stages"].values():
            stage_key(entry)
            for one in [*entry.get("outs", []), *entry.get("deps", [])]:
                "".join([one["path"], one["md5"]])
    except (Refused, ValueError, KeyError, TypeError, AttributeError) as error:
        found = error.found if isinstance(error, Refused) else " ".join(str(error).split())
        raise CannotCheck(
            str(LOCK),
            expected="DVC's lock file",
            found=f"a corrupted one ({found[:120]})",
            remedy="Restore it with git.",
        ) from error
    return lock
