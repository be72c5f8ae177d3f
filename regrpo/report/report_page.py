"""The page of `regrpo report`: a pipeline's contents with its curves and results drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from regrpo.core import text
from regrpo.evaluate.results import MODELS, Evaluation, Gain, Interval, Pair, Task
from regrpo.inputs.checks import CHECKS
from regrpo.report import drawing, pages
from regrpo.report.card import FRAMEWORKS
from regrpo.report.contents import SHOWN, Report
from regrpo.report.lineage_drawing import lineage
from regrpo.train.curves import PANELS
from regrpo.train.doctor import RULES

STATES = {
    "ran": ("good", "✓", "ran"),
    "cached": ("", "↺", "from cache"),
    "stale": ("unsure", "!", "out of date"),
    "running": ("unsure", "…", "running"),
    "failed": ("bad", "✗", "failed"),
    "killed": ("bad", "✗", "killed"),
    "refused": ("bad", "✗", "refused"),
    "unreadable": ("bad", "✗", "unreadable"),
    "missing": ("unsure", "–", "not run"),
}
"""How each state of a stage is shown: kind, sign, word."""
COLOURS = {"base": 2, "sft": 1, "grpo": 0}
"""The models' colours in charts; as in comparison.png: grey, orange, blue."""
SHOWN_PACKAGES = FRAMEWORKS | {
    "DVC": "dvc",
    "MLflow": "mlflow",
    "Great Expectations": "great-expectations",
}
CHARTED = 12
"""Tasks that the chart shows; the table has them all."""
Figure = tuple[str, str, str]
"""Caption, note, chart."""


def page(report: Report, out: Path) -> str:
    """The report, its links relative to `out`.

    Text from data is escaped, and cut where it is long.
    """
    evaluation = report.evaluation
    headline = evaluation.headline_task if evaluation else None
    pair = headline.pairs.get("sft_grpo") if headline else None
    kinds = {stage.record.run: STATES[stage.state][0] for stage in report.stages if stage.record}
    return pages.render(
        "report.html.j2",
        report=report,
        text=text,
        checks=CHECKS,
        states=STATES,
        models=MODELS,
        headline=headline,
        curves=_curves(report),
        evaluation_charts=_evaluation_charts(evaluation) if evaluation else (),
        paired=_paired_words(headline, pair) if headline and pair else None,
        questions_shown=SHOWN,
        questions_in_all=sum(map(len, report.questions.values())),
        lineage=lineage(report.graph, kinds),
        frameworks=SHOWN_PACKAGES,
        links=partial(_link, report, out.resolve().parent),
    )


def _link(report: Report, folder: Path, path: str) -> str | None:
    """The address of a file of the workspace as seen from the page's folder.

    None for a file that is not here, as those of a revision.
    """
    place = report.root.resolve() / path
    if not report.place.snapshot.is_workspace or not place.exists():
        return None
    address = quote(os.path.relpath(place, folder))
    return f"{address}/" if place.is_dir() else address


def _figure(difference: float, kind: str) -> str:
    """A difference where its unit stands elsewhere."""
    return text.signed(difference, kind).removesuffix(" points")


# --- training curves ------------------------------------------------------------------------------


def _curves(report: Report) -> list[tuple[str, str]]:
    """(title, chart) of each panel of curves.png that has points, with the doctor's marks."""
    marks = _marks_by_panel(report)
    drawn = []
    for panel in PANELS:
        series = []
        for metric, label in panel.lines.items():
            points = [(row["step"], row[metric]) for row in report.history if metric in row]
            if points:
                series.append(drawing.Series(label, points))
        if series:
            chart = drawing.line_chart(
                panel.title,
                series,
                x_label="optimizer step",
                y_label=panel.unit,
                marks=marks.get(panel.title, []),
            )
            drawn.append((panel.title, chart))
    return drawn


def _marks_by_panel(report: Report) -> dict[str, list[drawing.Mark]]:
    """The doctor's marks on the panel that shows the rule's metric, else on the first."""
    rules = {rule.name: rule for rule in RULES}
    logged = sorted({int(row["step"]) for row in report.history})
    marks: dict[str, list[drawing.Mark]] = {}
    for finding in report.health.rules if report.health else []:
        rule = rules.get(finding.rule)
        panels = [panel.title for panel in PANELS if rule and rule.metric in panel.lines]
        of_panel = marks.setdefault([*panels, PANELS[0].title][0], [])
        for first, last in _bands(finding.steps, logged):
            steps = str(first) if first == last else f"{first}–{last}"
            title = f"{finding.rule}: {finding.what} (steps {steps})"
            of_panel.append(drawing.Mark(first, last, title, rule is not None and rule.fatal))
    return marks


