"""What state each stage of a pipeline is in, and why.

A stage's record says which run made its files; dvc.lock, dvc.yaml and the workspace say whether
they are still what they would be now; the journals say what was executed here, and how it ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from regrpo.core.dvc import declared_outputs, dvc_md5, files_in, path_of
from regrpo.core.pipeline import chain_misfits, record_path, stage_key
from regrpo.core.profiles import STAGES
from regrpo.records.journal import JournalReader, journal_folder
from regrpo.records.record import Record, parse_record
from regrpo.report.reading import Json, Reader

State = Literal[
    "ran", "cached", "stale", "running", "failed", "killed", "refused", "unreadable", "missing"
]
HASHED = 32 * 2**20
"""Bytes up to which a dependency is hashed to see whether it changed.

Of larger ones the size is compared.
"""


@dataclass
class Stage:
    """A stage's state with the reasons, the run that made its files, and where they are.

    `files`: whether each output is in the workspace, by path.
    """

    name: str
    description: str
    state: State = "missing"
    reasons: list[str] = field(default_factory=list)
    record: Record | None = None
    seconds: float | None = None
    files: dict[str, bool] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return self.state in ("ran", "cached")


@dataclass(frozen=True)
class Execution:
    """The pipeline's newest execution here: its last journal, and its start (UTC seconds)."""

    journal: JournalReader
    started: float


@dataclass(frozen=True)
class _Journals:
    """A stage's journals that are here: of the record's run, and its newest of this workspace."""

    of_record: JournalReader | None = None
    newest: JournalReader | None = None


def read_stages(reader: Reader) -> tuple[list[Stage], Execution | None]:
    """The stages in running order, and the newest execution. None if none was executed here."""
    parsed = _records(reader)
    records = {name: both[0] for name, both in parsed.items() if both}
    journals = {name: _journals(reader, name, records.get(name)) for name in STAGES}
    execution = _newest_execution(journals, records)
    misread = _misread({name: both[1] for name, both in parsed.items() if both})
    stages: dict[str, Stage] = {}
    for name in STAGES:
        stage = Stage(name, str(reader.declared.get(name, {}).get("desc", "")))
        stages[name] = stage
        if name not in records:
            stage.state = _state_without_record(journals[name].newest, name in parsed)
            continue
        record = records[name]
        stage.record = record
        seconds = (record.model_extra or {}).get("seconds")
        if isinstance(seconds, int | float):
            stage.seconds = seconds
        stage.files = {out.path: (reader.root / out.path).exists() for out in record.outputs}
        # Reasons stand in the order in which a reader would look: what it read, what changed since,
        # what comes before it.
        stage.reasons = misread.get(name, []) + _changes(reader, name, record)
        before = _upstream(reader.declared, name)
        late = [other for other, one in stages.items() if other in before and not one.is_done]
        if late:
            stage.reasons.append(f"follows {', '.join(late)}, which must run first")
        if stage.reasons:
            stage.state = "stale"
        elif execution and _same_execution(journals[name].of_record, execution.journal):
            stage.state = "ran"
        else:
            stage.state = "cached"
    return list(stages.values()), execution


def _records(reader: Reader) -> dict[str, tuple[Record, Json] | None]:
    """Each stage's record, parsed and as written. None for one that cannot be read."""
    found = {}
    for name, data in reader.snapshot.record_bytes().items():
        path = record_path(name)
        found[name] = reader.guarded(path, partial(parse_record, data, path))
    return found


def _state_without_record(attempt: JournalReader | None, has_file: bool) -> State:
    """What became of a stage that left no record that can be read."""
    if attempt is not None:
        closed = attempt.closed
        if closed is None:
            return "running"
        if closed["status"] == "FAILED":
            return "failed"
        if closed["status"] == "KILLED":
            return "killed"
    return "unreadable" if has_file else "missing"


# --- what was executed here -----------------------------------------------------------------------


def _journals(reader: Reader, stage: str, record: Record | None) -> _Journals:
    of_record = newest = None
    for journal in _newest_first(stage):
        here = Path(journal.facts["workspace"]) == reader.root.resolve()
        if newest is None and reader.is_workspace and here:
            newest = journal
        if record and journal.facts["run"] == record.run:
            of_record = journal
        # There may be thousands of journals: read no more of them than are needed.
        if (of_record or not record) and (newest or not reader.is_workspace):
            break
    return _Journals(of_record, newest)


def _newest_first(stage: str) -> Iterator[JournalReader]:
    """A stage's journals that can be read."""
    for path in sorted(journal_folder().glob(f"*-{stage}"), reverse=True):
        try:
            journal = JournalReader(path)
        except (OSError, ValueError):
            continue
        if {"workspace", "run", "started"} <= set(journal.facts):
            yield journal


