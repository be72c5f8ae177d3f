"""Completions as tables that a person reads (MLflow's table artifacts), out of samples.parquet.

A table is bounded and says how many of how many it shows. Text is data: it is cut, and characters
that do not show are replaced; whoever renders it escapes it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.core.text import visible
from regrpo.evaluate.results import MODELS

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("grpo", "evaluate")
"""The stages that leave samples."""
NAME = "samples.json"
"""The table's artifact."""
LIMIT = 100
"""Rows of a table."""
CHARACTERS = 2000
"""Of one cell."""
CHANGE = "sft → grpo"
"""The column that says what became of an answer."""
CHANGES = ("lost", "gained", "still wrong", "still right", "worse", "better", "the same")
"""What it says, in the order in which it is shown; the first four of right and wrong answers."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what they show, in words."""

    columns: dict[str, list[Any]]
    shows: str


def read_table(stage: str, parquet: bytes | None, headline: str | None = None) -> Table | None:
    """The table of a stage's samples.parquet; `headline` is the task that evaluate's shows.

    Returns None for a stage without samples, and for a file that is empty, damaged or foreign
    (which the audit names).
    """
    import pandas as pd

    if stage not in STAGES or parquet is None:
        return None
    with contextlib.suppress(ValueError, KeyError, OSError):
        frame = pd.read_parquet(io.BytesIO(parquet))
        if frame.empty:
            return None
        if stage == "grpo":
            return during_training(frame)
        return before_and_after(frame, headline)
    return None


def during_training(frame: pd.DataFrame) -> Table:
    """GRPO's completions and rewards: the first ones of each step, or of steps evenly spread."""
    steps = sorted(frame["step"].unique())
    if len(steps) > LIMIT:
        steps = steps[:: -math.ceil(len(steps) / LIMIT)]  # the last one among them
    shown = frame[frame["step"].isin(steps)].groupby("step").head(LIMIT // len(steps))
    first = ["step", "prompt", "completion", "answer", "reward"]
    rewards = [name for name in frame.columns if name not in (*first, "id")]
    of = f"{len(frame):,} kept completions, from {len(steps):,} steps"
    return Table(_columns(shown[[*first, *rewards, "id"]]), f"{len(shown):,} of {of}")


def before_and_after(frame: pd.DataFrame, headline: str | None = None) -> Table:
    """Evaluate's answers of base, sft and grpo to a question in one row, as many of each change.

    `headline` is the task that is shown; without it, the first.
    """
    task = headline if headline in set(frame["task"]) else str(frame["task"].iloc[0])
    frame = frame[frame["task"] == task]
    answers = frame.pivot(index="id", columns="model", values="completion")
    scores = frame.pivot(index="id", columns="model", values="value")
    questions = frame.drop_duplicates("id").set_index("id").loc[scores.index]
    # The UI's comparison of runs opens with the second column: what the last model says.
    models = [model for model in reversed(MODELS) if model in scores]
    table = questions[["prompt"]].copy()
    for model in models:
        table[model] = answers[model]
    table["answer"] = questions["answer"]
    for model in models:
        table[f"{model} score"] = scores[model]
    table[CHANGE] = [change(*pair) for pair in zip(scores["sft"], scores["grpo"], strict=True)]
    table["id"] = table.index
    # Kinds in the order of CHANGES, so that the rare ones come first.
    ordered = table.sort_values(CHANGE, key=lambda kinds: kinds.map(CHANGES.index), kind="stable")
    shown = ordered.groupby(CHANGE).head(LIMIT // table[CHANGE].nunique())
    return Table(_columns(shown), f"{len(shown):,} of {len(table):,} questions of {task}")


def change(before: float, after: float) -> str:
    """What became of an answer's score, in words (see CHANGES)."""
    if {before, after} <= {0, 1}:
        if before == after:
            return "still right" if after else "still wrong"
        return "gained" if after else "lost"
    if before == after:
        return "the same"
    return "better" if after > before else "worse"


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): [_cell(value) for value in frame[name]] for name in frame}


def _cell(value: Any) -> Any:
    """A number, or text: chat messages as `role: content`, one a line."""
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, str) and value.startswith("[{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if _is_chat(value):
        messages = [f"{message.get('role', '')}: {message['content']}" for message in value]
        return visible("\n".join(messages), CHARACTERS)
    if value is None or value != value:  # NaN is no JSON
        return None
    if isinstance(value, int | float):
        return +value  # a truth value becomes 1 or 0
    return visible(value, CHARACTERS)


def _is_chat(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(message, Mapping) and "content" in message for message in value)
