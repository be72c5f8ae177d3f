"""The lineage graph drawn: runs as boxes in columns from source to card, and lines between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regrpo.records import graph as graphs
from regrpo.records.graph import Graph
from regrpo.report import svg

BOX_WIDTH = 204
LINE_HEIGHT = 17
COLUMN_GAP = 64
LANE_HEIGHT = 9
TITLE = "Lineage: each box is a run of a stage with what it made; lines go from maker to reader"


@dataclass(frozen=True)
class _Box:
    """Where a run's box stands, in pixels."""

    x: int
    y: int
    height: int

    @property
    def right(self) -> int:
        return self.x + BOX_WIDTH


def lineage(graph: Graph, kinds: Mapping[str, str] | None = None) -> str:
    """The runs as boxes that list what they made.

    `kinds` (run → good, bad, unsure) colours boxes. A line to the next column goes straight; what
    is read further on goes along a lane of its maker's below the boxes.
    """
    kinds = kinds or {}
    columns = _columns(graph)
    boxes: dict[str, _Box] = {}
    bottoms: dict[int, int] = {}
    drawn_boxes = []
    for run, column in columns.items():
        lines = _lines(graph, run)
        box = _Box(
            x=10 + column * (BOX_WIDTH + COLUMN_GAP),
            y=bottoms.get(column, 10),
            height=LINE_HEIGHT * len(lines) + 14,
        )
        boxes[run] = box
        bottoms[column] = box.y + box.height + 24
        drawn_boxes.append(_drawn_box(box, lines, kinds.get(graph.runs[run].run, "plain")))
    bottom = max(bottoms.values(), default=20)

    edges: list[str] = []
    lanes: dict[str, int] = {}
    for reader, column in columns.items():
        for maker in graph.made_from[reader]:
            if maker in boxes and column == columns[maker] + 1:
                edges.append(_edge(boxes[maker], boxes[reader]))
            elif maker in boxes:
                lane = lanes.setdefault(maker, len(lanes))
                edges.append(_lane(boxes[maker], boxes[reader], lane, bottom))

    width = max(20, 20 + len(bottoms) * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP)
    height = bottom + LANE_HEIGHT * len(lanes) + 10
    inner = "\n".join(edges + drawn_boxes)
    style = f"max-width:{width}px;min-width:min({width}px,60rem)"
    return svg.document("lineage", TITLE, width, height, inner, style=style)


def _columns(graph: Graph) -> dict[str, int]:
    """Of each run its column, one right of the last of those that made its inputs."""
    columns: dict[str, int] = {}
    for run in graph.runs:
        makers = graph.made_from[run]
        columns[run] = 1 + max((columns.get(maker, -1) for maker in makers), default=-1)
    return columns


def _lines(graph: Graph, run: str) -> list[tuple[str, str]]:
    """(class, text) of each line in a run's box."""
    made_by = graph.runs[run]
    lines = [
        ("stage", made_by.stage),
        ("soft", f"run {made_by.short_id}"),
        ("soft", f"code {str(made_by.revision)[:12]}"),
    ]
    for source in graphs.sources(graph, run):
        path = svg.cut_start(source.path, 17)
        lines.append(("soft", f"reads {path}"))
    for output in made_by.outputs:
        if not output.path.endswith("/run.json"):
            name = output.short_name.removeprefix(f"reports/{made_by.stage}/")
            lines.append(("made", svg.cut_start(name, 24)))
    return lines


def _drawn_box(box: _Box, lines: list[tuple[str, str]], kind: str) -> str:
    drawn = svg.element(
        "rect", f"box {kind}", x=box.x, y=box.y, width=BOX_WIDTH, height=box.height, rx=7
    )
    baseline = box.y + 20
    for css, words in lines:
        drawn += svg.text(css, box.x + 10, baseline, words)
        baseline += LINE_HEIGHT
    return drawn


def _edge(maker: _Box, reader: _Box) -> str:
    y1, y2 = maker.y + 20, reader.y + 20
    bend1, bend2 = maker.right + COLUMN_GAP / 2, reader.x - COLUMN_GAP / 2
    return svg.path("edge", "M", maker.right, y1, "C", bend1, y1, bend2, y2, reader.x, y2)


def _lane(maker: _Box, reader: _Box, lane: int, bottom: int) -> str:
    """Out to the right, down, along below all boxes, up, and into the reader from the left."""
    # Each lane keeps clear of the others everywhere, so that a line can be followed.
    out = maker.right + 8 + 5 * lane
    along = bottom + LANE_HEIGHT * lane
    back = reader.x - 8 - 5 * lane
    into = reader.y + 38 + 7 * lane
    route = ("M", maker.right, maker.y + 38, "H", out, "V", along, "H", back, "V", into)
    return svg.path(f"edge lane{lane % 6}", *route, "H", reader.x)
