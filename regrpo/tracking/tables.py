"""Observer.

The kept completions as tables that a person reads (MLflow's table artifacts), out of
samples.parquet.

A table is bounded and says how many of how many it shows. Text is data: it is cut, and characters
that do not show are replaced; whoever renders it escapes it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.core.text import visible
from regrpo.evaluate.results import MODELS

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("grpo", "evaluate")
"""The stages that leave a samples.parquet."""
NAME = "samples.json"
"""The table's artifact."""
LIMIT = 100
"""Rows of a table."""
CHARACTERS = 2000
"""Of one cell."""
CHANGES = {
    (True, False): "lost",
    (False, True): "gained",
    (False, False): "still wrong",
    (True, True): "still right",
}
"""(sft correct, grpo correct) in words; the rare and telling ones first."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what they show, in words."""

    columns: dict[str, list[Any]]
    shows: str


def table(stage: str, parquet: bytes, headline: str | None = None) -> Table | None:
    """The table of a stage's samples.parquet (grpo's or evaluate's).

    None where it is no such file, or empty.
    """
    import pandas as pd

    if stage not in STAGES:
        return None
    try:
        frame = pd.read_parquet(io.BytesIO(parquet))
        if frame.empty:
            return None
        return during_training(frame) if stage == "grpo" else before_and_after(frame, headline)
    except (ValueError, KeyError, OSError):  # a damaged or foreign file is the audit's to name
        return None


def during_training(frame: pd.DataFrame) -> Table:
    """GRPO's completions by step.

    Of each kept step (or evenly spread steps) the first ones, with their rewards.
    """
    steps = sorted(frame["step"].unique())
    spread = [steps[index * (len(steps) - 1) // max(1, LIMIT - 1)] for index in range(LIMIT)]
    kept = frame[frame["step"].isin(steps if len(steps) <= LIMIT else spread)]
    shown = kept.groupby("step", sort=True).head(max(1, LIMIT // max(1, kept["step"].nunique())))
    first = ["step", "prompt", "completion", "answer", "reward"]
    names = [*first, *(name for name in frame.columns if name not in (*first, "id")), "id"]
    columns = {name: [_cell(value) for value in shown[name]] for name in names}
    return Table(
        columns,
        f"{len(shown):,} of {len(frame):,} kept completions, from {shown['step'].nunique():,} steps",
    )


def before_and_after(frame: pd.DataFrame, headline: str | None = None) -> Table:
    """Evaluate's answers of base, sft and grpo to the same question in one row.

    Each kind of change has its share.

    `headline` is the task that is shown; without it, the first.
    """
    task = headline if headline in set(frame["task"]) else str(frame["task"].iloc[0])
    frame = frame[frame["task"] == task]
    wide = frame.pivot(index="id", columns="model", values=["completion", "value"])
    asked = frame.drop_duplicates("id").set_index("id").loc[wide.index]
    # The UI's comparison of runs opens with the second column: what the last model says.
    models = [model for model in reversed(MODELS) if model in set(frame["model"])]
    rows = [
        {
            "prompt": _cell(asked.loc[id_, "prompt"]),
            **{model: _cell(wide.loc[id_, ("completion", model)]) for model in models},
            "answer": _cell(asked.loc[id_, "answer"]),
            **{f"{model} score": _cell(wide.loc[id_, ("value", model)]) for model in models},
            "sft → grpo": _change(*(wide.loc[id_, ("value", model)] for model in ("sft", "grpo"))),
            "id": _cell(id_),
        }
        for id_ in wide.index
    ]
    shown = _share(rows, "sft → grpo")
    columns = {name: [row[name] for row in shown] for name in rows[0]}
    return Table(columns, f"{len(shown):,} of {len(rows):,} questions of {task}")


def _change(before: Any, after: Any) -> str:
    if {before, after} <= {0, 1}:
        return CHANGES[bool(before), bool(after)]
    return "better" if after > before else "worse" if after < before else "the same"


def _share(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """LIMIT rows, an equal share of each kind as far as there are so many.

    Kinds in the order of CHANGES.
    """
    order = [*CHANGES.values(), "worse", "better", "the same"]
    kinds = {kind: [row for row in rows if row[by] == kind] for kind in order}
    kept: dict[str, list[dict[str, Any]]] = {}
    left = LIMIT
    for place, kind in enumerate(sorted(kinds, key=lambda kind: len(kinds[kind]))):
        kept[kind] = kinds[kind][: left // (len(kinds) - place)]
        left -= len(kept[kind])
    return [row for kind in order for row in kept[kind]]


def _cell(value: Any) -> Any:
    """A number, or text: chat messages as `role: content`, one a line."""
    import numpy as np

    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) and value.startswith("[{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, Mapping) and "content" in one for one in value)
    ):
        return visible("\n".join(_messages(value)), CHARACTERS)
    if isinstance(value, bool | int | np.bool_ | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return None if value is None else visible(value, CHARACTERS)


def _messages(messages: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (f"{message.get('role', '')}: {message['content']}" for message in messages)
