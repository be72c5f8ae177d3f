"""Charts are well-formed SVG and say what the numbers say; same numbers, same bytes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from regrpo.report import drawing
from regrpo.report.drawing import Mark, Row, Series

HOSTILE = '</svg><script>alert(1)</script>&"\x00\x1b[31m\u202e'


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each drawn line, in chart coordinates.

    The legend's samples are relative and left out.
    """
    found = []
    for path in re.findall(r'class="line [^"]*" d="M ([^"h]*)"', svg):
        numbers = [float(number) for number in path.split()]
        found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def line_chart(*series: Series, marks: tuple[Mark, ...] = ()) -> str:
    return drawing.line_chart("Reward", series, x_label="step", y_label="share", marks=marks)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 80, 5, [0, 20, 40, 60, 80]),
        (-0.3, 0.7, 5, [-0.2, 0, 0.2, 0.4, 0.6]),
        (3, 3, 5, [3]),
        (1e-7, 3e-7, 4, [1e-7, 1.5e-7, 2e-7, 2.5e-7, 3e-7]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(
    low: float, high: float, count: int, expected: list[float]
) -> None:
    assert drawing.ticks(low, high, count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1 * 6, "0.6"),
        (-20, "−20"),
        (-0.0, "0"),
        (40000, "40000"),
        (5e6, "5e+06"),
        (2e-7, "2e−07"),
    ],
)
def test_a_ticks_label_is_short_and_exact(value: float, expected: str) -> None:
    assert drawing.tick_label(value) == expected


def test_a_line_chart_names_itself_its_axes_and_its_series() -> None:
    svg = line_chart(Series("train", [(1, 0.1), (40, 0.9)]), Series("dev", [(0, 0.2), (40, 0.8)]))
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert [element.text for element in root.iter("title")] == ["Reward"]
    (words,) = (element.text for element in root.iter("desc"))
    assert (
        words == "Reward, over the step: train goes from 0.1 at 1 to 0.9 at 40; "
        "dev goes from 0.2 at 0 to 0.8 at 40."
    )
    assert {"step", "share", "train", "dev", "0", "1", "20", "40"} <= set(texts(svg))
    assert svg == line_chart(
        Series("train", [(1, 0.1), (40, 0.9)]), Series("dev", [(0, 0.2), (40, 0.8)])
    )


def test_series_differ_by_dash_and_shape_not_by_colour_alone() -> None:
    svg = line_chart(*(Series(f"s{index}", [(0, 0.1 * index), (1, 0.5)]) for index in range(4)))
    assert all(f'class="line c{index} d{index}"' in svg for index in range(4))
    assert len({drawing._point(index, 0, 0).replace(f" c{index}", "") for index in range(4)}) == 4


def test_points_stand_where_their_numbers_say_and_gaps_stay_open() -> None:
    points = [(0.0, 0.0), (1.0, 0.5), (2.0, math.nan), (3.0, 1.0), (4.0, 0.0)]
    before, after = lines(line_chart(Series("one", points)))
    assert (len(before), len(after)) == (2, 2)
    assert before[0][1] == after[1][1] > before[1][1] > after[0][1]  # y grows downwards in SVG
    assert after[1][0] - after[0][0] == pytest.approx(before[1][0] - before[0][0], abs=0.2)


def test_a_long_line_keeps_its_extremes_and_stays_small() -> None:
    points = [(float(i), 0.5 + 0.1 * math.sin(i)) for i in range(50_000)]
    points[31_234] = (31_234.0, 0.99)
    svg = line_chart(Series("one", points))
    assert len(svg) < 60_000
    (line,) = lines(svg)
    top = min(y for _, y in line)
    assert sum(1 for _, y in line if y == top) == 1
    assert min(y for x, y in line if abs(x - line[0][0]) < 10) > top + 20


def test_marks_say_what_they_mark() -> None:
    svg = line_chart(
        Series("one", [(0, 0.1), (50, 0.9)]),
        marks=(Mark(10, 20, "too long"), Mark(30, 30, "NaN", True)),
    )
    groups = [one for one in ET.fromstring(svg).iter("g") if "mark" in str(one.get("class"))]
    assert [(one.get("class"), one.findtext("title")) for one in groups] == [
        ("mark warned", "too long"),
        ("mark fatal", "NaN"),
    ]
    wide, narrow = (float(str(rect.get("width"))) for one in groups for rect in one.iter("rect"))
    assert wide > 5 * narrow > 0
    assert "Marked: too long; NaN." in svg


def test_an_interval_chart_shows_each_row_at_its_numbers() -> None:
    rows = {
        "first": [Row("base", 0.1, 0.05, 0.2, "10 %", 2)],
        "second": [Row("grpo", 0.9, 0.8, 0.95, "90 %")],
    }
    svg = drawing.interval_chart("Accuracy", rows, x_label="percent", x_range=(0, 1), percent=True)
    assert {"first", "second", "base", "grpo", "10 %", "90 %", "0", "100", "percent"} <= set(
        texts(svg)
    )
    low, high = (
        float(x) for x in re.findall(r'class="whisker c0" d="M ([\d.]+) [\d.]+ H ([\d.]+)', svg)[0]
    )
    ticks = {
        element.text: float(str(element.get("x"))) for element in ET.fromstring(svg).iter("text")
    }
    assert low == pytest.approx(ticks["0"] + 0.8 * (ticks["100"] - ticks["0"]), abs=0.3)
    assert high == pytest.approx(ticks["0"] + 0.95 * (ticks["100"] - ticks["0"]), abs=0.3)
    assert "first, base: 10 %" in svg


def test_a_reference_is_always_inside_the_chart() -> None:
    svg = drawing.interval_chart("d", {"": [Row("a", 5, 4, 6)]}, x_label="points", reference=0)
    (x,) = re.findall(r'class="reference" d="M ([\d.]+)', svg)
    (low,) = re.findall(r'class="whisker c0" d="M ([\d.]+)', svg)
    assert 0 < float(x) < float(low)


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(math.inf, 1.0)]])
def test_without_data_a_chart_says_so(points: list[tuple[float, float]]) -> None:
    assert "no data" in texts(line_chart(Series("one", points)))
    assert "no data" in texts(
        drawing.interval_chart("d", {"g": [Row("a", math.nan, 0, 1)]}, x_label="x", reference=0)
    )


@pytest.mark.parametrize(
    "points", [[(5.0, 3.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, -2.0), (1.0, -1.0)], [(1.0, 1e12)]]
)
def test_degenerate_ranges_still_draw_inside_the_chart(points: list[tuple[float, float]]) -> None:
    root = ET.fromstring(line_chart(Series("one", points)))
    for element in root.iter("text"):
        assert 0 <= float(str(element.get("x"))) <= drawing.WIDTH
        assert 0 <= float(str(element.get("y"))) <= 250


def test_hostile_names_are_text_and_nothing_else() -> None:
    svg = drawing.line_chart(
        HOSTILE,
        [Series(HOSTILE, [(0, 1), (1, 2)])] * 2,
        x_label=HOSTILE,
        y_label=HOSTILE,
        marks=[Mark(0, 1, HOSTILE)],
    )
    svg += drawing.interval_chart(
        HOSTILE, {HOSTILE: [Row(HOSTILE, 1, 0, 2, HOSTILE)]}, x_label=HOSTILE
    )
    assert "<script" not in svg
    assert not set(svg) & {"\x00", "\x1b", "\u202e"}
    ET.fromstring(f"<both>{svg}</both>")
