"""The blocks of a comparison written as plain text (100 columns) or as Markdown.

Nothing that a file or a model wrote reaches a terminal as it stands: what does not print is spelled
out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from regrpo.compare.blocks import Block, Table, blocks
from regrpo.core.text import cut, fence, one_line, prose

Json = dict[str, Any]
WIDTH = 100
NARROWEST = 8
"""Characters to which a column is cut at most, so that a table keeps to WIDTH."""


def text(result: Json) -> str:
    """The comparison as plain text, at most WIDTH columns where words allow it."""
    shown = ["\n".join(_as_text(block)) for block in blocks(result)]
    return "\n\n".join(shown) + "\n"


def markdown(result: Json) -> str:
    """The comparison as GitHub's Markdown."""
    shown = ["\n\n".join(_as_markdown(block)) for block in blocks(result)]
    return "\n\n".join(shown) + "\n"


def _as_text(block: Block) -> Iterator[str]:
    yield block.title
    for sentence in block.sentences:
        line = one_line(sentence)
        yield textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ")
    for line in _aligned(block.table):
        yield f"  {line}"
    for line in block.lines:
        yield f"  {one_line(line, WIDTH - 2)}"


def _aligned(table: Table) -> Iterator[str]:
    shown = [list(map(one_line, row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    gaps = 2 * (len(widths) - 1)
    while sum(widths) + gaps > WIDTH - 2 and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    for row in shown:
        cells = [cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _as_markdown(block: Block) -> Iterator[str]:
    yield f"### {prose(block.title)}"
    if block.sentences:
        yield "\n".join(f"- {prose(sentence)}" for sentence in block.sentences)
    if block.table:
        head, *rows = [list(map(prose, row)) for row in block.table]
        lines = [head, ["---"] * len(head), *rows]
        yield "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if block.lines:
        yield fence("\n".join(f"  {one_line(line)}" for line in block.lines), "text")
