"""What state each stage of a pipeline is in, and why.

A stage's record says which run made its files; dvc.lock, dvc.yaml and the workspace say whether
they are still what they would be now; the journals say what was executed here, and how it ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from regrpo.core.dvc import declared_outputs, dvc_md5, files_in, path_of
from regrpo.core.pipeline import chain_misfits, maker_of, record_path, stage_key
from regrpo.core.profiles import STAGES
from regrpo.records.journal import JournalReader, journal_folder, journal_of
from regrpo.records.record import Record, parse_record
from regrpo.report.reading import Json, Reader

State = Literal[
    "ran", "cached", "stale", "running", "failed", "killed", "refused", "unreadable", "missing"
]
ENDED_BADLY: dict[str, State] = {"FAILED": "failed", "KILLED": "killed"}
"""By a journal's status."""
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


def read_stages(reader: Reader) -> tuple[list[Stage], Execution | None]:
    """The stages in running order, and the newest execution. None if none was executed here."""
    found = _records(reader)
    records = {name: record for name, record in found.items() if record is not None}
    journals = {name: _journal(reader, name, records.get(name)) for name in STAGES}
    execution = _newest_execution(journals.values())
    misread = chain_misfits({name: record.model_dump() for name, record in records.items()})
    stages: dict[str, Stage] = {}
    for name in STAGES:
        stage = Stage(name, str(reader.declared.get(name, {}).get("desc", "")))
        if name not in records:
            stage.state = _state_without_record(journals[name], name in found)
            stages[name] = stage
            continue
        record = records[name]
        stage.record = record
        seconds = (record.model_extra or {}).get("seconds")
        if isinstance(seconds, int | float):
            stage.seconds = seconds
        stage.files = {out.path: (reader.root / out.path).exists() for out in record.outputs}
        # Reasons stand in the order in which a reader would look: what it read, what changed since,
        # what comes before it.
        for one in misread:
            if one.stage == name:
                stage.reasons.append(f"it read other bytes of {one.path} than {one.maker} has made")
        stage.reasons += _changes(reader, name, record)
        before = _upstream(reader.declared, name)
        late = [other for other, one in stages.items() if other in before and not one.is_done]
        if late:
            stage.reasons.append(f"follows {', '.join(late)}, which must run first")
        if stage.reasons:
            stage.state = "stale"
        elif execution and _same_execution(journals[name], execution.journal):
            stage.state = "ran"
        else:
            stage.state = "cached"
        stages[name] = stage
    return list(stages.values()), execution


def _records(reader: Reader) -> dict[str, Record | None]:
    """Each stage's record. None for one that cannot be read."""
    found = {}
    for name, data in reader.snapshot.record_bytes().items():
        both = reader.guarded(name, partial(parse_record, data, record_path(name)))
        found[name] = both[0] if both else None
    return found


def _state_without_record(attempt: JournalReader | None, has_file: bool) -> State:
    """What became of a stage that left no record that can be read."""
    if attempt is not None:
        closed = attempt.closed
        if closed is None:
            return "running"
        if closed["status"] in ENDED_BADLY:
            return ENDED_BADLY[closed["status"]]
    return "unreadable" if has_file else "missing"


# --- what was executed here -----------------------------------------------------------------------


def _journal(reader: Reader, stage: str, record: Record | None) -> JournalReader | None:
    """The journal of the record's run; of a stage without record its newest of this workspace."""
    if record is not None:
        return journal_of(stage, record.run)
    if not reader.snapshot.is_workspace:
        return None
    for folder in sorted(journal_folder().glob(f"*-{stage}"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            journal = JournalReader(folder)
            if Path(journal.facts["workspace"]) == reader.root.resolve():
                return journal
    return None


def _newest_execution(journals: Iterable[JournalReader | None]) -> Execution | None:
    known = [journal for journal in journals if journal is not None]
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


def _changes(reader: Reader, stage: str, record: Record) -> list[str]:
    """Why a record is not, or no longer, what dvc.lock and the workspace say."""
    entry = reader.lock["stages"].get(stage)
    if entry is None:
        return ["dvc.lock does not hold it"]
    if stage_key(entry) != record.key:
        return ["dvc.lock holds another run of it"]
    if not reader.snapshot.is_workspace:
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
    for path in sorted(wanted | recorded.keys()):
        known = recorded.get(path) if path in wanted else None
        is_same = known is not None and _is_same(reader.root, path, known)
        if not is_same and maker_of(path, makers) is None:
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


def _upstream(declared: Mapping[str, Json], stage: str) -> set[str | None]:
    """The stages that make what a stage declares as its dependencies."""
    makers = _makers(declared)
    return {maker_of(path_of(dep), makers) for dep in declared.get(stage, {}).get("deps") or []}


def _makers(declared: Mapping[str, Json]) -> dict[str, list[str]]:
    """The declared outputs of each stage."""
    return {name: [*map(path_of, declared_outputs(one))] for name, one in declared.items()}
