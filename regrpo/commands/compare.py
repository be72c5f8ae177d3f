"""regrpo compare: what differs between runs, and whether they differ by more than chance."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from regrpo.compare import compare, render
from regrpo.tracking.lookup import Lookup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="an MLflow run id, a DVC experiment, a git revision, or `workspace`; "
        "the first is the baseline",
    )
    parser.add_argument(
        "--sweep",
        metavar="NAME",
        help="the DVC experiments NAME-1, NAME-2, … and MLflow's rows of that sweep",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--md", action="store_true", help="print Markdown")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page that needs nothing else to be read"
    )
    parser.add_argument("--no-mlflow", action="store_true", help="work from git and DVC alone")
    parser.epilog = "Exit code 0 whatever came out; 2: could not compare."


def run(args: argparse.Namespace) -> int:
    result = compare.compare(
        args.runs,
        Path.cwd(),
        sweep=args.sweep,
        rows=None if args.no_mlflow else Lookup(),
        curves=args.html is not None,
    )
    if args.html:
        from regrpo.compare import page
        from regrpo.report import pages

        pages.write(args.html, page.page(result))
    if args.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    elif args.md:
        print(render.markdown(result), end="")
    else:
        print(render.text(result), end="")
    return 0
