"""Self-contained HTML pages of audits and lineage: no script, nothing fetched, readable offline, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrpo import graph as graphs


def audit_page(result: Mapping[str, Any], graph: graphs.Graph) -> str:
    """An audit's result with its lineage drawn."""
    faulty = {one["stage"] for one in result["faults"]}
    unsure = {one["stage"] for one in result["unchecked"]}
    colours = {
        stage["run"]: "bad" if stage["stage"] in faulty else "unsure" if stage["stage"] in unsure else "good"
        for stage in result["stages"]
    }
    return _page(f"Audit: {result['verdict']}", graph, colours, result=result)


def lineage_page(title: str, graph: graphs.Graph) -> str:
    """A lineage graph alone."""
    return _page(title, graph, {}, result=None)


def _page(title: str, graph: graphs.Graph, colours: Mapping[str, str], result: Mapping[str, Any] | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regrpo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("audit.html.j2")
    return template.render(title=title, svg=graphs.svg(graph, colours), result=result) + "\n"
