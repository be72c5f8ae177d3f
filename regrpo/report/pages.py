"""Self-contained HTML pages: no script, nothing fetched, readable offline, light and dark.

Every page extends templates/page.html.j2 and is made of templates/macros.html.j2; charts come from
drawing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from regrpo.core import files, text
from regrpo.core.errors import CannotCheck
from regrpo.evaluate.results import MODELS, Evaluation, Gain, Task
from regrpo.inputs.checks import CHECKS
from regrpo.records.graph import Graph
from regrpo.report import drawing
from regrpo.report.contents import Finding, Report, frameworks
from regrpo.report.lineage_drawing import lineage
from regrpo.train.curves import PANELS
from regrpo.train.doctor import RULES

if TYPE_CHECKING:
    from jinja2 import Environment

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
_Drawn = tuple[str, str, str]
CHARTED = 12
"""Tasks that the chart shows; the table has them all."""


def render(template: str, **context: Any) -> str:
    """A page from a template of ours. Everything is escaped but what a template marks safe.

    SVG, escaped where drawn.

    The filter `shown(limit)` makes text from data safe to look at: control and direction characters
    become U+FFFD; `brief(limit)` keeps at most 12 lines of it besides.
    """
    return _environment().get_template(template).render(**context).strip() + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regrpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": text.visible,
        "brief": _brief,
        "moment": _moment,
        "duration": _duration,
    }
    return environment


def require_writable(path: Path) -> None:
    """Raise CannotCheck unless a page can be written there.

    A file, new or to be replaced, in a folder that exists.
    """
    try:
        if path.exists() and not path.is_file():
            raise _unwritable(path, "a folder" if path.is_dir() else "no regular file")
        if not path.parent.is_dir():
            raise _unwritable(path, f"no folder {path.parent}")
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _unwritable(path, f"a folder that may not be written to ({path.parent})")


def write(path: Path, page: str) -> None:
    """Write a page whole or not at all; no folder is made for it.

    Raises CannotCheck where it cannot be written.
    """
    require_writable(path)
    try:
        files.write_text(path, page)
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error


def _unwritable(path: Path, found: str) -> CannotCheck:
    return CannotCheck(
        str(path), expected="a file that can be written", found=found, remedy="Name another."
    )


def audit_page(result: Mapping[str, Any], graph: Graph) -> str:
    """An audit's result with its lineage drawn."""
    faulty = {one["stage"] for one in result["faults"]}
    unsure = {one["stage"] for one in result["unchecked"]}
    colours = {
        stage["run"]: "bad"
        if stage["stage"] in faulty
        else "unsure"
        if stage["stage"] in unsure
        else "good"
        for stage in result["stages"]
    }
    return render(
        "audit.html.j2",
        title=f"Audit: {result['verdict']}",
        svg=lineage(graph, colours),
        result=result,
    )


def lineage_page(title: str, graph: Graph) -> str:
    """A lineage graph alone."""
    return render("audit.html.j2", title=title, svg=lineage(graph), result=None)


# --- the report -----------------------------------------------------------------------------------


def report_page(report: Report, out: Path) -> str:
    """The report, its links relative to `out`.

    Text from data is escaped, and cut where it is long.
    """
    evaluation = report.evaluation
    return render(
        "report.html.j2",
        report=report,
        text=text,
        checks=CHECKS,
        states=STATES,
        models=MODELS,
        curves=_curves(report),
        evaluation_charts=_evaluation_charts(evaluation) if evaluation else (),
        paired=_paired_words(evaluation) if evaluation else None,
        lineage=lineage(
            report.graph,
            {one.record.run: STATES[one.state][0] for one in report.stages if one.record},
        ),
        frameworks=frameworks(report.last) if report.last else {},
        links=_Links(report, out),
    )


class _Links:
    """Addresses of the workspace's files as seen from the page.

    None for a revision, whose files are not here.
    """

    def __init__(self, report: Report, out: Path) -> None:
        self.report, self.folder = report, out.resolve().parent

    def __call__(self, path: str) -> str | None:
        place = self.report.root.resolve() / path
        if not self.report.is_workspace or not place.exists():
            return None
        return quote(os.path.relpath(place, self.folder)) + ("/" if place.is_dir() else "")


def _brief(value: object, limit: int) -> str:
    lines = text.visible(value, limit).split("\n")
    return "\n".join(lines if len(lines) <= 12 else [*lines[:12], "[…]"])


def _moment(time: str) -> str:
    return f"{time[:10]} {time[11:16]}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _curves(report: Report) -> list[tuple[str, str]]:
    """(title, chart) per panel of curves.png, the doctor's marks on the panel that shows a rule's metric."""
    panel_of = {metric: index for index, (_, lines) in enumerate(PANELS) for metric, _ in lines}
    marks: dict[int, list[drawing.Mark]] = {}
    metrics = {rule.name: (rule.metric, rule.fatal) for rule in RULES}
    for finding in report.health.rules if report.health else []:
        metric, fatal = metrics.get(finding.rule, ("", False))
        marks.setdefault(panel_of.get(metric, 0), []).extend(_marks(finding, report.history, fatal))
    drawn = []
    for index, (title, lines) in enumerate(PANELS):
        series = [
            drawing.Series(
                label, [(row["step"], row[metric]) for row in report.history if metric in row]
            )
            for metric, label in lines
        ]
        if any(one.points for one in series):
            name, _, unit = title.rstrip(")").partition(" (")
            y_label = unit if index else "share"
            if unit == "before clipping":
                y_label = "norm, before clipping"
            shown = [one for one in series if one.points]
            chart = drawing.line_chart(
                name,
                shown,
                marks=marks.get(index, []),
                x_label="optimizer step",
                y_label=y_label,
            )
            drawn.append((name, chart))
    return drawn


