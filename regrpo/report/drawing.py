"""Charts as inline SVG: the same numbers give the same bytes.

Series differ by dash and point shape besides colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regrpo.core.text import cut
from regrpo.report import svg

WIDTH = 440
"""Of a chart's coordinates.

About that many pixels on a laptop, fewer on a phone, where the text is drawn larger.
"""
LINE_CHART_HEIGHT = 250
CHARACTER = 8.2
"""Width of a character of the larger text, in chart coordinates; what labels are given room by."""
ROW = 26
"""Height of an interval chart's row."""
POINT_RADIUS = 4.2
CORNERS = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
}
"""Of a point's shape, in radii around its centre."""
SHAPES = ("circle", *CORNERS)
Range = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One named line: (x, y) points in order of x. What is not finite leaves a gap."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A band from `start` to `end` on the x axis with a title; `fatal` is the stronger colour."""

    start: float
    end: float
    title: str
    fatal: bool = False


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart.

    `text` stands at its right end; `colour` (0 to 5) chooses the series' colour and point shape.
    """

    label: str
    value: float
    low: float
    high: float
    text: str = ""
    colour: int = 0

    @property
    def words(self) -> str:
        shown = self.text or f"{self.value:.4g}, {self.low:.4g} to {self.high:.4g}"
        return f"{self.label}: {shown}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over a common x axis, as measured: nothing is smoothed.

    The y axis starts at 0 where no value is negative. Lines of more points than the chart has
    pixels keep the lowest and highest of each pixel. Without any finite point the chart says "no
    data".
    """
    lines = [_unbroken(one.points) for one in series]
    points = list(itertools.chain.from_iterable(itertools.chain.from_iterable(lines)))
    if not points:
        return _no_data(title, LINE_CHART_HEIGHT)

    names = [one.name for one in series]
    legend, legend_height = _legend(names) if len(series) > 1 else ("", 0)
    plot = _plot(points, top=10.0 + legend_height + (_MARK_ROOM if marks else 0))
    parts = [legend] if legend else []
    parts += _axes(plot, x_label, y_label)
    parts += [_mark(mark, plot) for mark in marks]
    for index, pieces in enumerate(lines):
        for piece in pieces:
            parts.append(_line(index, [(plot.x(x), plot.y(y)) for x, y in piece]))

    courses = []
    for name, pieces in zip(names, lines, strict=True):
        if pieces:
            courses.append(_course(name, pieces))
    words = f"{title}, over the {x_label}: {'; '.join(courses)}."
    if marks:
        words += f" Marked: {'; '.join(mark.title for mark in marks)}."
    return _chart(title, words, LINE_CHART_HEIGHT, "\n".join(parts))


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

    There is a dashed line at `reference`. `percent` writes the axis in percent of 1 (values stay
    shares). Rows whose numbers are not finite are left out.
    """
    groups = _finite_rows(groups)
    rows = list(itertools.chain.from_iterable(groups.values()))
    if not rows:
        return _no_data(title, 80)

    longest_label = max(len(row.label) for row in rows)
    longest_text = max(len(row.text) for row in rows)
    left = min(0.36 * WIDTH, 26 + CHARACTER * 1.1 * longest_label)
    right = WIDTH - max(14.0, 22 + CHARACTER * 1.04 * longest_text)
    x = _Scale(x_range or _range_of(rows, reference), (left, right))

    drawn_rows, bottom = _rows(groups, x, label_width=left - 22)
    axis = ticks(*x.domain, 5)
    parts = [svg.path("rule", "M", x(value), 4, "V", bottom) for value in axis]
    if reference is not None:
        parts.append(svg.path("reference", "M", x(reference), 4, "V", bottom))
    parts += drawn_rows
    labels = tick_labels([100 * value for value in axis] if percent else axis)
    for value, label in zip(axis, labels, strict=True):
        parts.append(svg.text("tick middle", x(value), bottom + 18, label))
    parts.append(svg.text("axis middle", (left + right) / 2, bottom + 40, x_label))

    words = []
    for name, group in groups.items():
        before = f"{name}, " if name else ""
        words += [before + row.words for row in group]
    return _chart(title, f"{title}. {'; '.join(words)}.", round(bottom + 48), "\n".join(parts))


# --- scales and ticks -----------------------------------------------------------------------------


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round numbers within [low, high].

    They are 1, 2 or 5 times a power of ten apart, as in Heckbert, "Nice numbers for graph labels"
    (Graphics Gems, 1990).
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    steps = [size * magnitude for size in (1, 2, 5, 10)]
    # The slack keeps rounding errors from dropping a tick at the very end of the range.
    step = next(step for step in steps if step >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """As many decimals as the steps between ticks need.

    Thousands as k, M, and beyond the usual range exponents.
    """
    largest = max((abs(value) for value in values), default=0)
    step = min((b - a for a, b in itertools.pairwise(values)), default=largest or 1.0)
    if largest >= 1e9 or 0 < step < 1e-4:
        return [f"{value:.3g}" for value in values]
    if largest >= 1e7:
        return [_scaled(value, step, 1e6, "M") for value in values]
    if largest >= 1e4:
        return [_scaled(value, step, 1e3, "k") for value in values]
    return [_fixed(value, step) for value in values]


def _scaled(value: float, step: float, size: float, letter: str) -> str:
    if value == 0:
        return "0"
    return _fixed(value / size, step / size) + letter


def _fixed(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    positive_zero = value + 0.0  # a tick at -0.0 would be "−0"
    return f"{positive_zero:.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class _Scale:
    """From numbers to chart coordinates; what lies outside is drawn at the edge."""

    domain: Range
    pixels: Range

    def __call__(self, value: float) -> float:
        low, high = self.domain
        first, last = self.pixels
        share = (value - low) / ((high - low) or 1.0)
        return first + min(1.0, max(0.0, share)) * (last - first)


def _axis_from_zero(values: Sequence[float]) -> Range:
    """From 0 where nothing is negative, to 1 where all are large shares, else a little beyond."""
    low, high = min(values), max(values)
    if low < 0:
        return _padded(low, high)
    if 0.4 < high <= 1:  # shares: charts of the same kind have the same axis
        return 0.0, 1.0
    return 0.0, high * 1.05 or 1.0


def _padded(low: float, high: float) -> Range:
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _chart(title: str, words: str, height: int, inner: str) -> str:
    return svg.document("chart", title, WIDTH, height, inner, words=words)


def _no_data(title: str, height: int) -> str:
    notice = svg.text("tick middle", WIDTH / 2, height / 2, "no data")
    return _chart(title, f"{title}: no data.", height, notice)


# --- line charts ----------------------------------------------------------------------------------

_MARK_ROOM = 12
"""Height of the triangles over a line chart's marks."""


