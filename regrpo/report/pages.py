"""Self-contained HTML pages: no script, nothing fetched, readable offline, light and dark.

Every page extends templates/page.html.j2 and is made of templates/macros.html.j2; charts come from
drawing and lineage_drawing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files, text
from regrpo.core.errors import CannotCheck
from regrpo.records.graph import Graph
from regrpo.report.lineage_drawing import lineage

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_LINES = 12
"""Lines of a text from data that a page shows."""


def render(template: str, **context: Any) -> str:
    """A page from a template of ours.

    Everything is escaped but what a template marks safe: SVG, escaped where drawn. The filter
    `shown(limit)` makes text from data safe to look at; `brief(limit)` keeps at most 12 lines of it
    besides.
    """
    return _environment().get_template(template).render(**context).strip() + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regrpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": text.visible,
        "brief": _brief,
        "moment": _moment,
        "duration": text.duration,
    }
    return environment


def require_writable(path: Path) -> None:
    """Raise CannotCheck unless a page can be written there.

    A file, new or to be replaced, in a folder that exists.
    """
    found = None
    if os.access(path, os.F_OK) and not path.is_file():
        found = "no regular file"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        found = f"no folder {path.parent} that may be written to"
    if found:
        raise _unwritable(path, found)


def write(path: Path, page: str) -> None:
    """Write a page whole or not at all; no folder is made for it.

    Raises CannotCheck where it cannot be written.
    """
    require_writable(path)
    try:
        files.write_text(path, page)
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error


def _unwritable(path: Path, found: str) -> CannotCheck:
    return CannotCheck(
        str(path), expected="a file that can be written", found=found, remedy="Name another."
    )


def audit_page(result: Mapping[str, Any], graph: Graph) -> str:
    """An audit's result with its lineage drawn."""
    faulty = {finding["stage"] for finding in result["faults"]}
    unchecked = {finding["stage"] for finding in result["unchecked"]}
    kinds = {}
    for stage in result["stages"]:
        if stage["stage"] in faulty:
            kinds[stage["run"]] = "bad"
        elif stage["stage"] in unchecked:
            kinds[stage["run"]] = "unsure"
        else:
            kinds[stage["run"]] = "good"
    title = f"Audit: {result['verdict']}"
    return render("audit.html.j2", title=title, svg=lineage(graph, kinds), result=result)


def lineage_page(title: str, graph: Graph) -> str:
    """A lineage graph alone."""
    return render("audit.html.j2", title=title, svg=lineage(graph), result=None)


# --- filters of templates -------------------------------------------------------------------------


def _brief(value: object, limit: int) -> str:
    lines = text.visible(value, limit).split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "[…]"]
    return "\n".join(lines)


def _moment(time: str) -> str:
    """An ISO time to the minute."""
    return f"{time[:10]} {time[11:16]}"
