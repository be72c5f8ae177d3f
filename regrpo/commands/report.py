"""regrpo report: one page about a pipeline: states, gate, curves, evaluation, samples, lineage."""

from __future__ import annotations

import argparse
from pathlib import Path

from regrpo.records.find import Finder
from regrpo.report import contents, pages, report_page
from regrpo.tracking.lookup import Lookup

PAGE = Path("reports/index.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="RUN",
        help="an MLflow run id, a git revision or a DVC experiment (default: the workspace)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=PAGE,
        metavar="FILE",
        help=f"the page to write (default: {PAGE})",
    )
    parser.add_argument(
        "--no-mlflow",
        action="store_true",
        help="do not ask MLflow which pipeline a run id belongs to",
    )
    parser.epilog = (
        "Exit code 2: nothing of that run can be read. What is merely missing is said on the page."
    )


def run(args: argparse.Namespace) -> int:
    root = Path.cwd()
    rows = None if args.no_mlflow else Lookup()
    found = contents.read(Finder(root, rows).find(args.target), root)
    pages.write(args.out, report_page.page(found, args.out))
    print(f"wrote {args.out}")
    return 0
