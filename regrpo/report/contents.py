"""What the report page shows, as plain data.

Each stage's state, and what its files say as far as they can be read.

A pipeline need not be whole: what is missing, out of date or unreadable is said, and the rest is
shown.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from regrpo.core.dvc import (
    cache_folder,
    declared_outputs,
    dvc_md5,
    dvc_root,
    files_in,
    path_of,
    read_object_inside,
)
from regrpo.core.errors import CannotCheck, RegrpoError
from regrpo.core.git import git
from regrpo.core.pipeline import chain_misfits, out_md5s, stage_key
from regrpo.core.profiles import STAGES, parse_yaml
from regrpo.evaluate.results import Evaluation
from regrpo.inputs.formats import SPLITS
from regrpo.records import graph
from regrpo.records import record as record_module
from regrpo.records.find import Place
from regrpo.records.journal import JournalReader, journal_folder
from regrpo.records.record import Record
from regrpo.report.card import FRAMEWORKS
from regrpo.tracking import address

T = TypeVar("T")
Json = dict[str, Any]
State = Literal[
    "ran", "cached", "stale", "running", "failed", "killed", "refused", "unreadable", "missing"
]
SHOWN = 4
"""Questions of each kind, and offending rows of each failed check, that the page shows."""
HASHED = 32 * 2**20
"""Bytes up to which a dependency is hashed to tell whether it changed.

Of larger ones the size is compared.
"""


class _Shape(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Finding(_Shape):
    rule: str
    what: str
    verdict: Literal["fired", "clear", "not_applicable"]
    steps: list[int]
    worst: float | None
    change: str


class Health(_Shape):
    """reports/grpo/health.json."""

    verdict: str
    fired: int
    rules: list[Finding]


class Outcome(_Shape):
    check: str
    split: str
    failed: int
    passed: bool
    rows: int


class Verdict(_Shape):
    """reports/validate/verdict.json."""

    passed: bool
    rows: dict[str, int]
    checks: list[Outcome]
    not_applicable: list[str] = []

    @property
    def splits(self) -> list[tuple[str, int]]:
        """Each split's rows, in the order of their use; verdict.json sorts by name."""
        return sorted(
            self.rows.items(),
            key=lambda one: SPLITS.index(one[0]) if one[0] in SPLITS else len(SPLITS),
        )


class Dataset(_Shape):
    """data/prepared/dataset.json."""

    source: str
    license: str | None = None
    revision: str | None = None
    verifier: str = "none"


class Base(_Shape):
    """reports/base_model/source.json."""

    source: str
    architecture: str = "unknown"
    parameters: int | None = None


@dataclass
class Stage:
    """One stage.

    Its state with the reasons, the run that made its files, and the files (path → whether it is
    here).
    """

    name: str
    description: str
    state: State
    reasons: list[str] = field(default_factory=list)
    record: Record | None = None
    seconds: float | None = None
    files: dict[str, bool] = field(default_factory=dict)


@dataclass
class Report:
    """Everything that the page shows.

    None where a file is missing or unreadable (then `problems` says so).
    """

    place: Place
    root: Path
    stages: list[Stage]
    execution: str | None
    """When the newest execution here started (UTC), or None where no stage of this pipeline was executed here."""
    pipeline_key: str | None
    name: str
    """The model's."""
    profile: str
    problems: list[str]
    verdict: Verdict | None
    failures: list[Json]
    dataset: Dataset | None
    base: Base | None
    history: list[dict[str, float]]
    health: Health | None
    evaluation: Evaluation | None
    questions: dict[str, list[Json]]
    """Held-out questions by what GRPO changed, a few of each kind."""
    counts: dict[str, int]
    """How many questions there are of each kind."""
    graph: graph.Graph
    committed: bool
    """Whether git has these results.

    A revision, or a workspace whose dvc.lock and records are those of HEAD.
    """
    mlflow_uri: str
    mlflow_row: str | None

    @property
    def is_workspace(self) -> bool:
        return self.place.snapshot.revision is None

    @property
    def complete(self) -> bool:
        return all(stage.state in ("ran", "cached") for stage in self.stages) and not self.problems

    @property
    def last(self) -> Record | None:
        """The record of the stage that ended last."""
        return max(
            (one.record for one in self.stages if one.record),
            key=lambda one: one.ended,
            default=None,
        )