@dataclass(frozen=True)
class _Plot:
    """The scales of a line chart."""

    x: _Scale
    y: _Scale


def _plot(points: Sequence[Point], top: float) -> _Plot:
    xs = [x for x, _ in points]
    ys = [y for _, y in points]
    first, last = min(xs), max(xs)
    if 0 < first <= 0.05 * last:  # optimizer steps count from 1: show where they began
        first = 0.0
    low, high = _axis_from_zero(ys)
    widest = max(len(label) for label in tick_labels(ticks(low, high, 5)))
    left = 28 + CHARACTER * 1.1 * widest
    return _Plot(
        x=_Scale((first, last), (left, WIDTH - 14.0)),
        y=_Scale((low, high), (LINE_CHART_HEIGHT - 50.0, top)),
    )


def _axes(plot: _Plot, x_label: str, y_label: str) -> list[str]:
    """Both axes' ticks and labels, a rule across for each tick of the y axis, and the base line."""
    left, right = plot.x.pixels
    bottom, top = plot.y.pixels
    middle = (top + bottom) / 2
    turn = f"rotate(-90 13 {middle:.1f})"
    parts = [
        svg.element("text", "axis middle", svg.escaped(y_label), x=13, y=middle, transform=turn)
    ]
    values = ticks(*plot.y.domain, 5)
    for value, label in zip(values, tick_labels(values), strict=True):
        y = plot.y(value)
        parts.append(svg.path("rule", "M", left, y, "H", right))
        parts.append(svg.text("tick end", left - 6, y + 5, label))
    values = ticks(*plot.x.domain, 5)
    for value, label in zip(values, tick_labels(values), strict=True):
        parts.append(svg.text("tick middle", plot.x(value), bottom + 20, label))
    parts.append(svg.path("base", "M", left, bottom, "H", right))
    parts.append(svg.text("axis middle", (left + right) / 2, LINE_CHART_HEIGHT - 8, x_label))
    return parts


