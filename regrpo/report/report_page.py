"""The page of `regrpo report`: a pipeline's contents with its curves and results drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from regrpo.core import text
from regrpo.evaluate.results import MODELS, Evaluation, Gain, Interval, Pair, Task
from regrpo.inputs.checks import CHECKS
from regrpo.records.record import Record
from regrpo.report import drawing, pages
from regrpo.report.card import FRAMEWORKS
from regrpo.report.contents import SHOWN, Finding, Report
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
CHARTED = 12
"""Tasks that the chart shows; the table has them all."""
Figure = tuple[str, str, str]
"""Caption, note, chart."""
Tile = tuple[str, str, str]
"""Name, value, note."""


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
        tiles=_tiles(report, headline),
        curves=_curves(report),
        evaluation_charts=_evaluation_charts(evaluation) if evaluation else (),
        paired=_paired_words(headline, pair) if headline and pair else None,
        questions_shown=SHOWN,
        questions_in_all=sum(map(len, report.questions.values())),
        lineage=lineage(report.graph, kinds),
        frameworks=_frameworks(report.last) if report.last else {},
        links=_Links(report, out),
    )


class _Links:
    """Addresses of the workspace's files as seen from the page.

    None for a file that is not here, as those of a revision.
    """

    def __init__(self, report: Report, out: Path) -> None:
        self.report = report
        self.folder = out.resolve().parent

    def __call__(self, path: str) -> str | None:
        place = self.report.root.resolve() / path
        if not self.report.is_workspace or not place.exists():
            return None
        address = quote(os.path.relpath(place, self.folder))
        return f"{address}/" if place.is_dir() else address


def _tiles(report: Report, headline: Task | None) -> list[Tile]:
    """The numbers that the page begins with."""
    tiles = _headline_tiles(headline) if headline else []
    if report.health:
        rules = [rule for rule in report.health.rules if rule.verdict != "not_applicable"]
        note = f"{report.health.fired} of {len(rules)} rules fired"
        tiles.append(("Doctor", report.health.verdict, note))
    if report.verdict:
        checks = report.verdict.checks
        passed = sum(check.passed for check in checks)
        note = f"{passed:,} of {len(checks):,} checks hold"
        tiles.append(("Gate", "passed" if report.verdict.passed else "refused", note))
    seconds = [stage.seconds for stage in report.stages if stage.seconds]
    if seconds:
        tiles.append(("Computed in", pages.duration(sum(seconds)), f"{len(seconds)} stages"))
    return tiles


def _headline_tiles(headline: Task) -> list[Tile]:
    kind = headline.kind
    tiles = []
    for model, name in (("base", "Base"), ("sft", "After SFT"), ("grpo", "After GRPO")):
        if model in headline.models:
            result = headline.models[model]
            value = text.score(result.value, kind)
            tiles.append((name, value, text.interval(result.ci95, kind)))
    pair = headline.pairs.get("sft_grpo")
    if pair:
        name = "Gain by GRPO, points" if kind == "binary" else "Gain by GRPO"
        value = _figure(pair.difference, kind)
        tiles.append((name, value, text.interval(pair.ci95, kind, sign=True)))
    return tiles


def _figure(difference: float, kind: str) -> str:
    """A difference where its unit stands elsewhere."""
    return text.signed(difference, kind).removesuffix(" points")


def _frameworks(record: Record) -> dict[str, str]:
    """The versions of what matters most in a record's environment."""
    wanted = FRAMEWORKS | {
        "DVC": "dvc",
        "MLflow": "mlflow",
        "Great Expectations": "great-expectations",
    }
    packages = record.environment.packages
    return {name: packages[package] for name, package in wanted.items() if package in packages}


# --- training curves ------------------------------------------------------------------------------


def _curves(report: Report) -> list[tuple[str, str]]:
    """(title, chart) of each panel of curves.png that has points, with the doctor's marks."""
    marks = _marks_by_panel(report)
    drawn = []
    for index, (title, lines) in enumerate(PANELS):
        series = []
        for metric, label in lines:
            points = [(row["step"], row[metric]) for row in report.history if metric in row]
            if points:
                series.append(drawing.Series(label, points))
        if series:
            name, y_label = _title_and_unit(title)
            chart = drawing.line_chart(
                name,
                series,
                x_label="optimizer step",
                y_label=y_label,
                marks=marks.get(index, []),
            )
            drawn.append((name, chart))
    return drawn


