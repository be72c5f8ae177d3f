"""The page of `regrpo compare --html`.

The comparison's blocks, with its intervals and training curves drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from regrpo.compare import blocks
from regrpo.compare.blocks import FEW_RUNS
from regrpo.core.text import signed
from regrpo.report import drawing, pages

Json = dict[str, Any]
KINDS = {"better": "good", "higher": "good", "worse": "bad", "lower": "bad"}
MOST_ROWS = 40
"""Rows of the chart of differences; the tables have them all."""
CURVES = {
    "reward": ("Reward", "mean reward"),
    "dev_accuracy": ("Dev accuracy (greedy)", "share right"),
    "completions/mean_length": ("Completion length", "tokens, mean"),
    "entropy": ("Entropy", "nats per token, mean"),
}


def page(result: Mapping[str, Any]) -> str:
    """The whole page; `result` is regrpo.compare.compare's, with curves.

    Text from data is escaped and cut.
    """
    content = dict(result)
    pairs = content["questions"]["pairs"]
    return pages.render(
        "compare.html.j2",
        title=f"Comparison of {len(content['runs'])} runs",
        blocks=[(block, _is_number(block.table)) for block in blocks.blocks(content)],
        kind=KINDS.get(_relation(content), "unsure"),
        pairs=pairs if len(pairs) <= FEW_RUNS else [],
        differences=_differences(content),
        curves=_curves(content),
        curves_note=_curves_note(content),
    )


def _relation(result: Json) -> str:
    """The one relation that was found, over seeds if there were enough; several are none."""
    tested = {line["relation"] for line in _tested(result)}
    found = tested or {pair["relation"] for pair in result["questions"]["pairs"]}
    return str(found.pop()) if len(found) == 1 else "several"


def _tested(result: Json) -> list[Json]:
    """The comparisons over seeds that have a design, and so a test."""
    return [line for line in result["seeds"]["comparisons"] if line["design"]]


def _differences(result: Json) -> str:
    """The forest chart of what decides.

    Differences over seeds, then over questions, each with its 95 % interval. Of many runs, only
    the tasks that decide are shown.
    """
    groups: dict[str, list[drawing.Interval]] = {}
    for line in _tested(result):
        group = groups.setdefault(f"{line['after']}, over seeds", [])
        group.append(_row(line["task"], line, colour=1))
    pairs = result["questions"]["pairs"]
    few = len(pairs) <= FEW_RUNS
    for pair in pairs:
        title = f"{pair['after']} minus {pair['before']}" if few else "Over questions, run by run"
        group = groups.setdefault(title, [])
        for line in pair["tasks"]:
            if few:
                group.append(_row(line["task"], line))
            elif line["decisive"]:
                group.append(_row(pair["after"], line))
    if not groups:
        return ""
    return drawing.interval_chart(
        "Differences with 95 % intervals",
        {name: rows[:MOST_ROWS] for name, rows in groups.items()},
        x_label="difference of the means",
        reference=0.0,
    )


def _row(label: str, line: Json, colour: int = 0) -> drawing.Interval:
    low, high = line["ci95"]
    difference = line["difference"]
    return drawing.Interval(label, difference, low, high, signed(difference), colour)


def _curves(result: Json) -> list[tuple[str, str]]:
    """(caption, chart) of each curve that was logged."""
    curves = []
    for metric, lines in result["curves"].items():
        title, y_label = CURVES[metric]
        series = [drawing.Series(name, points) for name, points in lines.items() if points]
        if series:
            chart = drawing.line_chart(title, series, x_label="optimizer step", y_label=y_label)
            curves.append((title, chart))
    return curves


def _curves_note(result: Json) -> str:
    """What the lines are, where they are not the runs one by one."""
    lines = list(result["curves"]["reward"])
    if set(lines) == {run["name"] for run in result["runs"]}:
        return ""
    settings = len(result["seeds"]["arms"])
    if len(lines) < settings:
        return f"Means over the runs of a setting (the first {len(lines)} of {settings} settings)"
    return "Means over the runs of a setting"


def _is_number(table: list[list[str]]) -> list[bool]:
    """Which columns hold numbers alone (or nothing)."""
    number = re.compile(r"[+-]?[\d.,]+(e-?\d+)?|—|")
    columns = list(zip(*table, strict=True))
    return [all(map(number.fullmatch, column[1:])) for column in columns]
