"""regrpo promote: a run's model as a version in MLflow's registry, and its place there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from regrpo.compare.promote import promote
from regrpo.core.files import Json
from regrpo.core.text import one_line

EXIT = {"registered": 0, "refused": 1, "not checkable": 2}
MARKS = {"holds": "holds", "fails": "FAILS", "unknown": "UNKNOWN"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="RUN", help="an MLflow run id, a DVC experiment or a git revision"
    )
    parser.add_argument(
        "--alias",
        choices=("candidate", "champion"),
        default="candidate",
        help="champion asks for a clean audit, a doctor who found nothing fatal, and a paired test "
        "against the present champion that is not worse (`promote:` in the profile); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="judge, and say what would happen; change nothing"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = (
        "Safe to repeat: a run has one version. Exit code 0: done. "
        "1: a rule fails, nothing was changed. "
        "2: something could not be checked, nothing was changed."
    )


def run(args: argparse.Namespace) -> int:
    result = promote(args.target, Path.cwd(), alias=args.alias, dry_run=args.dry_run)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(map(one_line, _lines(result))))
    if result["verdict"] != "registered":
        wrong = "fails" if result["verdict"] == "refused" else "unknown"
        reasons = "; ".join(
            f"{one['rule']}: {one['text']}" for one in result["rules"] if one["verdict"] == wrong
        )
        line = f"regrpo promote: {result['target']} does not become champion: {reasons}"
        print(one_line(line), file=sys.stderr)
    return EXIT[result["verdict"]]


def _lines(result: Json) -> Iterator[str]:
    yield f"{result['target']}: pipeline {result['pipeline_key'][:12]}, model {result['model']}"
    for one in result["rules"]:
        yield f"  {one['rule']:<11} {MARKS[one['verdict']]:<8} {one['text']}"
    for note in result["notes"]:
        yield f"note {note}"
    if result["verdict"] == "registered":
        yield f"{_outcome(result)}  ({result['mlflow']})"


def _outcome(result: Json) -> str:
    number = result["version"] or "(new)"
    name = f"{result['model']} version {number}"
    if result["reigns"]:
        return f"{name} is the champion already: nothing to do"
    verb = "would be" if result["dry_run"] else "is"
    instead = f" instead of version {result['replaced']}" if result["replaced"] else ""
    return f"{name} {verb} {result['alias']}{instead}"