def _unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """The finite points, in pieces that nothing interrupts."""
    pieces: list[list[Point]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((float(x), float(y)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _thinned(points: list[Point]) -> list[Point]:
    """Per pixel column the first, lowest, highest and last point: what the eye sees of them all."""
    if len(points) <= 2 * WIDTH:
        return points
    kept: list[Point] = []
    for _, column in itertools.groupby(points, key=lambda point: int(point[0])):
        members = list(column)
        heights = [y for _, y in members]
        lowest, highest = heights.index(min(heights)), heights.index(max(heights))
        chosen = {0, lowest, highest, len(members) - 1}
        kept += [members[index] for index in sorted(chosen)]
    return kept


def _line(index: int, points: list[Point]) -> str:
    """A series' piece; points are drawn where they are few."""
    drawn = ""
    if len(points) > 1:
        coordinates = itertools.chain.from_iterable(_thinned(points))
        drawn = svg.path(_line_class(index), "M", *coordinates)
    if len(points) <= 30:
        drawn += "".join(_point(index, x, y) for x, y in points)
    return drawn


def _line_class(index: int) -> str:
    """Six colours and four dashes that templates/page.html.j2 styles."""
    return f"line c{index % 6} d{index % 4}"


def _point(colour: int, x: float, y: float) -> str:
    shape = SHAPES[colour % 4]
    css = f"point c{colour % 6}"
    if shape == "circle":
        return svg.element("circle", css, cx=x, cy=y, r=POINT_RADIUS)
    corners: list[float] = []
    for right, down in CORNERS[shape]:
        corners += [x + POINT_RADIUS * right, y + POINT_RADIUS * down]
    return svg.path(css, "M", *corners, "Z")


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Line samples with names, in as many rows as they need, and their height."""
    parts = []
    x = 6.0
    y = 16.0
    for index, name in enumerate(names):
        shown = cut(name, 36)
        width = 40 + CHARACTER * len(shown)
        if x > 6 and x + width > WIDTH:
            x = 6.0
            y += 22
        parts.append(svg.path(_line_class(index), "M", x, y - 4, "h", 24))
        if index > 0:
            parts.append(_point(index, x + 12, y - 4))
        parts.append(svg.text("tick", x + 30, y, shown))
        x += width
    return "".join(parts), round(y + 8)


def _mark(mark: Mark, plot: _Plot) -> str:
    """A shaded band under a triangle, a little wider than its steps so that one step shows."""
    left, right = plot.x.pixels
    bottom, top = plot.y.pixels
    start = max(left, plot.x(mark.start) - 2)
    end = min(right, plot.x(mark.end) + 2)
    band = svg.element("rect", x=start, y=top, width=max(2.0, end - start), height=bottom - top)
    triangle = svg.path("", "M", (start + end) / 2, top, "l", -6, -10, "h", 12, "Z")
    title = svg.element("title", content=svg.escaped(mark.title))
    kind = "fatal" if mark.fatal else "warned"
    return svg.element("g", f"mark {kind}", title + band + triangle)


def _course(name: str, pieces: list[list[Point]]) -> str:
    """Where a line begins and ends, in words."""
    (x0, y0), (x1, y1) = pieces[0][0], pieces[-1][-1]
    return f"{name} goes from {y0:.3g} at {x0:g} to {y1:.3g} at {x1:g}"


# --- interval charts ------------------------------------------------------------------------------


def _finite_rows(groups: Mapping[str, Sequence[Interval]]) -> dict[str, list[Interval]]:
    """The rows that can be drawn, of the groups that have any."""
    kept = {}
    for name, rows in groups.items():
        finite = [row for row in rows if math.isfinite(row.value + row.low + row.high)]
        if finite:
            kept[name] = finite
    return kept


def _range_of(rows: Sequence[Interval], reference: float | None) -> Range:
    """A little beyond all intervals and the reference."""
    ends = [] if reference is None else [reference]
    for row in rows:
        ends += [row.low, row.high, row.value]
    return _padded(min(ends), max(ends))


def _rows(
    groups: Mapping[str, Sequence[Interval]], x: _Scale, label_width: float
) -> tuple[list[str], float]:
    """Headings and rows from the top down, and where they end."""
    parts = []
    y = 4.0
    for name, group in groups.items():
        if name:
            parts.append(svg.text("group", 4, y + 18, cut(name, int(WIDTH / CHARACTER))))
            y += ROW
        for row in group:
            parts.append(_interval(row, x, y + 12, int(label_width / CHARACTER)))
            y += ROW
        y += 8
    return parts, y


def _interval(row: Interval, x: _Scale, y: float, characters: int) -> str:
    """A whisker with end bars and its point, the label left of it and the text right."""
    low, high = x(row.low), x(row.high)
    line = ("M", low, y, "H", high)
    bars = ("m", 0, -5, "v", 10, "M", low, y - 5, "v", 10)
    parts = [
        svg.element("title", content=svg.escaped(f"{row.label} {row.text}")),
        svg.text("tick", 10, y + 5, cut(row.label, characters)),
        svg.path(f"whisker c{row.colour % 6}", *line, *bars),
        _point(row.colour, x(row.value), y),
    ]
    if row.text:
        parts.append(svg.text("tick end", WIDTH - 4, y + 5, row.text))
    return svg.element("g", content="".join(parts))
