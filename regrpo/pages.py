"""Self-contained HTML pages of audits and lineage: no script, nothing fetched, readable offline, light and dark."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrpo import files
from regrpo import graph as graphs
from regrpo.errors import CannotCheck


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


def require_writable(path: Path) -> None:
    """Raise CannotCheck unless a page can be written there: a file, new or to be replaced, in a folder that exists."""
    try:
        if path.exists() and not path.is_file():
            raise _unwritable(path, "a folder" if path.is_dir() else "no regular file")
        if not path.parent.is_dir():
            raise _unwritable(path, f"no folder {path.parent}")
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _unwritable(path, f"a folder that may not be written to ({path.parent})")


def write(path: Path, page: str) -> None:
    """Write a page whole or not at all; no folder is made for it. Raises CannotCheck where it cannot be written."""
    require_writable(path)
    try:
        files.write_text(path, page)
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error


def _unwritable(path: Path, found: str) -> CannotCheck:
    return CannotCheck(str(path), expected="a file that can be written", found=found, remedy="Name another.")
