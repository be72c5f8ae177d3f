"""From the answers of base, sft and grpo to metrics.json and answers.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regrpo.core.errors import Refused
from regrpo.core.files import sha256_json
from regrpo.evaluate import stats
from regrpo.evaluate.results import MODELS, PAIRS, Answers, TaskAnswers
from regrpo.evaluate.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

HEADLINE, OPENED = "heldout", "heldout_reasoning_prefilled"
"""The task that is the headline where the profile names none, and its control."""


def find_headline(found: list[Task], wanted: str | None) -> str | None:
    """The metric to be judged by. Raises Refused for one that the tasks do not measure."""
    known = [metric.key for task in found for metric in task.metrics]
    if wanted and wanted not in known:
        raise Refused(
            "evaluate.headline",
            expected=f"one of {', '.join(known)}",
            found=wanted,
            remedy="Name one of these, or add the task (or the classifier) that measures it.",
        )
    return wanted or (HEADLINE if HEADLINE in known else None)


def summarise(
    samples: pd.DataFrame, found: list[Task], headline: str | None, *, resamples: int, seed: int
) -> dict[str, Any]:
    """metrics.json's `tasks`: per metric each model's estimate and each pair's comparison.

    `resamples` and `seed` are the bootstrap's.
    """
    drawn = {"resamples": resamples, "seed": seed}
    summary = {}
    for task in found:
        for metric in task.metrics:
            answered = samples[samples["task"] == metric.key]
            values: Any = answered.pivot(index="id", columns="model", values="value")
            kind = metric.kind or stats.kind_of(values.to_numpy().ravel())
            estimates = {model: stats.estimate(values[model], kind, **drawn) for model in MODELS}
            pairs = {
                name: stats.compare(values[before], values[after], kind, **drawn)
                for name, (before, after) in PAIRS.items()
            }
            summary[metric.key] = {
                "metric": metric.label,
                "kind": kind,
                "n": len(values),
                "role": "headline" if metric.key == headline else metric.role,
                "description": metric.description,
                "version": task.version,
                "few_shot": task.few_shot,
                "models": {name: one.model_dump() for name, one in estimates.items()},
                "pairs": {name: one.model_dump() for name, one in pairs.items()},
            }
    return summary


def split_gain(samples: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Any] | None:
    """sft → grpo on the headline: what opening the reasoning gives sft (`elicited`), and the rest.

    None if the headline or that control was not run.
    """
    if not {HEADLINE, OPENED} <= set(samples["task"]):
        return None
    values = samples.set_index(["task", "model", "id"])["value"].sort_index()
    sft, opened, grpo = values[HEADLINE, "sft"], values[OPENED, "sft"], values[HEADLINE, "grpo"]
    parts = {"total": (sft, grpo), "elicited": (sft, opened), "learned": (opened, grpo)}
    gain: dict[str, Any] = {}
    for part, (before, after) in parts.items():
        # A difference of two differences is no share of right answers: McNemar has no say in it.
        found = stats.compare(before, after, "continuous", resamples=resamples, seed=seed)
        gain |= {part: found.difference, f"{part}_ci95": found.ci95}
    return gain


def list_answers(samples: pd.DataFrame) -> list[dict[str, Any]]:
    """answers.json's content: a list, in which DVC looks for no metric.

    Every model was asked the same questions, in the same order.
    """
    tasks = {}
    for name, of_task in samples.groupby("task"):
        values: dict[str, list[float]] = {}
        for model, of_model in of_task.groupby("model"):
            values[str(model)] = stats.rounded(of_model["value"].tolist())
        asked = of_task[["model", "id", "prompt", "answer"]].to_numpy().tolist()
        tasks[str(name)] = TaskAnswers(
            asked=sha256_json(asked), ids=of_model["id"].tolist(), values=values
        )
    content = Answers(schema_version=1, tasks=tasks)
    return [content.model_dump()]
