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
from regrpo.train.curves import PANELS

Json = dict[str, Any]
KINDS = {"better": "good", "higher": "good", "worse": "bad", "lower": "bad"}
MOST_ROWS = 40
"""Rows of the chart of differences; the tables have them all."""


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
    lines = _tested(result) or result["questions"]["pairs"]
    found = {line["relation"] for line in lines}
    return str(found.pop()) if len(found) == 1 else "several"


def _tested(result: Json) -> list[Json]:
    """The comparisons over seeds that have a design, and so a test."""
    return [line for line in result["seeds"]["comparisons"] if line["design"]]


def _differences(result: Json) -> str:
    """The forest chart of what decides.

    Differences over seeds, then over questions, each with its 95 % interval. Of many runs, only
    the tasks that decide are shown.
    """
    groups: dict[str, list[drawing.Row]] = {}
    for line in _tested(result):
        group = groups.setdefault(f"{line['after']}, over seeds", [])
        group.append(_row(line["task"], line, colour=1))
    pairs = result["questions"]["pairs"]
    for pair in pairs:
        if len(pairs) <= FEW_RUNS:
            rows = [_row(line["task"], line) for line in pair["tasks"]]
            groups[f"{pair['after']} minus {pair['before']}"] = rows
        else:
            rows = [_row(pair["after"], line) for line in pair["tasks"] if line["decisive"]]
            groups.setdefault("Over questions, run by run", []).extend(rows)
    if not groups:
        return ""
    return drawing.interval_chart(
        "Differences with 95 % intervals",
        {name: rows[:MOST_ROWS] for name, rows in groups.items()},
        x_label="difference of the means",
        reference=0.0,
    )


def _row(label: str, line: Json, colour: int = 0) -> drawing.Row:
    low, high = line["ci95"]
    difference = line["difference"]
    return drawing.Row(label, difference, low, high, signed(difference), colour)


def _curves(result: Json) -> list[tuple[str, str]]:
    """(caption, chart) of each curve that was logged."""
    curves = []
    for panel in PANELS:
        for metric, label in panel.lines.items():
            lines = result["curves"][metric]
            series = [drawing.Series(name, points) for name, points in lines.items() if points]
            if not series:
                continue
            title = panel.title if len(panel.lines) == 1 else label[0].upper() + label[1:]
            chart = drawing.line_chart(title, series, x_label="optimizer step", y_label=panel.unit)
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
    number = re.compile(r"(< )?[+-]?[\d.,]+(e-?\d+)?|—|")
    columns = list(zip(*table, strict=True))
    return [all(map(number.fullmatch, column[1:])) for column in columns]
