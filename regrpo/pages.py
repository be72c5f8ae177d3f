"""Self-contained HTML pages: no script, nothing fetched, readable offline, light and dark.

Every page extends templates/page.html.j2 and is made of templates/macros.html.j2; charts come from regrpo.charts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrpo import files
from regrpo import graph as graphs
from regrpo.card import visible
from regrpo.errors import CannotCheck


def render(template: str, **context: Any) -> str:
    """A page from a template of ours. Everything is escaped but what a template marks safe: SVG, escaped where drawn.

    The filter `shown(limit)` makes text from data safe to look at: control and direction characters become U+FFFD.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regrpo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = visible
    return environment.get_template(template).render(**context).strip() + "\n"


def write(path: Path, page: str) -> None:
    """Write a page that a user asked for at a path. Raises CannotCheck where nothing can be written there."""
    try:
        files.write_text(path, page)
    except OSError as error:
        raise CannotCheck(
            str(path), expected="a file that can be written", found=str(error), remedy="Name another."
        ) from error


def audit_page(result: Mapping[str, Any], graph: graphs.Graph) -> str:
    """An audit's result with its lineage drawn."""
    faulty = {one["stage"] for one in result["faults"]}
    unsure = {one["stage"] for one in result["unchecked"]}
    colours = {
        stage["run"]: "bad" if stage["stage"] in faulty else "unsure" if stage["stage"] in unsure else "good"
        for stage in result["stages"]
    }
    return render("audit.html.j2", title=f"Audit: {result['verdict']}", svg=graphs.svg(graph, colours), result=result)


def lineage_page(title: str, graph: graphs.Graph) -> str:
    """A lineage graph alone."""
    return render("audit.html.j2", title=title, svg=graphs.svg(graph), result=None)