def _newest_execution(
    journals: Mapping[str, _Journals], records: Mapping[str, Record]
) -> Execution | None:
    """That of the newest journal of any record, or of any stage that left none."""
    known: list[JournalReader] = []
    for name, found in journals.items():
        if found.of_record:
            known.append(found.of_record)
        if found.newest and name not in records:
            known.append(found.newest)
    if not known:
        return None
    newest = max(known, key=lambda journal: journal.folder.name)
    started = [one.facts["started"] for one in known if _same_execution(one, newest)]
    return Execution(newest, min(started))


def _same_execution(one: JournalReader | None, other: JournalReader) -> bool:
    if one is None:
        return False
    if one.folder == other.folder:
        return True
    return one.execution is not None and one.execution == other.execution


# --- what no longer fits --------------------------------------------------------------------------


def _misread(written: Mapping[str, Json]) -> dict[str, list[str]]:
    """By stage, the inputs that are not what the stage that makes them recorded."""
    reasons: dict[str, list[str]] = {}
    for misfit in chain_misfits(written):
        reason = f"it read other bytes of {misfit.path} than {misfit.maker} has made"
        reasons.setdefault(misfit.stage, []).append(reason)
    return reasons


def _changes(reader: Reader, stage: str, record: Record) -> list[str]:
    """Why a record is not, or no longer, what dvc.lock and the workspace say."""
    entry = reader.lock["stages"].get(stage)
    if entry is None:
        return ["dvc.lock does not hold it"]
    if stage_key(entry) != record.key:
        return ["dvc.lock holds another run of it"]
    if not reader.is_workspace:
        return []
    reasons = []
    gone = [out.path for out in record.outputs if not (reader.root / out.path).exists()]
    if gone:
        reasons.append(f"{', '.join(gone)} not here: `dvc checkout`")
    return reasons + (reader.guarded("dvc.yaml", lambda: _changed(reader, stage, entry)) or [])


def _changed(reader: Reader, stage: str, entry: Json) -> list[str]:
    """What of the workspace is not what dvc.lock recorded of the stage."""
    declared = reader.declared.get(stage, {})
    reasons = []
    if declared.get("cmd") != entry["cmd"]:
        reasons.append("its command has changed since")
    profile = str(reader.yaml("params.yaml").get("profile"))
    if {profile: {stage: reader.yaml(profile).get(stage)}} != entry.get("params", {}):
        reasons.append(f"its parameters have changed since ({profile}: {stage})")
    changed = _changed_files(reader, declared, entry)
    if len(changed) > 4:
        changed = [*changed[:3], f"{len(changed) - 3} more"]
    if changed:
        reasons.append(f"changed since: {', '.join(changed)}")
    return reasons


def _changed_files(reader: Reader, declared: Json, entry: Json) -> list[str]:
    """The dependencies, of those that no stage makes, that are not what dvc.lock recorded."""
    recorded = {dep["path"]: dep for dep in entry.get("deps", [])}
    wanted = {path_of(dep) for dep in declared.get("deps") or []}
    makers = _makers(reader.declared)
    changed = []
    for path in sorted(wanted | set(recorded)):
        if _maker(path, makers):
            continue
        same = path in wanted and path in recorded and _is_same(reader.root, path, recorded[path])
        if not same:
            changed.append(path)
    return changed


def _is_same(root: Path, path: str, recorded: Json) -> bool:
    """Whether a dependency has the recorded size and, up to HASHED bytes, the recorded MD5."""
    if not (root / path).exists():
        return False
    with contextlib.chdir(root):  # .dvcignore is read there
        size = sum(file.stat().st_size for file in files_in(Path(path)))
        if size != recorded.get("size", size):
            return False
        return size > HASHED or dvc_md5(Path(path)) == recorded["md5"]


def _upstream(declared: Mapping[str, Json], stage: str) -> set[str]:
    """The stages that make what a stage declares as its dependencies."""
    makers = _makers(declared)
    deps = declared.get(stage, {}).get("deps") or []
    found = {_maker(path_of(dep), makers) for dep in deps}
    return {maker for maker in found if maker and maker != stage}


def _makers(declared: Mapping[str, Json]) -> dict[Path, str]:
    """The stage that makes each declared output."""
    makers = {}
    for name, entry in declared.items():
        for out in declared_outputs(entry):
            makers[Path(path_of(out))] = name
    return makers


def _maker(path: str, makers: Mapping[Path, str]) -> str | None:
    """The stage that makes a path or a folder around it."""
    for around in (Path(path), *Path(path).parents):
        if around in makers:
            return makers[around]
    return None