def _marks(
    finding: Finding, history: Sequence[Mapping[str, float]], fatal: bool
) -> list[drawing.Mark]:
    """A rule's steps, neighbours among the logged ones joined to a band."""
    logged = {
        step: index for index, step in enumerate(sorted({int(row["step"]) for row in history}))
    }
    bands: list[list[int]] = []
    for step in sorted(finding.steps):
        if bands and logged.get(step, -2) - logged.get(bands[-1][-1], -4) == 1:
            bands[-1].append(step)
        else:
            bands.append([step])
    return [
        drawing.Mark(
            band[0], band[-1], f"{finding.rule}: {finding.what} (steps {text.ranges(band)})", fatal
        )
        for band in bands
    ]


def task_name(key: str, task: Task) -> str:
    """A task's name for people."""
    plain = key.removeprefix("heldout_").replace("_", " ")
    names = {
        "headline": "Held-out questions (headline)",
        "sampled": "Held-out questions, sampled answers",
        "control": f"Control: {plain}",
        "format": "Share in the asked format",
    }
    return names.get(task.role, key)


def _evaluation_charts(evaluation: Evaluation) -> tuple[list[_Drawn], list[_Drawn]]:
    """Two columns of (title, note, chart): the models on every task.

    The headline's differences and its gain apart.
    """
    shares = {key: task for key, task in evaluation.shown_tasks.items() if task.kind == "binary"}
    others = {key: task for key, task in evaluation.shown_tasks.items() if task.kind != "binary"}
    models: list[_Drawn] = []
    if shares:
        groups = {
            task_name(key, task): _intervals(task) for key, task in list(shares.items())[:CHARTED]
        }
        chart = drawing.interval_chart(
            "Base, SFT and GRPO", groups, x_label="percent", x_range=(0, 1), percent=True
        )
        more = f" The first {CHARTED} of {len(shares)} tasks." if len(shares) > CHARTED else ""
        models.append(
            ("Base, SFT and GRPO", f"Share of questions, with 95 % intervals.{more}", chart)
        )
    for key, task in list(others.items())[:CHARTED]:
        chart = drawing.interval_chart(key, {"": _intervals(task)}, x_label=task.metric)
        models.append((task_name(key, task), f"Mean {task.metric}, with 95 % intervals.", chart))
    headline = evaluation.tasks.get(evaluation.headline or "")
    return models, _difference_charts(headline, evaluation.gain) if headline else []


def _difference_charts(headline: Task, gain: Gain | None) -> list[_Drawn]:
    """The headline's paired differences, and GRPO's gain taken apart."""
    pairs = [
        (words, one.difference, one.ci95, colour)
        for name, words, colour in (("base_sft", "base → sft", 1), ("sft_grpo", "sft → grpo", 0))
        if (one := headline.pairs.get(name))
    ]
    drawn = [
        (
            "Paired differences",
            "The headline, the same questions, with 95 % bootstrap intervals.",
            pairs,
        )
    ]
    if gain and gain.is_split:
        parts = [
            ("in all", gain.total, gain.total_ci95, 0),
            ("thinking opened", gain.elicited, gain.elicited_ci95, 4),
            ("the rest", gain.learned, gain.learned_ci95, 3),
        ]
        note = "From SFT to GRPO in all; what opening the reasoning gives SFT, untrained; what is left."
        drawn.append(("GRPO's gain, taken apart", note, parts))
    percent = headline.kind == "binary"
    return [
        (
            title,
            note,
            drawing.interval_chart(
                title,
                {
                    "": [
                        drawing.Interval(
                            label,
                            value,
                            *ci95,
                            text.signed(value, headline.kind).removesuffix(" points"),
                            colour,
                        )
                        for label, value, ci95, colour in rows
                    ]
                },
                x_label="percentage points" if percent else headline.metric,
                reference=0,
                percent=percent,
            ),
        )
        for title, note, rows in drawn
        if rows
    ]


def _intervals(task: Task) -> list[drawing.Interval]:
    return [
        drawing.Interval(
            model,
            one.value,
            *one.ci95,
            text=text.score(one.value, task.kind),
            colour=COLOURS[model],
        )
        for model in MODELS
        if (one := task.models.get(model))
    ]


def _paired_words(evaluation: Evaluation) -> str | None:
    """The headline's paired test of SFT against GRPO in words; None where there is none."""
    task = evaluation.tasks.get(evaluation.headline or "")
    pair = task.pairs.get("sft_grpo") if task else None
    if task is None or pair is None:
        return None
    moved = text.change(pair.difference, pair.ci95, task.kind)
    if pair.p_mcnemar is not None:
        sure, test = pair.p_mcnemar < 0.05, f"exact McNemar {text.p_equals(pair.p_mcnemar)}"
    else:
        sure, test = not pair.ci95[0] <= 0 <= pair.ci95[1], "paired bootstrap"
    flips = (
        f"of the same {task.n:,} questions it answers {pair.gained:,} right that the warm-started model got wrong, and "
        f"{pair.lost:,} wrong that it got right: "
        if pair.gained is not None and pair.lost is not None
        else f"on the same {task.n:,} questions: "
    )
    if not sure:
        least = text.size(pair.minimum_detectable_effect, task.kind)
        found = f"Not distinguishable. {flips[0].upper()}{flips[1:]}{moved}, {test}."
        return f"{found} So many questions reliably show a difference of {least}."
    verdict = "GRPO is better" if pair.difference > 0 else "GRPO is worse"
    return f"{verdict}: {flips}{moved}, {test}."