def _bands(steps: Sequence[int], logged: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of neighbours among the logged steps: of every tenth, 10 and 20 are some."""
    position = {step: index for index, step in enumerate(logged)}
    known = enumerate(step for step in sorted(steps) if step in position)
    bands = []
    for _, members in groupby(known, key=lambda item: position[item[1]] - item[0]):
        band = [step for _, step in members]
        bands.append((band[0], band[-1]))
    return bands


# --- evaluation -----------------------------------------------------------------------------------


def _evaluation_charts(evaluation: Evaluation) -> tuple[list[Figure], list[Figure]]:
    """Two columns: the models on every task; the headline's differences and its gain apart."""
    shown = evaluation.shown_tasks
    shares = {key: task for key, task in shown.items() if task.kind == "binary"}
    others = {key: task for key, task in shown.items() if task.kind != "binary"}
    models = [_shares_chart(shares)] if shares else []
    for key, task in list(others.items())[:CHARTED]:
        chart = drawing.interval_chart(key, {"": _intervals(task)}, x_label=task.metric)
        note = f"Mean {task.metric}, with 95 % intervals."
        models.append((_task_name(key, task), note, chart))
    headline = evaluation.headline_task
    if headline is None:
        return models, []
    return models, _difference_charts(headline, evaluation.gain)


def _shares_chart(tasks: Mapping[str, Task]) -> Figure:
    groups = {}
    for key, task in list(tasks.items())[:CHARTED]:
        groups[_task_name(key, task)] = _intervals(task)
    title = "Base, SFT and GRPO"
    chart = drawing.interval_chart(title, groups, x_label="percent", x_range=(0, 1), percent=True)
    note = "Share of questions, with 95 % intervals."
    if len(tasks) > CHARTED:
        note += f" The first {CHARTED} of {len(tasks)} tasks."
    return title, note, chart


def _intervals(task: Task) -> list[drawing.Row]:
    rows = []
    for model in MODELS:
        if model in task.models:
            result = task.models[model]
            shown = text.score(result.value, task.kind)
            row = drawing.Row(model, result.value, *result.ci95, shown, COLOURS[model])
            rows.append(row)
    return rows


def _task_name(key: str, task: Task) -> str:
    """A task's name for people."""
    names = {
        "headline": "Held-out questions (headline)",
        "sampled": "Held-out questions, sampled answers",
        "control": f"Control: {key.removeprefix('heldout_').replace('_', ' ')}",
        "format": "Share in the asked format",
    }
    return names.get(task.role, key)


def _difference_charts(headline: Task, gain: Gain | None) -> list[Figure]:
    """The headline's paired differences, and GRPO's gain taken apart."""
    figures = []
    pairs = (("base_sft", 1), ("sft_grpo", 0))
    known = [
        (name, headline.pairs[name], colour) for name, colour in pairs if name in headline.pairs
    ]
    if known:
        note = "The headline, the same questions, with 95 % bootstrap intervals."
        rows = [
            (name.replace("_", " → "), pair.difference, pair.ci95, colour)
            for name, pair, colour in known
        ]
        figures.append(_differences("Paired differences", note, rows, headline))
    if gain and gain.is_split:
        note = (
            "From SFT to GRPO in all; "
            "what opening the reasoning gives SFT, untrained; what is left."
        )
        rows = [
            ("in all", gain.total, gain.total_ci95, 0),
            ("thinking opened", gain.elicited, gain.elicited_ci95, 4),
            ("the rest", gain.learned, gain.learned_ci95, 3),
        ]
        figures.append(_differences("GRPO's gain, taken apart", note, rows, headline))
    return figures


def _differences(
    title: str, note: str, rows: Sequence[tuple[str, float, Interval, int]], headline: Task
) -> Figure:
    percent = headline.kind == "binary"
    drawn = [
        drawing.Row(label, value, *ci95, _figure(value, headline.kind), colour)
        for label, value, ci95, colour in rows
    ]
    unit = "percentage points" if percent else headline.metric
    chart = drawing.interval_chart(title, {"": drawn}, x_label=unit, reference=0, percent=percent)
    return title, note, chart


def _paired_words(headline: Task, pair: Pair) -> str:
    """The headline's paired test of SFT against GRPO in words."""
    if pair.p_mcnemar is not None:
        significant = pair.p_mcnemar < 0.05
        test = f"exact McNemar {text.p_equals(pair.p_mcnemar)}"
    else:
        significant = not pair.ci95[0] <= 0 <= pair.ci95[1]
        test = "paired bootstrap"
    if pair.gained is None or pair.lost is None:
        flips = f"on the same {headline.n:,} questions"
    else:
        flips = (
            f"of the same {headline.n:,} questions it answers {pair.gained:,} right that the "
            f"warm-started model got wrong, and {pair.lost:,} wrong that it got right"
        )
    change = text.change(pair.difference, pair.ci95, headline.kind)
    found = f"{flips}: {change}, {test}."
    if significant:
        verdict = "GRPO is better" if pair.difference > 0 else "GRPO is worse"
        return f"{verdict}: {found}"
    least = text.size(pair.minimum_detectable_effect, headline.kind)
    return (
        f"Not distinguishable. {found[0].upper()}{found[1:]} "
        f"So many questions reliably show a difference of {least}."
    )
