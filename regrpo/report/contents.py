"""What the report page shows, as plain data: what a pipeline's files say if they can be read.

A pipeline need not be whole: what is missing, out of date or unreadable is said, and the rest is
shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from regrpo.core.dvc import dvc_root
from regrpo.core.errors import CannotCheck
from regrpo.core.files import parse_history
from regrpo.core.git import git, uncommitted
from regrpo.core.pipeline import record_path
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


class DoctorRule(_Shape):
    """What one of the doctor's rules found."""

    rule: str
    what: str
    verdict: Literal["fired", "clear", "not_judged", "not_applicable"]
    steps: list[int]
    worst: float | None
    change: str
    needs: str | None = None
    """What a run would have had to have for the rule to judge it."""


class Health(_Shape):
    """reports/grpo/health.json."""

    verdict: str
    fired: int
    rules: list[DoctorRule]


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
        order = {name: place for place, name in enumerate(SPLITS)}
        return sorted(self.rows.items(), key=lambda item: order.get(item[0], len(order)))


class Dataset(_Shape):
    """data/prepared/dataset.json."""

    source: str
    license: str | None = None
    revision: str | None = None
    verifier: str = "none"


class Selected(_Shape):
    """reports/select/metrics.json."""

    questions: int
    kept: int
    always_right: float | None
    always_wrong: float | None
    inside: float | None
    """Shares of the questions. None where every question goes on, as none was answered."""
    mean_pass_rate: float | None


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
    selected: Selected | None
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
    verdict = reader.parse("reports/validate/verdict.json", Verdict.model_validate_json)
    evaluation = reader.parse(METRICS, Evaluation.model_validate_json)
    health = reader.parse("reports/grpo/health.json", Health.model_validate_json)
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
    key = profile = None
    if reader.lock["stages"]:
        profile = reader.snapshot.profile()
        key = reader.guarded("dvc.lock", reader.snapshot.pipeline_key)
    return Report(
        place=place,
        root=root,
        stages=stages,
        execution=started,
        pipeline_key=key,
        name=_model_name(reader, profile),
        profile=profile or "",
        problems=reader.problems,
        verdict=verdict,
        failures=_failures(reader, verdict),
        dataset=reader.parse("data/prepared/dataset.json", Dataset.model_validate_json),
        base=reader.parse("reports/base_model/source.json", Base.model_validate_json),
        selected=reader.parse("reports/select/metrics.json", Selected.model_validate_json),
        history=reader.parse("reports/grpo/history.csv", parse_history) or [],
        health=health,
        evaluation=evaluation,
        questions=_questions(reader, evaluation),
        graph=graph.of_places([place]),
        committed=not place.snapshot.is_workspace or _is_committed(root),
        mlflow_uri=_mlflow_place(),
        mlflow_row=mlflow_row,
    )


def _mlflow_place() -> str:
    """Where MLflow is; a database in the repository by its path there."""
    database = address.database_file(address.tracking_uri())
    if database is not None and database.is_relative_to(dvc_root()):
        return str(database.relative_to(dvc_root()))
    return address.shown_uri()


def _is_committed(root: Path) -> bool:
    """Whether HEAD has the workspace's dvc.lock and records."""
    known = git("-C", str(root), "ls-tree", "--name-only", "HEAD", "--", "dvc.lock")
    return bool(known) and not uncommitted(root, "dvc.lock", *map(record_path, STAGES))


def _model_name(reader: Reader, profile: str | None) -> str:
    """What the profile that was run calls the model."""
    if profile is None:
        return "regrpo"
    content = reader.guarded(profile, lambda: reader.yaml(profile)) or {}
    section = content.get("model_card")
    name = section.get("model_name") if isinstance(section, dict) else None
    return str(name or "regrpo")


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
