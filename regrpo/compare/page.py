"""The page of `regrpo compare --html`.

The comparison's blocks, with its intervals and training curves drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
    return pages.render(
        "compare.html.j2",
        title=f"Comparison of {len(content['runs'])} runs",
        blocks=[(block, _is_number(block.table)) for block in blocks.blocks(content)],
        kind=KINDS.get(_relation(content), "unsure"),
        pairs=content["questions"]["pairs"]
        if len(content["questions"]["pairs"]) <= FEW_RUNS
        else [],
        differences=_differences(content),
        curves=list(_curves(content)),
        curves_note=_curves_note(content),
    )


def _relation(result: Json) -> str:
    """The one relation that was found, over seeds if there were enough; several are none."""
    tested = [line["relation"] for line in result["seeds"]["comparisons"] if line["design"]]
    found = set(tested or [pair["relation"] for pair in result["questions"]["pairs"]])
    return str(found.pop()) if len(found) == 1 else "several"


def _differences(result: Json) -> str:
    """The forest chart.

    Differences over seeds, then over questions, each with its 95 % interval.
    """
    groups: dict[str, list[drawing.Interval]] = {}
    for line in [line for line in result["seeds"]["comparisons"] if line["design"]]:
        groups.setdefault(f"{line['after']}, over seeds", []).append(
            _row(line["task"], line, colour=1)
        )
    pairs = result["questions"]["pairs"]
    for pair in pairs:
        few = len(pairs) <= FEW_RUNS
        title = f"{pair['after']} minus {pair['before']}" if few else "Over questions, run by run"
        shown = [line for line in pair["tasks"] if few or line["decisive"]]
        groups.setdefault(title, []).extend(
            _row(line["task"] if few else pair["after"], line) for line in shown
        )
    kept = {name: rows[:MOST_ROWS] for name, rows in groups.items()}
    if not kept:
        return ""
    title = "Differences with 95 % intervals"
    return drawing.interval_chart(title, kept, x_label="difference of the means", reference=0.0)


def _row(label: str, line: Json, colour: int = 0) -> drawing.Interval:
    low, high = line["ci95"]
    return drawing.Interval(
        label, line["difference"], low, high, signed(line["difference"]), colour
    )


def _curves(result: Json) -> Iterator[tuple[str, str]]:
    """(caption, chart) of each curve that was logged."""
    for metric, lines in result["curves"].items():
        title, y_label = CURVES[metric]
        series = [drawing.Series(name, points) for name, points in lines.items() if points]
        if series:
            yield (
                title,
                drawing.line_chart(title, series, x_label="optimizer step", y_label=y_label),
            )


def _curves_note(result: Json) -> str:
    """What the lines are, where they are not the runs one by one."""
    lines = list(result["curves"]["reward"])
    if set(lines) == {run["name"] for run in result["runs"]}:
        return ""
    settings = len(result["seeds"]["arms"])
    first = f" (the first {len(lines)} of {settings} settings)" if len(lines) < settings else ""
    return f"Means over the runs of a setting{first}"


def _is_number(table: list[list[str]]) -> list[bool]:
    """Which columns hold numbers alone (or nothing)."""
    number = re.compile(r"[+-]?[\d.,]+(e-?\d+)?|—|")
    return (
        [all(number.fullmatch(cell) for cell in column[1:]) for column in zip(*table, strict=True)]
        if table
        else []
    )
