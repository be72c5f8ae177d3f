"""regrpo lineage: which run made what from what, over workspace, commits and DVC experiments."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from regrpo.records import graph
from regrpo.records.find import Finder, require_git, revisions
from regrpo.report import pages
from regrpo.tracking.lookup import Lookup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="RUN|ARTIFACT",
        help="an artifact's path or SHA-256 (6 digits or more), an MLflow run id, a stage, "
        "a git revision or a DVC experiment (default: the workspace's pipeline)",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--upstream", action="store_true", help="what it was made from (the default)")
    way.add_argument(
        "--downstream",
        action="store_true",
        help="what was made from it, in every experiment and commit",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--mermaid", action="store_true", help="print a Mermaid flowchart")
    form.add_argument("--json", action="store_true", help="print runs and artifacts as JSON")
    form.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page that needs nothing else to be read"
    )
    parser.add_argument(
        "--no-mlflow",
        action="store_true",
        help="do not ask MLflow which pipeline a run id belongs to",
    )
    parser.epilog = "Exit code 2: nothing of that name is known."


def run(args: argparse.Namespace) -> int:
    direction: graph.Direction = "downstream" if args.downstream else "upstream"
    if args.html:
        pages.require_writable(args.html)
    root = Path.cwd()
    finder = Finder(root, None if args.no_mlflow else Lookup())
    require_git(root)
    whole = graph.of_places([finder.here, *revisions(root)])
    part, starts = graph.ask(whole, args.target, finder.find, direction)
    if args.json:
        question = {"target": args.target, "direction": direction, "start": starts}
        print(json.dumps(question | graph.plain(part), indent=2))
    elif args.mermaid:
        print(graph.mermaid(part))
    elif args.html:
        title = f"Lineage, {direction} of {args.target or 'the workspace'}"
        pages.write(args.html, pages.lineage_page(title, part))
        print(f"wrote {args.html}")
    elif starts:
        for line in graph.tree(part, starts, direction):
            print(line)
    else:
        print("Nothing was made from it." if args.downstream else "No run made it: it is a source.")
    return 0
