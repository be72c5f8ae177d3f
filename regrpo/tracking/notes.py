"""Observer: a run's description in MLflow (Markdown): what came out, first, and where to look.

MLflow renders it with a few HTML elements allowed (pictures and frames of other sites among them),
so text that is not ours goes through `regrpo.core.text.code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrpo.core import text
from regrpo.evaluate.results import MODELS, Evaluation, Pair, Task

Json = Mapping[str, Any]


def headline_metrics(evaluation: Evaluation) -> dict[str, float]:
    """`headline/grpo`, `/sft`, `/base` and the paired gain from sft to grpo with the ends of its interval."""
    task = evaluation.headline_task
    if task is None:
        return {}
    metrics = {}
    for model in reversed(MODELS):
        if model in task.models:
            metrics[f"headline/{model}"] = task.models[model].value
    if pair := task.pairs.get("sft_grpo"):
        low, high = pair.ci95
        metrics |= {"headline/gain": pair.difference}
        metrics |= {"headline/gain_ci95_low": low, "headline/gain_ci95_high": high}
    return metrics


def headline_words(evaluation: Evaluation) -> str | None:
    """The result in one line: `28.0 % → 96.7 %, +68.7 points [+63.3, +74.0]`."""
    task = evaluation.headline_task
    if task is None or "sft_grpo" not in task.pairs:
        return None
    before = text.score(task.models["sft"].value, task.kind)
    after = text.score(task.models["grpo"].value, task.kind)
    pair = task.pairs["sft_grpo"]
    return f"{before} → {after}, {text.change(pair.difference, pair.ci95, task.kind)}"


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Every task with each model's estimate and GRPO's paired gain, the headline first.

    Then the split of the gain.
    """
    lines = []
    for name, task in evaluation.shown_tasks.items():
        if "sft_grpo" not in task.pairs:
            continue
        cells = _cells(name, task, task.pairs["sft_grpo"])
        if name == evaluation.headline:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {'&emsp; | '.join(cells)} |")  # the UI leaves no space between columns
    if not lines:
        return []
    head = [
        "",
        "| task, 95 % intervals | base | SFT | GRPO | SFT → GRPO | McNemar p |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *lines, "", *_gain(evaluation)]


def _cells(name: str, task: Task, pair: Pair) -> list[str]:
    cells = [text.code(name)]
    for model in MODELS:
        one = task.models.get(model)
        cells.append(text.estimate(one.value, one.ci95, task.kind) if one else text.UNKNOWN)
    cells.append(text.change(pair.difference, pair.ci95, task.kind))
    cells.append(text.p_value(pair.p_mcnemar))
    return cells


def _gain(evaluation: Evaluation) -> list[str]:
    task, gain = evaluation.headline_task, evaluation.gain
    if task is None or gain is None:
        return []
    total = text.change(gain.total, gain.total_ci95, task.kind)
    elicited = text.change(gain.elicited, gain.elicited_ci95, task.kind)
    learned = text.change(gain.learned, gain.learned_ci95, task.kind)
    return [
        f"The gain, {total}, is {elicited} that opening the reasoning alone gives SFT, and {learned} besides.",
        "",
    ]


def health_line(health: Json) -> str:
    """The doctor's verdict, with each rule that fired, its steps and what to change."""
    fired = [
        f"{rule['what']} (steps {text.ranges(rule['steps'])}; change {rule['change']})"
        for rule in health.get("rules", [])
        if rule["verdict"] == "fired"
    ]
    return f"**Doctor:** {health.get('verdict')}{': ' if fired else ''}{'; '.join(fired)}"


def link(words: str, experiment: str, run: str, artifact: str | None = None) -> str:
    """A link to a run, or to one of its artifacts, in the UI that shows the description."""
    place = f"#/experiments/{experiment}/runs/{run}" + (
        f"/artifacts/{artifact}" if artifact else ""
    )
    return f"[{words}]({place}?workflowType=machine_learning)"


ARTIFACTS = {
    "model_card/README.md": "card",
    "grpo/curves.png": "curves",
    "evaluate/comparison.png": "comparison",
    "validate/report.html": "gate",
    "evaluate/samples.json": "answers before and after",
    "grpo/samples.json": "completions during training",
    "outputs.json": "hashes of all outputs",
}
"""What a row's description links to, in this order, as far as it is there."""
