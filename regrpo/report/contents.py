"""What the report page shows, as plain data: what a pipeline's files say if they can be read.

A pipeline need not be whole: what is missing, out of date or unreadable is said, and the rest is
shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from regrpo.core.dvc import cache_folder, dvc_root, read_object_inside
from regrpo.core.errors import CannotCheck
from regrpo.core.git import git
from regrpo.core.pipeline import out_md5s, record_path
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import METRICS, SAMPLES, Evaluation
from regrpo.inputs.formats import SPLITS
from regrpo.records import graph
from regrpo.records.find import Place
from regrpo.records.record import Record
from regrpo.report.reading import Json, Reader
from regrpo.report.stage_states import Stage, read_stages
from regrpo.tracking import address

SHOWN = 4
"""Questions of each kind, and offending rows of each failed check, that the page shows."""
BINARY_KINDS = ("newly right", "newly wrong", "right in both", "wrong in both")
CONTINUOUS_KINDS = ("higher", "lower", "the same")
"""What GRPO changed of a question's result, in the order in which the page shows it."""


class _Shape(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Finding(_Shape):
    """What one of the doctor's rules found."""

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
    """One check of the gate on one split."""

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
        known = [(name, self.rows[name]) for name in SPLITS if name in self.rows]
        return known + [(name, n) for name, n in self.rows.items() if name not in SPLITS]


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


@dataclass(frozen=True)
class Failure:
    """A check that failed, with its first offending rows: {check, split, id, value}."""

    outcome: Outcome
    rows: list[Json]


@dataclass(frozen=True)
class Question:
    """A held-out question; `answers` are {completion, value} by model."""

    id: str
    question: str
    answer: str | None
    answers: dict[str, Json] = field(default_factory=dict)


@dataclass
class Report:
    """Everything that the page shows.

    None stands for a file that is missing or unreadable (then `problems` says so).
    """

    place: Place
    root: Path
    stages: list[Stage]
    execution: str | None
    """When the newest execution here started (UTC). None if no stage of this was executed here."""
    pipeline_key: str | None
    name: str
    """The model's."""
    profile: str
    problems: list[str]
    verdict: Verdict | None
    failures: list[Failure]
    dataset: Dataset | None
    base: Base | None
    history: list[dict[str, float]]
    health: Health | None
    evaluation: Evaluation | None
    questions: dict[str, list[Question]]
    """Held-out questions by what GRPO changed."""
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
        return all(stage.is_done for stage in self.stages) and not self.problems

    @property
    def last(self) -> Record | None:
        """The record of the stage that ended last."""
        records = [stage.record for stage in self.stages if stage.record]
        return max(records, key=lambda record: record.ended, default=None)


def read(place: Place, root: Path) -> Report:
    """Read a pipeline's files. Raises CannotCheck where nothing of it can be read at all."""
    reader = Reader(place, root)
    stages, execution = read_stages(reader)
    verdict = reader.json("reports/validate/verdict.json", Verdict.model_validate)
    evaluation = reader.json(METRICS, Evaluation.model_validate)
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
    started = mlflow_row = None
    if execution:
        started = datetime.fromtimestamp(execution.started, UTC).isoformat(timespec="seconds")
        mlflow_row = execution.journal.tracker_notes.get("parent_run_id")
    return Report(
        place=place,
        root=root,
        stages=stages,
        execution=started,
        pipeline_key=_pipeline_key(reader),
        name=_model_name(reader),
        profile=_profile(reader),
        problems=reader.problems,
        verdict=verdict,
        failures=_failures(reader, verdict),
        dataset=_dataset(reader),
        base=reader.json("reports/base_model/source.json", Base.model_validate),
        history=_history(reader),
        health=health,
        evaluation=evaluation,
        questions=_questions(reader, evaluation),
        graph=graph.of_places([place]),
        committed=not reader.is_workspace or _is_committed(root),
        mlflow_uri=address.shown_uri().replace(f"sqlite:///{dvc_root()}/", ""),
        mlflow_row=mlflow_row,
    )


def _is_committed(root: Path) -> bool:
    """Whether HEAD has the workspace's dvc.lock and records."""
    paths = ["dvc.lock", *map(record_path, STAGES)]
    known = git("-C", str(root), "ls-tree", "--name-only", "HEAD", "--", "dvc.lock")
    # Without the optional locks a page can be made while another git command runs.
    changed = git("-C", str(root), "--no-optional-locks", "status", "--porcelain", "--", *paths)
    return bool(known) and changed == ""


def _pipeline_key(reader: Reader) -> str | None:
    if not reader.lock["stages"]:
        return None
    return reader.guarded("dvc.lock", reader.snapshot.pipeline_key)


def _profile(reader: Reader) -> str:
    """The path of the profile that dvc.lock's parameters came from."""
    return reader.snapshot.profile() if reader.lock["stages"] else ""


def _model_name(reader: Reader) -> str:
    """What the profile calls the model: as dvc.lock recorded it, else as it says now."""
    section = None
    if reader.lock["stages"]:
        section = reader.snapshot.params().get("model_card")
    profile = _profile(reader)
    if section is None and profile:
        content = reader.guarded(profile, lambda: reader.yaml(profile)) or {}
        section = content.get("model_card")
    if isinstance(section, dict) and section.get("model_name"):
        return str(section["model_name"])
    return "regrpo"


def _dataset(reader: Reader) -> Dataset | None:
    """data/prepared/dataset.json, from the workspace or, for a revision, from DVC's cache."""
    path = "data/prepared/dataset.json"
    if reader.is_workspace:
        return reader.json(path, Dataset.model_validate)

    def cached() -> Dataset | None:
        for entry in reader.lock["stages"].values():
            md5 = out_md5s(entry).get("data/prepared")
            if md5:
                data = read_object_inside(cache_folder(reader.root), md5, "dataset.json")
                return Dataset.model_validate_json(data) if data else None
        return None

    return reader.guarded(path, cached)


def _failures(reader: Reader, verdict: Verdict | None) -> list[Failure]:
    failed = [one for one in verdict.checks if not one.passed] if verdict else []
    if not failed:
        return []
    columns = ("check", "split", "id", "value")
    rows = reader.table("reports/validate/failures.parquet", columns)
    failures = []
    for outcome in failed:
        place = (outcome.check, outcome.split)
        own = [row for row in rows if (row["check"], row["split"]) == place]
        failures.append(Failure(outcome, own[:SHOWN]))
    return failures


def _history(reader: Reader) -> list[dict[str, float]]:
    """GRPO's logged steps: the metrics that each row has."""
    path = "reports/grpo/history.csv"
    data = reader.snapshot.read(path)
    if data is None:
        return []
    return reader.guarded(path, lambda: _parse_history(data.decode())) or []


def _parse_history(text: str) -> list[dict[str, float]]:
    """Rows of numbers. Raises ValueError for other content."""
    parsed = []
    for row in csv.DictReader(io.StringIO(text)):
        # DictReader's mark of a row that is longer, or shorter, than the header.
        if None in row or None in row.values():
            raise ValueError("a row of other columns than the header's")
        values = {name: float(value) for name, value in row.items() if value}
        if "step" not in values:
            raise ValueError("a row without step")
        parsed.append(values)
    return parsed


# --- questions ------------------------------------------------------------------------------------


def _questions(reader: Reader, evaluation: Evaluation | None) -> dict[str, list[Question]]:
    """The questions of the headline (else of the first task) by what GRPO changed.

    They are ordered by the hash of their ids, so that nobody picks the pretty ones.
    """
    if evaluation is None or not evaluation.tasks:
        return {}
    name = evaluation.headline
    if name not in evaluation.tasks:
        name = next(iter(evaluation.shown_tasks))
    columns = ("model", "id", "prompt", "completion", "answer", "value")
    rows = reader.table(SAMPLES, columns, task=str(name))
    binary = evaluation.tasks[str(name)].kind == "binary"
    kinds = BINARY_KINDS if binary else CONTINUOUS_KINDS
    found: dict[str, list[Question]] = {kind: [] for kind in kinds}
    for question in _by_hash(rows):
        before = question.answers.get("sft", {}).get("value")
        after = question.answers.get("grpo", {}).get("value")
        if before is not None and after is not None:
            found[_kind(before, after, binary)].append(question)
    return {kind: questions for kind, questions in found.items() if questions}


def _by_hash(rows: Iterable[Json]) -> list[Question]:
    questions: dict[str, Question] = {}
    for row in rows:
        name = str(row["id"])
        if name not in questions:
            questions[name] = Question(name, _last_message(row["prompt"]), row["answer"])
        answer = {"completion": str(row["completion"]), "value": row["value"]}
        questions[name].answers[row["model"]] = answer
    return sorted(questions.values(), key=lambda one: hashlib.sha256(one.id.encode()).digest())


def _kind(before: float, after: float, binary: bool) -> str:
    """What happened to a question from SFT to GRPO."""
    if before == after:
        if not binary:
            return "the same"
        return "right in both" if after else "wrong in both"
    if binary:
        return "newly right" if after else "newly wrong"
    return "higher" if after > before else "lower"


def _last_message(prompt: Any) -> str:
    """A prompt as text; of chat messages the last one's, which asks."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if prompt else ""