def read(place: Place, root: Path) -> Report:
    """Read a pipeline's files. Raises CannotCheck where nothing of it can be read at all."""
    reader = _Reader(place, root)
    stages, newest, began = reader.stages()
    verdict = reader.json("reports/validate/verdict.json", Verdict.model_validate)
    evaluation = reader.json("reports/evaluate/metrics.json", Evaluation.model_validate)
    health = reader.json("reports/grpo/health.json", Health.model_validate)
    if not any(stage.record for stage in stages) and not (verdict or evaluation or health):
        raise CannotCheck(
            place.name,
            expected="results of at least one stage",
            found="; ".join(reader.problems[:3]) or "none",
            remedy="Run `make repro` (or `dvc repro`) first.",
        )
    for stage in stages:
        if stage.name == "validate" and stage.record is None and verdict and not verdict.passed:
            stage.state = "refused"
    questions, counts = reader.questions(evaluation)
    journal = newest.tracker_notes if newest else {}
    return Report(
        place=place,
        root=root,
        stages=stages,
        execution=None if began is None else _utc(began),
        pipeline_key=reader.pipeline_key(),
        name=reader.model_name(),
        profile=reader.profile(),
        problems=reader.problems,
        verdict=verdict,
        failures=reader.failures(verdict),
        dataset=reader.dataset(),
        base=reader.json("reports/base_model/source.json", Base.model_validate),
        history=reader.history(),
        health=health,
        evaluation=evaluation,
        questions=questions,
        counts=counts,
        graph=graph.of_places([place]),
        committed=place.snapshot.revision is not None or _is_committed(root),
        mlflow_uri=address.shown_uri().replace(f"sqlite:///{dvc_root()}/", ""),
        mlflow_row=journal.get("parent_run_id"),
    )


def _mapping(content: Any) -> Json:
    if not isinstance(content, dict):
        raise TypeError(f"expected a mapping, found {type(content).__name__}")
    return content


