"""What evaluate leaves: the schemas of metrics.json and answers.json, and how samples are read.

Imports core alone, so that the model card depends on this file of the package and on no other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from regrpo.core.errors import CannotCheck

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

METRICS, SAMPLES = "reports/evaluate/metrics.json", "reports/evaluate/samples.parquet"
ANSWERS = "reports/evaluate/answers.json"
MODELS = ("base", "sft", "grpo")
"""The evaluated models, in the order of their making."""
PAIRS = {"base_sft": ("base", "sft"), "sft_grpo": ("sft", "grpo"), "base_grpo": ("base", "grpo")}
"""The comparisons that are reported: (earlier, later)."""
ROLES = ("headline", "main", "sampled", "control", "format", "custom", "stock")
"""What a task is in the evaluation, in the order in which tasks are shown."""

Kind = Literal["binary", "continuous"]
Interval = tuple[float, float]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, defer_build=True)


class Estimate(_Result):
    """One model on one task: the mean over its questions with a 95 % interval.

    `stderr` is its standard error, None for a single question.
    """

    value: float
    stderr: float | None = None
    ci95: Interval


class Pair(_Result):
    """A later model against an earlier one on the same questions.

    Differences are later minus earlier. `gained` counts questions that only the later model got
    right, `lost` those that only the earlier one did; they and `p_mcnemar` are None for a
    continuous metric.
    """

    difference: float
    ci95: Interval
    p_mcnemar: float | None
    gained: int | None
    lost: int | None
    minimum_detectable_effect: float | None


class FewShot(_Result):
    """Where a task's few-shot examples come from: their number, the dataset and its split."""

    examples: int
    dataset: str | None
    split: str


class Task(_Result):
    """One metric of one task, of every model and for every pair of them."""

    metric: str
    kind: Kind
    n: int
    role: str
    description: str
    version: float | int | str = 0
    few_shot: FewShot | None = None
    models: dict[str, Estimate]
    pairs: dict[str, Pair]


class Gain(_Result):
    """sft → grpo on the headline: what opening the reasoning gives sft (elicited), and the rest."""

    total: float
    total_ci95: Interval
    elicited: float
    elicited_ci95: Interval
    learned: float
    learned_ci95: Interval

    @property
    def is_split(self) -> bool:
        """Whether opening the reasoning gives anything, so that there is something to be split."""
        return self.elicited_ci95[0] > 0


class Evaluation(_Result):
    """reports/evaluate/metrics.json; `deterministic` is what of that mode was on, if any was."""

    headline: str | None
    verifier: str | None = None
    classifiers: dict[str, dict[str, Any]] = {}
    tasks: dict[str, Task]
    gain: Gain | None = None
    deterministic: list[str] = []

    @property
    def headline_task(self) -> Task | None:
        """The results that the models are judged by; None if no such task was evaluated."""
        return self.tasks.get(self.headline or "")

    @property
    def shown_tasks(self) -> dict[str, Task]:
        """The tasks by role, the headline first, and by name within a role."""

        def place(item: tuple[str, Task]) -> tuple[int, str]:
            name, task = item
            return (ROLES.index(task.role) if task.role in ROLES else len(ROLES), name)

        return dict(sorted(self.tasks.items(), key=place))


class TaskAnswers(_Result):
    """The answers to one metric of one task: a value a question, in the order of `ids`.

    `asked` is the SHA-256 of all ids, prompts and right answers: the same hash, the same questions.
    """

    asked: str
    ids: list[str]
    values: dict[str, list[float]]

    @model_validator(mode="after")
    def _is_rectangular(self) -> Self:
        for model, values in self.values.items():
            if len(values) != len(self.ids):
                raise ValueError(f"{len(values)} values of {model} for {len(self.ids)} questions")
        return self


class Answers(_Result):
    """answers.json's one element: what of samples.parquet a test needs, small enough for git.

    Neither questions nor completions are in it, so that data that may not be published stay out.
    """

    schema_version: Literal[1]
    tasks: dict[str, TaskAnswers]


T = TypeVar("T")


def parse_metrics(data: bytes | str) -> Evaluation:
    """metrics.json's content. Raises CannotCheck that names the first thing that is wrong."""
    return _parsed(TypeAdapter(Evaluation), data, METRICS)


def read_answers(data: bytes | str) -> pd.DataFrame:
    """Rows of answers.json: (task, model, id, asked, value).

    Raises CannotCheck that names the first thing that is wrong, an unknown version too.
    """
    import pandas as pd

    [answers] = _parsed(TypeAdapter(tuple[Answers]), data, ANSWERS)
    rows = []
    for name, task in answers.tasks.items():
        for model, values in task.values.items():
            for question, value in zip(task.ids, values, strict=True):
                rows.append((name, model, question, task.asked, value))
    return pd.DataFrame(rows, columns=["task", "model", "id", "asked", "value"])


def _parsed(model: TypeAdapter[T], data: bytes | str, path: str) -> T:
    try:
        return model.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CannotCheck(
            f"{path}: {where}" if where else path,
            expected="results as the evaluate stage writes them",
            found=first["msg"],
            remedy="Run `dvc repro` (or `dvc checkout`).",
        ) from error


def read_samples(data: bytes, columns: Sequence[str] | None = None, **equal: str) -> pd.DataFrame:
    """Rows of samples.parquet: (task, model, id, prompt, completion, answer, value, correct).

    `columns` are read alone where they are given, and of the rows those that hold these values
    (model="grpo", task="heldout"). Raises pyarrow's errors for what is no such file.
    """
    frame: pd.DataFrame = read_table(data, columns, **equal).to_pandas()
    return frame


def read_table(data: bytes, columns: Sequence[str] | None = None, **equal: str) -> pa.Table:
    """As `read_samples`, of any Parquet file and without pandas."""
    import pyarrow.parquet as pq

    wanted = [(name, "=", value) for name, value in equal.items()]
    names = None if columns is None else list(columns)
    return pq.read_table(io.BytesIO(data), columns=names, filters=wanted or None)
