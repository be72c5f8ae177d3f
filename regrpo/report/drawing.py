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
SHAPES = (
    "m -4.2 0 a 4.2 4.2 0 1 0 8.4 0 a 4.2 4.2 0 1 0 -8.4 0 z",
    "m -3.8 -3.8 h 7.6 v 7.6 h -7.6 z",
    "m 0 -5.2 l 5.2 5.2 l -5.2 5.2 l -5.2 -5.2 z",
    "m 0 -5 l 4.8 8.8 h -9.6 z",
)
"""A point's shapes as paths around its centre: circle, square, diamond, triangle."""
MARK_ROOM = 12
"""Height of the triangles over a line chart's marks."""
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
class Row:
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
    pieces = {one.name: _unbroken(one.points) for one in series}
    every_piece = itertools.chain.from_iterable(pieces.values())
    points = list(itertools.chain.from_iterable(every_piece))
    if not points:
        return _no_data(title, LINE_CHART_HEIGHT)
    legend, top = _legend(list(pieces)) if len(pieces) > 1 else ("", 10)
    x, y = _scales(points, top + (MARK_ROOM if marks else 0))
    parts = [legend, *_axes(x, y, x_label, y_label)]
    parts += [_mark(mark, x, y) for mark in marks]
    courses = []
    for index, (name, of_line) in enumerate(pieces.items()):
        for piece in of_line:
            parts.append(_line(index, [(x(one), y(other)) for one, other in piece]))
        if of_line:
            (x0, y0), (x1, y1) = of_line[0][0], of_line[-1][-1]
            courses.append(f"{name} goes from {y0:.3g} at {x0:g} to {y1:.3g} at {x1:g}")
    words = f"{title}, over the {x_label}: {'; '.join(courses)}."
    if marks:
        words += f" Marked: {'; '.join(mark.title for mark in marks)}."
    return _chart(title, words, LINE_CHART_HEIGHT, parts)