def _utc(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _is_committed(root: Path) -> bool:
    """Whether HEAD has the workspace's dvc.lock and records."""
    paths = ["dvc.lock", *(f"reports/{stage}/run.json" for stage in STAGES)]
    known = git("-C", str(root), "ls-tree", "--name-only", "HEAD", "--", "dvc.lock")
    changed = git("-C", str(root), "--no-optional-locks", "status", "--porcelain", "--", *paths)
    return bool(known) and changed == ""


class _Reader:
    """Reads one place's files; what cannot be read becomes a problem in one line."""

    def __init__(self, place: Place, root: Path) -> None:
        self.place, self.snapshot, self.root = place, place.snapshot, root
        self.problems: list[str] = []
        self.lock: Json = self.guarded("dvc.lock", self.snapshot.lock) or {"stages": {}}
        declared = self.guarded("dvc.yaml", lambda: self._yaml("dvc.yaml")) or {}
        self.declared: dict[str, Json] = {
            name: entry
            for name, entry in (declared.get("stages") or {}).items()
            if isinstance(entry, dict)
        }

    def guarded(self, where: str, read: Callable[[], T]) -> T | None:
        """A reading's result.

        None, and a problem noted, where the content is not what it should be.
        """
        try:
            return read()
        except RegrpoError as error:
            self.problems.append(f"{error.where}: expected {error.expected}; found {error.found}")
        except ValidationError as error:
            first = error.errors()[0]
            self.problems.append(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OSError,
        ) as error:
            self.problems.append(
                f"{where}: {' '.join(str(error).split())[:160] or type(error).__name__}"
            )
        return None

    def _yaml(self, path: str) -> Json:
        return _mapping(parse_yaml(self.snapshot.read(path) or b"{}", path))

    def json(self, path: str, parse: Callable[[Any], T]) -> T | None:
        """A JSON file's content, parsed; None where it is not there or is not of that form."""
        data = self.snapshot.read(path)
        return None if data is None else self.guarded(path, lambda: parse(json.loads(data)))

    def pipeline_key(self) -> str | None:
        """The key of a whole pipeline; None where it is none."""
        return self.guarded("dvc.lock", self.snapshot.pipeline_key) if self.lock["stages"] else None

    def profile(self) -> str:
        """The path of the profile that dvc.lock's parameters came from."""
        return self.snapshot.profile() if self.lock["stages"] else ""

    def model_name(self) -> str:
        """What the profile calls the model."""
        section = self.snapshot.params().get("model_card") if self.lock["stages"] else None
        if section is None and (profile := self.profile()):
            section = (self.guarded(profile, partial(self._yaml, profile)) or {}).get("model_card")
        return (
            str(section["model_name"])
            if isinstance(section, dict) and section.get("model_name")
            else "regrpo"
        )

    # --- stages -----------------------------------------------------------------------------------

    def stages(self) -> tuple[list[Stage], JournalReader | None, float | None]:
        """The stages in running order.

        The last journal of the newest execution here, and when that one began.
        """
        records = {
            name: self.guarded(
                f"reports/{name}/run.json",
                partial(record_module.parse_record, data, f"reports/{name}/run.json"),
            )
            for name, data in self.snapshot.record_bytes().items()
        }
        journals = {
            name: self._journals(name, one[0] if (one := records.get(name)) else None)
            for name in STAGES
        }
        told = [own for own, _ in journals.values() if own]
        told += [
            attempt for name, (_, attempt) in journals.items() if attempt and not records.get(name)
        ]
        newest = max(told, key=lambda one: one.folder.name, default=None)
        written = {name: one[1] for name, one in records.items() if one}
        chain = chain_misfits(written)
        stages: list[Stage] = []
        for name in STAGES:
            own, attempt = journals[name]
            parsed = records.get(name)
            stage = Stage(name, str(self.declared.get(name, {}).get("desc", "")), "missing")
            upstream = [one.name for one in stages if one.name in self._upstream(name)]
            if parsed:
                stage.record = parsed[0]
                seconds = parsed[1].get("seconds")
                stage.seconds = seconds if isinstance(seconds, int | float) else None
                stage.files = {
                    one.path: (self.root / one.path).exists() for one in stage.record.outputs
                }
                stage.reasons = [
                    *[
                        f"it read other bytes of {one.path} than {one.maker} has made"
                        for one in chain
                        if one.stage == name
                    ],
                    *self._changes(name, stage.record),
                ]
                here = own is not None and newest is not None and _same_execution(own, newest)
                stage.state = "stale" if stage.reasons else "ran" if here else "cached"
            elif attempt and attempt.running:
                stage.state = "running"
            elif (
                attempt and (closed := attempt.closed) and closed["status"] in ("FAILED", "KILLED")
            ):
                stage.state = "failed" if closed["status"] == "FAILED" else "killed"
            elif name in records:
                stage.state = "unreadable"
            late = [
                one.name
                for one in stages
                if one.name in upstream and one.state not in ("ran", "cached")
            ]
            if stage.record and late:
                stage.reasons.append(f"follows {', '.join(late)}, which must run first")
                stage.state = "stale"
            stages.append(stage)
        began = [one.facts["started"] for one in told if newest and _same_execution(one, newest)]
        return stages, newest, min(began, default=None)

    def _journals(
        self, stage: str, record: Record | None
    ) -> tuple[JournalReader | None, JournalReader | None]:
        """(the journal of the record's run, the newest journal of the stage in this workspace), where they are here."""
        own = attempt = None
        is_workspace = self.snapshot.revision is None
        folder = journal_folder()
        for path in sorted(folder.glob(f"*-{stage}"), reverse=True) if folder.is_dir() else []:
            with contextlib.suppress(OSError, ValueError, KeyError):
                told = JournalReader(path)
                if (
                    attempt is None
                    and is_workspace
                    and Path(told.facts["workspace"]) == self.root.resolve()
                ):
                    attempt = told
                if record and told.facts["run"] == record.run:
                    own = told
            if (own or not record) and (attempt or not is_workspace):
                break
        return own, attempt

    def _upstream(self, stage: str) -> set[str]:
        """The stages that make what a stage declares as its dependencies."""
        owners = {path_of(out): name for name in self.declared for out in self._outs(name)}
        found = set[str]()
        for dep in self.declared.get(stage, {}).get("deps") or []:
            found |= {
                owner for out, owner in owners.items() if f"{path_of(dep)}/".startswith(f"{out}/")
            }
        return found - {stage}

    def _outs(self, stage: str) -> Iterator[Any]:
        yield from declared_outputs(self.declared.get(stage, {}))

    def _changes(self, stage: str, record: Record) -> list[str]:
        """Why a record is no longer, or not, what dvc.lock and the workspace say."""
        entry = self.lock["stages"].get(stage)
        if entry is None:
            return ["dvc.lock does not hold it"]
        if stage_key(entry) != record.key:
            return ["dvc.lock holds another run of it"]
        if self.snapshot.revision is not None:
            return []
        gone = [
            path for path in (one.path for one in record.outputs) if not (self.root / path).exists()
        ]
        reasons = [f"{', '.join(gone)} not here: `dvc checkout`"] if gone else []
        return reasons + (
            self.guarded("dvc.yaml", lambda: list(self._changed_since(stage, entry))) or []
        )

    def _changed_since(self, stage: str, entry: Json) -> Iterator[str]:
        """What of the workspace is not what dvc.lock recorded.

        Command, parameters, and dependencies of no stage.
        """
        if self.declared.get(stage, {}).get("cmd") != entry["cmd"]:
            yield "its command has changed since"
        profile = str(self._yaml("params.yaml").get("profile"))
        if {profile: {stage: self._yaml(profile).get(stage)}} != entry.get("params", {}):
            yield f"its parameters have changed since ({profile}: {stage})"
        outs = {path_of(out) for name in self.declared for out in self._outs(name)}
        known = {dep["path"]: dep for dep in entry.get("deps", [])}
        declared = {path_of(dep) for dep in self.declared.get(stage, {}).get("deps") or []}
        own = {
            path
            for path in declared | set(known)
            if not any(f"{path}/".startswith(f"{out}/") for out in outs)
        }
        changed = sorted(
            path for path in own if path not in declared or not self._is(path, known.get(path))
        )
        if changed:
            shown = changed if len(changed) <= 4 else [*changed[:3], f"{len(changed) - 3} more"]
            yield f"changed since: {', '.join(shown)}"

    def _is(self, path: str, known: Json | None) -> bool:
        """Whether a dependency is what dvc.lock recorded.

        By size, and by MD5 up to HASHED bytes.
        """
        place = self.root / path
        if known is None or not place.exists():
            return False
        with contextlib.chdir(self.root):  # .dvcignore is read there
            size = sum(file.stat().st_size for file in files_in(Path(path)))
            if size != known.get("size", size):
                return False
            return size > HASHED or dvc_md5(Path(path)) == known["md5"]

    # --- what the stages left ---------------------------------------------------------------------

    def _table(self, path: str, columns: Sequence[str], **equal: str) -> list[Json]:
        """Rows of a Parquet output, some columns only, where these are equal."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = self.snapshot.output(path)
        if data is None:
            return []
        where = [(name, "=", value) for name, value in equal.items()] or None
        rows: list[Json] = pq.read_table(
            pa.BufferReader(data), columns=list(columns), filters=where
        ).to_pylist()
        return rows

    def dataset(self) -> Dataset | None:
        """data/prepared/dataset.json, from the workspace or, for a revision, from DVC's cache."""
        path = "data/prepared/dataset.json"
        if self.snapshot.revision is None:
            return self.json(path, Dataset.model_validate)
        data = self.guarded(path, lambda: self._inner("data/prepared", "dataset.json"))
        return (
            None if data is None else self.guarded(path, lambda: Dataset.model_validate_json(data))
        )

    def _inner(self, folder: str, name: str) -> bytes | None:
        """A file inside a folder output, from DVC's cache; None where it is not there."""
        for entry in self.lock["stages"].values():
            if md5 := out_md5s(entry).get(folder):
                return read_object_inside(cache_folder(self.root), md5, name)
        return None

    def failures(self, verdict: Verdict | None) -> list[Json]:
        """The failed checks, each with its first offending rows."""
        failed = [one for one in verdict.checks if not one.passed] if verdict else []
        path = "reports/validate/failures.parquet"
        rows = (
            self.guarded(path, lambda: self._table(path, ("check", "split", "id", "value")))
            if failed
            else []
        )
        return [
            {
                "outcome": one,
                "rows": [
                    row
                    for row in rows or []
                    if (row["check"], row["split"]) == (one.check, one.split)
                ][:SHOWN],
            }
            for one in failed
        ]

    def history(self) -> list[dict[str, float]]:
        """GRPO's logged steps: the metrics that each row has."""
        path = "reports/grpo/history.csv"
        data = self.snapshot.read(path)
        if data is None:
            return []

        def parse() -> list[dict[str, float]]:
            rows = list(csv.DictReader(io.StringIO(data.decode())))
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row of other columns than the header's")
            parsed = [{name: float(value) for name, value in row.items() if value} for row in rows]
            if any("step" not in row for row in parsed):
                raise ValueError("a row without step")
            return parsed

        return self.guarded(path, parse) or []

    def questions(
        self, evaluation: Evaluation | None
    ) -> tuple[dict[str, list[Json]], dict[str, int]]:
        """Questions of the headline (else of the first task) by what GRPO changed.

        A few of each kind, and how many.

        Which are shown is decided by the hash of their ids, so that nobody picks the pretty ones.
        """
        if evaluation is None or not evaluation.tasks:
            return {}, {}
        name = (
            evaluation.headline
            if evaluation.headline in evaluation.tasks
            else next(iter(evaluation.shown_tasks))
        )
        path = "reports/evaluate/samples.parquet"
        columns = ("model", "id", "prompt", "completion", "answer", "value")
        rows = self.guarded(path, lambda: self._table(path, columns, task=str(name))) or []
        by_id: dict[str, Json] = {}
        for row in rows:
            fresh = {
                "id": str(row["id"]),
                "question": _text(row["prompt"]),
                "answer": row["answer"],
                "answers": {},
            }
            one = by_id.setdefault(str(row["id"]), fresh)
            one["answers"][row["model"]] = {
                "completion": str(row["completion"]),
                "value": row["value"],
            }
        found: dict[str, list[Json]] = {kind: [] for kind in _KINDS}
        for one in sorted(
            by_id.values(), key=lambda item: hashlib.sha256(item["id"].encode()).hexdigest()
        ):
            before, after = (
                one["answers"].get(model, {}).get("value") for model in ("sft", "grpo")
            )
            if before is not None and after is not None:
                found[
                    _kind(before, after, binary=evaluation.tasks[str(name)].kind == "binary")
                ].append(one)
        counts = {kind: len(ones) for kind, ones in found.items() if ones}
        return {kind: ones[:SHOWN] for kind, ones in found.items() if ones}, counts


_KINDS = (
    "newly right",
    "newly wrong",
    "right in both",
    "wrong in both",
    "higher",
    "lower",
    "the same",
)


def _kind(before: float, after: float, binary: bool) -> str:
    """What happened to a question from SFT to GRPO."""
    if not binary:
        return "higher" if after > before else "lower" if after < before else "the same"
    if before == after:
        return "right in both" if after else "wrong in both"
    return "newly right" if after else "newly wrong"


def _text(prompt: Any) -> str:
    """A prompt as text; of chat messages the last one's, which asks."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else ""


def _same_execution(one: JournalReader, other: JournalReader) -> bool:
    return one.folder == other.folder or (
        one.execution is not None and one.execution == other.execution
    )


def frameworks(record: Record) -> dict[str, str]:
    """The versions of what matters most in a record's environment."""
    wanted = FRAMEWORKS | {
        "DVC": "dvc",
        "MLflow": "mlflow",
        "Great Expectations": "great-expectations",
    }
    packages = record.environment.packages
    return {name: packages[package] for name, package in wanted.items() if package in packages}
