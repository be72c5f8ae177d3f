"""regrpo audit.

Whether the workspace, a run, a revision or another clone is what its records say, to the byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from regrpo.audit import audit
from regrpo.records.find import Finder
from regrpo.tracking.lookup import Lookup

EXIT = {"complete": 0, "broken": 1, "not checkable": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="RUN|REV|FOLDER",
        help="an MLflow run id, a git revision or DVC experiment, or another clone (default: this workspace)",
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

    began, page = time.monotonic(), ""
    if args.html:
        pages.require_writable(args.html)
    folder = _folder(args.target)
    target = None if folder else args.target
    with contextlib.chdir(folder or Path.cwd()):
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


def _folder(target: str | None) -> Path | None:
    """The target as a folder: a repository, or what is written as a path.

    Other names may be a revision's.
    """
    path = Path(target or "")
    meant = (
        target is not None
        and path.is_dir()
        and (target.startswith((".", "/")) or (path / "dvc.yaml").exists())
    )
    return path if meant else None


def _print(result: dict[str, Any], verbose: bool) -> None:
    print(f"{result['target']}: pipeline {(result['pipeline_key'] or 'incomplete')[:12]}")
    shown = result["artifacts"]
    for stage in result["stages"]:
        mine = [one for one in shown if one["stage"] == stage["stage"]]
        bad = sum(1 for one in result["faults"] if one["stage"] == stage["stage"])
        gaps = sum(1 for one in result["unchecked"] if one["stage"] == stage["stage"])
        verdict = (
            f"{bad} faults"
            if bad > 1
            else "1 fault"
            if bad
            else f"{gaps} unchecked"
            if gaps
            else "complete"
        )
        run_id = stage["mlflow_run_id"] or stage["run"]
        print(
            f"  {stage['stage']:<11} {verdict:<12} {len(mine):>3} hashes  run {run_id[:12]}  "
            f"code {str(stage['revision'])[:12]}  {stage['started'][:16]}"
        )
        if verbose:
            for one in mine:
                print(
                    f"    {one['verdict']:<9} {one['place']:<9} {(one['found'] or '-')[:16]:<16}  {one['path']}"
                )
    for title, findings in (("FAULT", result["faults"]), ("UNCHECKED", result["unchecked"])):
        for one in findings:
            print(f"{title} {_line(one)}")
    packages = [one for one in result["notes"] if one["kind"] == "environment"]
    few = packages if verbose or len(packages) <= 5 else packages[:5]
    for one in [one for one in result["notes"] if one["kind"] != "environment"] + few:
        print(f"note {_line(one)}")
    if len(few) < len(packages):
        print(f"note environment: and {len(packages) - len(few)} more packages differ (--verbose)")
    places = sorted({one["place"] for one in shown})
    left_out = "" if result["looked_at"]["mlflow"] else ", MLflow left out (--no-mlflow)"
    print(
        f"{result['verdict']}: {len(shown)} hashes in {', '.join(places)}{left_out}; "
        f"faults: {len(result['faults'])}, unchecked: {len(result['unchecked'])}, notes: {len(result['notes'])} "
        f"({result['seconds']} s)"
    )


def _line(one: dict[str, Any]) -> str:
    """One finding.

    Kind, stage, place, what is wrong, and both values where they are short enough to help.
    """
    where = f"{one['kind']}: " + (
        f"{one['stage']}: " if one["stage"] and one["stage"] != one["path"] else ""
    )
    found = one["found"]
    if isinstance(found, dict):  # uncommitted code
        diff = found["diff"] or "(the diff is neither in the journal nor in MLflow)"
        return f"{where}{one['path']}: {one['text']}; files: {', '.join(found['files']) or 'none that it reads'}\n{diff}"
    if one["kind"] in ("environment", "restored") or (one["recorded"] is None and found is None):
        return f"{where}{one['path']}: {one['text']}"
    return f"{where}{one['path']}: {one['text']} (recorded {_short(one['recorded'])}, found {_short(found)})"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:16] + "…" if len(text) in (32, 36, 64) and " " not in text else text[:120]