def _title_and_unit(title: str) -> tuple[str, str]:
    """A panel's name, and what its y axis counts: the unit that curves.png has in brackets."""
    name, _, unit = title.rstrip(")").partition(" (")
    if unit == "before clipping":
        return name, f"norm, {unit}"
    return name, unit or "share"


def _marks_by_panel(report: Report) -> dict[int, list[drawing.Mark]]:
    """The doctor's marks on the panel that shows the rule's metric, else on the first."""
    panel_of = {metric: index for index, (_, lines) in enumerate(PANELS) for metric, _ in lines}
    rules = {rule.name: rule for rule in RULES}
    steps = sorted({int(row["step"]) for row in report.history})
    marks: dict[int, list[drawing.Mark]] = {}
    for finding in report.health.rules if report.health else []:
        rule = rules.get(finding.rule)
        panel = panel_of.get(rule.metric, 0) if rule else 0
        fatal = rule is not None and rule.fatal
        marks.setdefault(panel, []).extend(_marks(finding, steps, fatal))
    return marks


def _marks(finding: Finding, logged: Sequence[int], fatal: bool) -> list[drawing.Mark]:
    """A rule's steps, neighbours among the logged ones joined to a band."""
    position = {step: index for index, step in enumerate(logged)}
    bands: list[list[int]] = []
    # Where every tenth step is logged, 10 and 20 are neighbours.
    for step in sorted(finding.steps):
        last = bands[-1][-1] if bands else None
        if last in position and position.get(step) == position[last] + 1:
            bands[-1].append(step)
        else:
            bands.append([step])
    marks = []
    for band in bands:
        title = f"{finding.rule}: {finding.what} (steps {text.ranges(band)})"
        marks.append(drawing.Mark(band[0], band[-1], title, fatal))
    return marks


# --- evaluation -----------------------------------------------------------------------------------


def _evaluation_charts(evaluation: Evaluation) -> tuple[list[Figure], list[Figure]]:
    """Two columns: the models on every task; the headline's differences and its gain apart."""
    shares, others = {}, {}
    for key, task in evaluation.shown_tasks.items():
        if task.kind == "binary":
            shares[key] = task
        else:
            others[key] = task
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


def _intervals(task: Task) -> list[drawing.Interval]:
    rows = []
    for model in MODELS:
        if model in task.models:
            result = task.models[model]
            shown = text.score(result.value, task.kind)
            row = drawing.Interval(model, result.value, *result.ci95, shown, COLOURS[model])
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

    def row(label: str, value: float, ci95: Interval, colour: int) -> drawing.Interval:
        shown = _figure(value, headline.kind)
        return drawing.Interval(label, value, *ci95, shown, colour)

    figures = []
    pairs = []
    for name, label, colour in (("base_sft", "base → sft", 1), ("sft_grpo", "sft → grpo", 0)):
        if name in headline.pairs:
            pair = headline.pairs[name]
            pairs.append(row(label, pair.difference, pair.ci95, colour))
    if pairs:
        title = "Paired differences"
        note = "The headline, the same questions, with 95 % bootstrap intervals."
        figures.append((title, note, _difference_chart(title, pairs, headline)))
    if gain and gain.is_split:
        parts = [
            row("in all", gain.total, gain.total_ci95, 0),
            row("thinking opened", gain.elicited, gain.elicited_ci95, 4),
            row("the rest", gain.learned, gain.learned_ci95, 3),
        ]
        title = "GRPO's gain, taken apart"
        note = (
            "From SFT to GRPO in all; "
            "what opening the reasoning gives SFT, untrained; what is left."
        )
        figures.append((title, note, _difference_chart(title, parts, headline)))
    return figures


def _difference_chart(title: str, rows: Sequence[drawing.Interval], headline: Task) -> str:
    percent = headline.kind == "binary"
    unit = "percentage points" if percent else headline.metric
    return drawing.interval_chart(title, {"": rows}, x_label=unit, reference=0, percent=percent)


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
