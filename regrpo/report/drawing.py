"""Charts as inline SVG: text in, text out, no library; the same numbers give the same bytes.

Colours and fonts are classes that `templates/page.html.j2` styles, so that a chart follows light,
dark and print; series differ by dash and point shape besides. Every label is escaped here: the
result may stand in a page as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regrpo.report import svg

WIDTH = 440
"""Of a chart's coordinates.

About that many pixels on a laptop, fewer on a phone, where the text is drawn larger.
"""
SHAPES = ("circle", "square", "diamond", "triangle")
CHARACTER = 8.2
"""Width of a character of the larger text, in chart coordinates; what labels are given room by."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One named line: (x, y) points in order of x. What is not finite leaves a gap."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A band over `start` to `end` on the x axis that says something.

    `fatal` is the stronger of two colours.
    """

    start: float
    end: float
    title: str
    fatal: bool = False


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart.

    `colour` chooses the series' colour and point shape (0 to 5), `text` the right.
    """

    label: str
    value: float
    low: float
    high: float
    text: str = ""
    colour: int = 0


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    y_range: Range | None = None,
    height: int = 250,
) -> str:
    """Lines over a common x axis, as measured: nothing is smoothed.

    Without `y_range` the y axis starts at 0 where no value is negative. Lines of more points than
    the chart has pixels keep the lowest and highest of each pixel. Without any finite point the
    chart says "no data".
    """
    drawn = [(one.name, _finite(one.points)) for one in series]
    points = [point for _, segments in drawn for segment in segments for point in segment]
    if not points:
        return _chart(
            title,
            f"{title}: no data.",
            height,
            f'<text class="tick middle" x="{WIDTH / 2}" y="60">no data</text>',
        )
    legend, legend_height = _legend([name for name, _ in drawn]) if len(drawn) > 1 else ("", 0)
    low, high = y_range or _padded([y for _, y in points])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    first = 0.0 if 0 < first <= 0.05 * last else first
    x_ticks, y_ticks = ticks(first, last, 5), ticks(low, high, 5)
    y_texts = tick_labels(y_ticks)
    left, right = 28 + CHARACTER * 1.1 * max(map(len, y_texts)), WIDTH - 14.0
    top, bottom = 10.0 + legend_height + (12 if marks else 0), height - 50.0
    to_x = _scale((first, last), (left, right))
    to_y = _scale((low, high), (bottom, top))
    parts = [svg.text("axis middle", 13, (top + bottom) / 2, y_label, rotate=True), legend]
    for y, text in zip(y_ticks, y_texts, strict=True):
        parts.append(f'<path class="rule" d="M{left:.1f} {to_y(y):.1f}H{right:.1f}"/>')
        parts.append(svg.text("tick end", left - 6, to_y(y) + 5, text))
    for x, text in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(svg.text("tick middle", to_x(x), bottom + 20, text))
    parts.append(f'<path class="base" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    parts.append(svg.text("axis middle", (left + right) / 2, height - 8, x_label))
    parts += [_mark(mark, to_x, top, bottom, (left, right)) for mark in marks]
    for index, (_, segments) in enumerate(drawn):
        parts += [_line(index, [(to_x(x), to_y(y)) for x, y in segment]) for segment in segments]
    return _chart(
        title, _line_words(title, drawn, marks, x_label), height, "\n".join(filter(None, parts))
    )


def interval_chart(
    title: str,
    groups: Mapping[str, Sequence[Interval]],
    *,
    x_label: str,
    x_range: Range | None = None,
    reference: float | None = None,
    percent: bool = False,
) -> str:
    """A forest chart: a heading per group, and per row a point with its interval.

    A line at `reference`.

    `percent` writes the axis in percent of 1 (values stay shares). Rows whose numbers are not
    finite are left out.
    """
    kept = {
        name: [one for one in rows if all(map(math.isfinite, (one.value, one.low, one.high)))]
        for name, rows in groups.items()
    }
    kept = {name: rows for name, rows in kept.items() if rows}
    rows = [one for group in kept.values() for one in group]
    if not rows:
        return _chart(
            title,
            f"{title}: no data.",
            80,
            f'<text class="tick middle" x="{WIDTH / 2}" y="44">no data</text>',
        )
    widest = min(0.36 * WIDTH, 26 + CHARACTER * 1.1 * max(len(one.label) for one in rows))
    texts = 22 + CHARACTER * 1.04 * max(len(one.text) for one in rows)
    left, right = widest, WIDTH - max(14.0, texts)
    ends = [edge for one in rows for edge in (one.low, one.high, one.value)]
    low, high = x_range or _padded(
        ends if reference is None else [*ends, reference], from_zero=False
    )
    axis = ticks(low, high, 5)
    to_x = _scale((low, high), (left, right))
    parts, y = [], 4.0
    for name, group in kept.items():
        if name:
            parts.append(svg.text("group", 4, y + 18, svg.cut_end(name, int(WIDTH / CHARACTER))))
            y += 26
        for one in group:
            parts.append(_interval(one, to_x, y + 12, int((widest - 22) / CHARACTER)))
            y += 26
        y += 8
    lines = [f'<path class="rule" d="M{to_x(x):.1f} 4V{y:.1f}"/>' for x in axis]
    if reference is not None:
        lines.append(f'<path class="reference" d="M{to_x(reference):.1f} 4V{y:.1f}"/>')
    shown = tick_labels([100 * x for x in axis] if percent else axis)
    under = [
        svg.text("tick middle", to_x(x), y + 18, text) for x, text in zip(axis, shown, strict=True)
    ]
    under.append(svg.text("axis middle", (left + right) / 2, y + 40, x_label))
    words = [
        f"{name + ', ' if name else ''}{one.label}: {one.text or f'{one.value:.4g}, {one.low:.4g} to {one.high:.4g}'}"
        for name, group in kept.items()
        for one in group
    ]
    return _chart(
        title, f"{title}. {'; '.join(words)}.", round(y + 48), "\n".join([*lines, *parts, *under])
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round numbers within [low, high], a step of 1, 2 or 5 times a power of ten apart.

    The steps are those of Heckbert, "Nice numbers for graph labels" (Graphics Gems, 1990).
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """As many decimals as the steps between ticks need.

    Thousands as k, M, and beyond the usual range exponents.
    """
    largest = max((abs(value) for value in values), default=0)
    step = min((b - a for a, b in itertools.pairwise(values)), default=largest or 1.0)
    if largest >= 1e9 or 0 < step < 1e-4:
        return [f"{value:.3g}" for value in values]
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if largest >= 10 * size:
            return [
                f"{_fixed(value / size, step / size)}{letter}" if value else "0" for value in values
            ]
    return [_fixed(value, step) for value in values]


def _fixed(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:.{decimals}f}".replace("-", "−")


def _padded(values: Sequence[float], from_zero: bool = True) -> Range:
    """From 0 where nothing is negative, to 1 where all are large shares, else a little beyond the values."""
    low, high = min(values), max(values)
    if from_zero and low >= 0:
        return 0.0, 1.0 if 0.4 < high <= 1 else high * 1.05 or 1.0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _scale(domain: Range, pixels: Range) -> _Scale:
    return _Scale(domain[0], (domain[1] - domain[0]) or 1.0, *pixels)


@dataclass(frozen=True)
class _Scale:
    start: float
    span: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        share = min(1.0, max(0.0, (value - self.start) / self.span))
        return self.first + share * (self.last - self.first)


def _finite(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The points in unbroken pieces."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((float(x), float(y)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Per pixel column the first, lowest, highest and last point.

    What the eye would see of them all.
    """
    if len(points) <= 2 * WIDTH:
        return points
    columns: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        columns.setdefault(int(point[0]), []).append(point)
    kept = []
    for column in columns.values():
        chosen = {0, len(column) - 1}
        chosen |= {f(range(len(column)), key=lambda i: column[i][1]) for f in (min, max)}
        kept += [column[index] for index in sorted(chosen)]
    return kept


def _line(index: int, points: list[tuple[float, float]]) -> str:
    """A series' piece; points are drawn where they are few."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in _thinned(points))
    shown = f'<path class="line c{index % 6} d{index % 4}" d="M{path}"/>' if len(points) > 1 else ""
    few = points if len(points) <= 30 else []
    return shown + "".join(_point(index, x, y) for x, y in few)


def _point(colour: int, x: float, y: float) -> str:
    kind, r = SHAPES[colour % 4], 4.2
    css = f'class="point c{colour % 6}"'
    if kind == "circle":
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    }[kind]
    return f'<path {css} d="M{"L".join(f"{x + r * a:.1f} {y + r * b:.1f}" for a, b in corners)}Z"/>'


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Line samples with names, in as many rows as they need, and their height."""
    parts, x, y = [], 6.0, 16.0
    for index, name in enumerate(names):
        shown = svg.cut_end(name, 36)
        wide = 40 + CHARACTER * len(shown)
        if x > 6 and x + wide > WIDTH:
            x, y = 6.0, y + 22
        parts.append(f'<path class="line c{index % 6} d{index % 4}" d="M{x:.1f} {y - 4:.1f}h24"/>')
        parts.append(_point(index, x + 12, y - 4) if index else "")
        parts.append(svg.text("tick", x + 30, y, shown))
        x += wide
    return "".join(parts), round(y + 8)


def _mark(mark: Mark, to_x: _Scale, top: float, bottom: float, edges: Range) -> str:
    x, end = max(edges[0], to_x(mark.start) - 2), min(edges[1], to_x(mark.end) + 2)
    kind = "fatal" if mark.fatal else "warned"
    middle = (x + end) / 2
    return (
        f'<g class="mark {kind}"><title>{svg.escaped(mark.title)}</title>'
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{max(2.0, end - x):.1f}" height="{bottom - top:.1f}"/>'
        f'<path d="M{middle:.1f} {top:.1f}l-6 -10h12Z"/></g>'
    )


def _interval(one: Interval, to_x: _Scale, y: float, room: int) -> str:
    low, high = to_x(one.low), to_x(one.high)
    css = f"c{one.colour % 6}"
    return (
        f"<g><title>{svg.escaped(f'{one.label} {one.text}')}</title>"
        + svg.text("tick", 10, y + 5, svg.cut_end(one.label, room))
        + f'<path class="whisker {css}" d="M{low:.1f} {y:.1f}H{high:.1f}m0 -5v10M{low:.1f} {y - 5:.1f}v10"/>'
        + _point(one.colour, to_x(one.value), y)
        + (svg.text("tick end", WIDTH - 4, y + 5, one.text) if one.text else "")
        + "</g>"
    )


def _line_words(
    title: str,
    drawn: Sequence[tuple[str, list[list[tuple[float, float]]]]],
    marks: Sequence[Mark],
    x_label: str,
) -> str:
    said = []
    for name, segments in drawn:
        points = [point for segment in segments for point in segment]
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            said.append(f"{name} goes from {y0:.3g} at {x0:g} to {y1:.3g} at {x1:g}")
    marked = f" Marked: {'; '.join(mark.title for mark in marks)}." if marks else ""
    return f"{title}, over the {x_label}: {'; '.join(said)}.{marked}"


def _chart(title: str, words: str, height: int, inner: str) -> str:
    return svg.document("chart", title, WIDTH, height, inner, words=words)
