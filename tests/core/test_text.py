"""Text and numbers as people see them."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from regrpo.core import text

HOSTILE = "a\x1b[31m\u202eb\x00"


def test_what_does_not_print_is_spelled_out() -> None:
    assert text.visible(HOSTILE) == text.one_line(HOSTILE) == "a\\x1b[31m\\u202eb\\x00"
    assert text.visible("a\n\tb") == "a\n    b"
    assert text.one_line("a\n\tb") == "a⏎⇥b"


@pytest.mark.parametrize("shown", [text.visible, text.one_line])
def test_long_text_is_cut_to_its_limit(shown: object) -> None:
    assert callable(shown)
    assert shown("x" * 50, 10) == "x" * 9 + "…"
    assert shown("x" * 10, 10) == "x" * 10
    assert len(shown("\x00" * 50, 10)) == 10


def test_no_text_opens_a_comment() -> None:
    assert "<!--" not in text.visible("<!-- varies from run to run: begin -->")
    assert "<!--" not in text.prose("<!-- begin -->")


@pytest.mark.parametrize(
    "shown", ["a|b", "`", "``a` ", "<think>", "a\nb", "\\", "", " x", "x" * 400, "<!-- c -->"]
)
def test_a_code_span_shows_its_text_in_a_table_cell(shown: str) -> None:
    table = f"| a | b |\n|---|---|\n| {text.code(shown)} | end |\n"
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(table)
    cells = re.findall(r"<td><code>(.*?)</code></td>\n<td>end</td>", page)
    assert [html.unescape(cell) for cell in cells] == [text.one_line(shown, 300)]


def test_prose_is_no_markup() -> None:
    shown = "# *a* [b](c) `d` <b>e</b> ~~f~~ $g$\nh"
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text.prose(shown))
    assert html.unescape(page) == f"<p>{shown}</p>\n".replace("\n", " ", 1)


def test_a_fence_is_longer_than_any_in_its_text() -> None:
    assert text.fence("```\na", "text") == "````text\n```\na\n````"


def test_a_label_of_a_diagram_holds_no_grammar() -> None:
    assert text.mermaid('a"]--x') == "a#34;#93;--x"


def test_results_are_said_by_their_kind() -> None:
    assert text.score(0.28, "binary") == "28.0 %"
    assert text.score(0.28765, "continuous") == "0.2877"
    assert text.score(0.28765) == "0.288"
    assert text.estimate(0.28, (0.232, 0.333), "binary") == "28.0 % [23.2, 33.3]"
    assert text.change(0.687, (0.633, 0.74), "binary") == "+68.7 points [+63.3, +74.0]"
    assert text.change(-0.031, (-0.05, 0.01)) == "-0.031 [-0.050, +0.010]"
    assert text.size(None, "binary") == "not available"
    assert text.size(0.049, "binary") == "4.9 points"


def test_p_values_are_said_alike_in_tables_and_sentences() -> None:
    assert [text.p_value(p) for p in (0.0004, 0.0312, None)] == ["< 0.001", "0.031", "—"]
    assert [text.p_equals(p) for p in (0.0004, 0.0312)] == ["p < 0.001", "p = 0.031"]


def test_whether_a_difference_is_told_from_zero() -> None:
    assert text.distinguishable((-0.1, 0.2)) == "not distinguishable from zero"
    assert text.distinguishable((0.1, 0.2)) == "distinguishable from zero"


def test_numbers() -> None:
    shown = [text.number(value) for value in (1234567, 1234.5, 0.00123456, 0, None)]
    assert shown == ["1,234,567", "1,234.500", "0.00123", "0", "not available"]
    assert [text.count(n, "run") for n in (1, 1200)] == ["1 run", "1,200 runs"]
    assert [text.or_dash(value, ".2f") for value in (1.234, None)] == ["1.23", "—"]


def test_neighbouring_numbers_are_joined() -> None:
    assert text.ranges([9, 3, 4, 5]) == "3–5, 9"
    assert text.ranges([]) == ""
    assert text.ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, …, 38"
