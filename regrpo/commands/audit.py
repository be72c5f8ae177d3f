"""regrpo audit: whether a pipeline is what its records say, to the byte."""

from __future__ import annotations

import argparse
import contextlib
import json
import textwrap
import time
from pathlib import Path
from typing import Any

from regrpo.audit import audit
from regrpo.core import text
from regrpo.core.files import Json
from regrpo.core.text import one_line
from regrpo.records.find import Finder
from regrpo.tracking.lookup import Lookup

MOST_PACKAGES = 5
"""So many differing packages are printed without --verbose."""
EXIT = {"complete": 0, "broken": 1, "not checkable": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="RUN|REV|FOLDER",
        help="an MLflow run id, a git revision or DVC experiment, or another clone "
        "(default: this workspace)",
    )
    parser.add_argument(
        "--remote",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="fetch and hash the remote's objects too (default: DVC's default remote)",
    )
    parser.add_argument(
        "--no-mlflow", action="store_true", help="work from git, DVC and the run.json files alone"
    )
    parser.add_argument(
        "--strict-env", action="store_true", help="another environment than the run's is a fault"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page that needs nothing else to be read"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing; the exit code is the verdict"
    )
    parser.add_argument("--verbose", action="store_true", help="print every artifact and note")
    parser.epilog = "Exit code 0: complete; 1: broken; 2: not checkable."


def run(args: argparse.Namespace) -> int:
    from regrpo.records import graph
    from regrpo.report import pages

    began = time.monotonic()
    if args.html:
        pages.require_writable(args.html)
    folder, target = Path.cwd(), args.target
    if target is not None and _is_clone(target):
        folder, target = Path(target), None
    with contextlib.chdir(folder):
        rows = None if args.no_mlflow else Lookup()
        place = Finder(Path.cwd(), rows).find(target)
        result = audit.audit(
            place, remote=args.remote, mlflow=not args.no_mlflow, strict_env=args.strict_env
        )
        result["seconds"] = round(time.monotonic() - began, 1)
        if args.html:
            page = pages.audit_page(result, graph.of_places([place]))
    if args.html:
        pages.write(args.html, page)
    if args.json:
        print(json.dumps(result, indent=2))
    elif not args.quiet:
        _print(result, args.verbose)
    return EXIT[result["verdict"]]


def _is_clone(target: str) -> bool:
    """Whether a target is a repository, or written as a path; other names may be a revision's."""
    path = Path(target)
    is_meant = target.startswith((".", "/")) or (path / "dvc.yaml").exists()
    return is_meant and path.is_dir()


# --- what is printed ------------------------------------------------------------------------------


def _print(result: Json, verbose: bool) -> None:
    target = one_line(result["target"])
    print(f"{target}: pipeline {(result['pipeline_key'] or 'incomplete')[:12]}")
    for stage in result["stages"]:
        _print_stage(stage, result, verbose)
    packages = [one for one in result["notes"] if one["kind"] == "environment"]
    hidden = [] if verbose else packages[MOST_PACKAGES:]
    for title, findings in (("FAULT", "faults"), ("UNCHECKED", "unchecked"), ("note", "notes")):
        for one in result[findings]:
            if one not in hidden:
                print(f"{title} {_line(one)}")
    if hidden:
        print(f"note environment: and {len(hidden)} more packages differ (--verbose)")
    places = ", ".join(sorted({one["place"] for one in result["artifacts"]}))
    if not result["looked_at"]["mlflow"]:
        places += ", MLflow left out (--no-mlflow)"
    counts = ", ".join(f"{name}: {len(result[name])}" for name in ("faults", "unchecked", "notes"))
    print(
        f"{result['verdict']}: {len(result['artifacts'])} hashes in {places}; "
        f"{counts} ({result['seconds']} s)"
    )


def _print_stage(stage: Json, result: Json, verbose: bool) -> None:
    """One line on a stage; with `verbose`, a line on each of its artifacts."""
    own = {}
    for name in ("artifacts", "faults", "unchecked"):
        own[name] = [one for one in result[name] if one["stage"] == stage["stage"]]
    verdict = "complete"
    if own["faults"]:
        verdict = text.count(len(own["faults"]), "fault")
    elif own["unchecked"]:
        verdict = f"{len(own['unchecked'])} unchecked"
    run, code = stage["mlflow_run_id"] or stage["run"], str(stage["revision"])
    print(
        f"  {stage['stage']:<11} {verdict:<12} {len(own['artifacts']):>3} hashes  run {run[:12]}  "
        f"code {code[:12]}  {stage['started'][:16]}"
    )
    if verbose:
        for one in own["artifacts"]:
            found = str(one["found"])[:16]
            path = one_line(one["path"])
            print(f"    {one['verdict']:<9} {one['place']:<9} {found:<16}  {path}")


def _line(one: Json) -> str:
    """A finding: kind, stage, place, what is wrong, and both values if they help."""
    parts = [one["kind"], one["stage"], one["path"], one["text"]]
    if one["stage"] in (None, one["path"]):
        parts.remove(one["stage"])
    line = one_line(": ".join(parts))
    recorded, found = one["recorded"], one["found"]
    if isinstance(found, dict):  # uncommitted code
        changed = one_line(", ".join(found["files"]) or "none that it reads")
        # Indented, so that none of its lines can pose as one of the audit's.
        diff = textwrap.indent(found["diff"] or "(the diff is not in the journal)", "    ")
        return f"{line}; files: {changed}\n{diff}"
    if one["kind"] == "environment" or (recorded is None and found is None):
        return line
    return f"{line} (recorded {_short(recorded)}, found {_short(found)})"


def _short(value: Any) -> str:
    """A value to be read on a line; of a hash the start is enough."""
    shown = value if isinstance(value, str) else json.dumps(value)
    is_hash = len(shown) in (32, 36, 64) and " " not in shown
    return f"{shown[:16]}…" if is_hash else one_line(shown, 120)