def interval_chart(
    title: str,
    groups: Mapping[str, Sequence[Row]],
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
    parts = []
    for value in ticks(*x.domain, 5):
        parts.append(svg.path("rule", "M", x(value), 4, "V", bottom))
        label = tick_label(100 * value if percent else value)
        parts.append(svg.text("tick middle", x(value), bottom + 18, label))
    if reference is not None:
        parts.append(svg.path("reference", "M", x(reference), 4, "V", bottom))
    parts.append(svg.text("axis middle", (left + right) / 2, bottom + 40, x_label))

    words = []
    for name, group in groups.items():
        before = f"{name}, " if name else ""
        words += [before + row.words for row in group]
    parts += drawn_rows
    return _chart(title, f"{title}. {'; '.join(words)}.", round(bottom + 48), parts)


# --- scales and ticks -----------------------------------------------------------------------------


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round numbers within [low, high].

    They are 1, 2 or 5 times a power of ten apart, as in Heckbert, "Nice numbers for graph labels"
    (Graphics Gems, 1990).
    """
    if not high > low:
        return [low]
    # The slack keeps rounding errors from dropping a tick at the very end of the range.
    raw = (high - low) / count * (1 - 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's number in at most six digits."""
    positive_zero = value + 0.0  # a tick at -0.0 would be "−0"
    return f"{positive_zero:.6g}".replace("-", "−")


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


def _chart(title: str, words: str, height: int, parts: Sequence[str]) -> str:
    return svg.document("chart", title, WIDTH, height, "\n".join(parts), words=words)


def _no_data(title: str, height: int) -> str:
    notice = svg.text("tick middle", WIDTH / 2, height / 2, "no data")
    return _chart(title, f"{title}: no data.", height, [notice])


# --- line charts ----------------------------------------------------------------------------------


def _scales(points: Sequence[Point], top: float) -> tuple[_Scale, _Scale]:
    """Of both axes, the left margin as wide as the labels of the y axis."""
    xs, ys = zip(*points, strict=True)
    first, last = min(xs), max(xs)
    if 0 < first <= 0.05 * last:  # optimizer steps count from 1: show where they began
        first = 0.0
    y = _Scale(_axis_from_zero(ys), (LINE_CHART_HEIGHT - 50.0, top))
    widest = max(len(tick_label(value)) for value in ticks(*y.domain, 5))
    left = 28 + CHARACTER * 1.1 * widest
    return _Scale((first, last), (left, WIDTH - 14.0)), y


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> list[str]:
    """Both axes' ticks and labels, a rule across for each tick of the y axis, and the base line."""
    (left, right), (bottom, top) = x.pixels, y.pixels
    middle = (top + bottom) / 2
    turn = f"rotate(-90 13 {middle:.1f})"
    label = svg.escaped(y_label)
    parts = [svg.element("text", "axis middle", label, x=13, y=middle, transform=turn)]
    for value in ticks(*y.domain, 5):
        parts.append(svg.path("rule", "M", left, y(value), "H", right))
        parts.append(svg.text("tick end", left - 6, y(value) + 5, tick_label(value)))
    for value in ticks(*x.domain, 5):
        parts.append(svg.text("tick middle", x(value), bottom + 20, tick_label(value)))
    parts.append(svg.path("base", "M", left, bottom, "H", right))
    parts.append(svg.text("axis middle", (left + right) / 2, LINE_CHART_HEIGHT - 8, x_label))
    return parts


def _unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """The finite points, in pieces that nothing interrupts."""
    pieces = itertools.groupby(points, key=lambda point: math.isfinite(sum(point)))
    return [list(piece) for is_finite, piece in pieces if is_finite]


def _thinned(points: list[Point]) -> list[Point]:
    """Per pixel column the lowest and the highest point: what the eye sees of them all."""
    if len(points) <= 2 * WIDTH:
        return points
    kept: list[Point] = []
    for _, column in itertools.groupby(points, key=lambda point: int(point[0])):
        by_height = sorted(column, key=lambda point: point[1])
        kept += sorted({by_height[0], by_height[-1]})
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
    return svg.path(f"point c{colour % 6}", "M", x, y, SHAPES[colour % 4])


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Line samples with names, in as many rows as they need, and where they end."""
    parts = []
    x, y = 6.0, 16
    for index, name in enumerate(names):
        shown = cut(name, 36)
        width = 40 + CHARACTER * len(shown)
        if x > 6 and x + width > WIDTH:
            x, y = 6.0, y + 22
        parts.append(svg.path(_line_class(index), "M", x, y - 4, "h", 24))
        if index > 0:
            parts.append(_point(index, x + 12, y - 4))
        parts.append(svg.text("tick", x + 30, y, shown))
        x += width
    return "".join(parts), y + 18


def _mark(mark: Mark, x: _Scale, y: _Scale) -> str:
    """A shaded band under a triangle, a little wider than its steps so that one step shows."""
    bottom, top = y.pixels
    start, end = x(mark.start) - 2, x(mark.end) + 2
    band = svg.element("rect", x=start, y=top, width=end - start, height=bottom - top)
    triangle = svg.path("", "M", (start + end) / 2, top, "l", -6, -10, "h", 12, "Z")
    title = svg.element("title", content=svg.escaped(mark.title))
    kind = "fatal" if mark.fatal else "warned"
    return svg.element("g", f"mark {kind}", title + band + triangle)


# --- interval charts ------------------------------------------------------------------------------


def _finite_rows(groups: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows that can be drawn, of the groups that have any."""
    kept = {}
    for name, rows in groups.items():
        kept[name] = [row for row in rows if math.isfinite(row.value + row.low + row.high)]
    return {name: rows for name, rows in kept.items() if rows}


def _range_of(rows: Sequence[Row], reference: float | None) -> Range:
    """A little beyond all intervals and the reference."""
    ends = [] if reference is None else [reference]
    for row in rows:
        ends += [row.low, row.high, row.value]
    return _padded(min(ends), max(ends))


def _rows(
    groups: Mapping[str, Sequence[Row]], x: _Scale, label_width: float
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


def _interval(row: Row, x: _Scale, y: float, characters: int) -> str:
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
