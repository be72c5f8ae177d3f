"""Observer: a run's description in MLflow (Markdown): what came out, first, and where to look.

MLflow renders it with a few HTML elements allowed (pictures and frames of other sites among them),
so text that is not ours goes through `regrpo.report.card.code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrpo.report import card

Json = Mapping[str, Any]


def headline_task(evaluation: Json) -> tuple[str, Json] | None:
    """(name, results) of the headline task; None where the profile evaluates none of that role."""
    name = evaluation.get("headline")
    task = evaluation.get("tasks", {}).get(name)
    return (str(name), task) if task else None


def headline_metrics(evaluation: Json) -> dict[str, float]:
    """`headline/grpo`, `/sft`, `/base` and the paired gain from sft to grpo with the ends of its interval."""
    found = headline_task(evaluation)
    if not found:
        return {}
    models = found[1].get("models", {})
    metrics = {
        f"headline/{model}": float(models[model]["value"])
        for model in reversed(card.MODELS)
        if model in models
    }
    if pair := found[1].get("pairs", {}).get("sft_grpo"):
        metrics |= {"headline/gain": float(pair["difference"])}
        if None not in pair["ci95"]:
            ends = zip(("gain_ci95_low", "gain_ci95_high"), pair["ci95"], strict=True)
            metrics |= {f"headline/{end}": float(limit) for end, limit in ends}
    return metrics


def headline_words(evaluation: Json) -> str | None:
    """The result in one line: `28.0 % → 96.7 %, +68.7 points [+63.3, +74.0]`."""
    found = headline_task(evaluation)
    if not found or not (pair := found[1].get("pairs", {}).get("sft_grpo")):
        return None
    task, kind = found[1], found[1]["kind"]
    before, after = (card.score(task["models"][model]["value"], kind) for model in ("sft", "grpo"))
    return f"{before} → {after}, {card.change(pair['difference'], pair['ci95'], kind)}"


def evaluation_lines(evaluation: Json) -> list[str]:
    """Every task with each model's estimate and GRPO's paired gain, the headline first.

    Then the split of the gain.
    """
    tasks = evaluation.get("tasks", {})
    roles = (*card.ROLES, None)
    ordered = sorted(tasks.items(), key=lambda item: (roles.index(item[1].get("role")), item[0]))
    lines = []
    for name, task in ordered:
        if not (pair := task.get("pairs", {}).get("sft_grpo")):
            continue
        kind = task["kind"]
        cells = [
            card.code(name),
            *(card.estimate(task["models"].get(model), kind) for model in card.MODELS),
        ]
        cells += [
            card.change(pair["difference"], pair["ci95"], kind),
            card.p_value(pair["p_mcnemar"]),
        ]
        cells = [f"**{cell}**" if name == evaluation.get("headline") else cell for cell in cells]
        lines.append(f"| {'&emsp; | '.join(cells)} |")  # the UI leaves no space between columns
    if not lines:
        return []
    head = [
        "",
        "| task, 95 % intervals | base | SFT | GRPO | SFT → GRPO | McNemar p |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *lines, "", *_gain(evaluation)]


def _gain(evaluation: Json) -> list[str]:
    found, gain = headline_task(evaluation), evaluation.get("gain")
    if not found or not gain:
        return []
    total, elicited, learned = (
        card.change(gain[part], gain[f"{part}_ci95"], found[1]["kind"])
        for part in ("total", "elicited", "learned")
    )
    return [
        f"The gain, {total}, is {elicited} that opening the reasoning alone gives SFT, and {learned} besides.",
        "",
    ]


def health_line(health: Json) -> str:
    """The doctor's verdict, with each rule that fired, its steps and what to change."""
    fired = [
        f"{rule['what']} (steps {card.steps(rule['steps'])}; change {rule['change']})"
        for rule in health.get("rules", [])
        if rule["verdict"] == "fired"
    ]
    return f"**Doctor:** {health.get('verdict')}{': ' if fired else ''}{'; '.join(fired)}"


def link(text: str, experiment: str, run: str, artifact: str | None = None) -> str:
    """A link to a run, or to one of its artifacts, in the UI that shows the description."""
    place = f"#/experiments/{experiment}/runs/{run}" + (
        f"/artifacts/{artifact}" if artifact else ""
    )
    return f"[{text}]({place}?workflowType=machine_learning)"


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
