"""regrpo reproduce: make a run again in a temporary worktree, and say whether the same came out."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from regrpo.audit.reproduce import TOLERANCE, reproduce


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code 0: the verdict is as expected or better. 1: it is not. 2: the run could not be made again. "
        "Workspace and DVC cache are only read."
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="RUN",
        help="MLflow run id, DVC experiment or git revision that holds results "
        "(default: HEAD, if nothing is uncommitted that decides a run)",
    )
    parser.add_argument(
        "--expect",
        choices=("identical", "equivalent"),
        help="the verdict that makes the exit code 0 (default: identical; equivalent if CUDA was used)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="D",
        help="how far an evaluation value of an equivalent run may lie off (default: %(default)s)",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="make only these again; what they read is restored and verified",
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="run in a fresh venv of that commit's constraints.txt",
    )
    parser.add_argument("--keep", action="store_true", help="leave the worktree behind, to look at")
    parser.add_argument(
        "--no-mlflow", action="store_true", help="neither ask MLflow nor write the verdict to it"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the verdict as JSON (progress goes to stderr)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the verdict; progress and the stages' own lines go to stderr."""
    try:
        verdict = reproduce(
            args.target,
            expect=args.expect,
            tolerance=args.tolerance,
            stages=args.stages,
            install=args.install,
            keep=args.keep,
            mlflow=not args.no_mlflow,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:  # the worktree is gone by now
        print("regrpo reproduce: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    print(json.dumps(verdict, indent=2) if args.json else "\n".join(lines(verdict)))
    if verdict["mlflow_error"]:
        print(
            f"regrpo reproduce: the verdict is not in MLflow: {verdict['mlflow_error']}",
            file=sys.stderr,
        )
        return 2
    return 0 if verdict["holds"] else 1


def lines(verdict: dict[str, Any]) -> list[str]:
    """The verdict for people."""
    shown = []
    for stage in verdict["stages"]:
        differing, seconds = stage["differing"], stage["reproduction"]["seconds"]
        state = (
            f"{len(differing)} of {stage['files']} files differ"
            if differing
            else f"identical ({stage['files']} files)"
        )
        shown.append(f"{stage['stage']:<11} {seconds or 0:6.1f} s  {state}")
        for entry in differing:
            how = (
                f": {entry['how']['what']}" if "how" in entry else ""
            )  # only where it departs; the rest follows from it
            shown.append(f"{'':<23}{entry['path']}{how}")
    if verdict["evaluation"]:
        shown += _evaluation_lines(verdict["evaluation"])
    shown += [f"possible source: {source}" for source in verdict["sources_of_difference"]]
    shown += [
        f"note: {p['name']} is {p['commit']} at this commit, {p['recorded']} in the record"
        for p in verdict["parameters"]
    ]
    shown += [f"note: {note}" for note in verdict["notes"]]
    first, name = verdict["first_difference"], verdict["experiment"]
    what = f"{verdict['revision'][:10]}" + (f" ({name})" if name else "")
    if first:
        step = f", training step {first['step']}" if first["step"] is not None else ""
        tensor = f", tensor {first['tensor']}" if first["tensor"] else ""
        what += f"; it departs in stage {first['stage']}: {first['file']}{tensor}{step}"
    shown.append(
        f"{verdict['verdict']}: {what}"
        + ("" if verdict["holds"] else f" (expected: {verdict['expected']})")
    )
    if verdict["reproduction_run_id"]:
        shown.append(f"written to MLflow as run {verdict['reproduction_run_id']}")
    if verdict["kept"]:
        shown.append(f"kept: {verdict['kept']} (remove it with `git worktree remove --force`)")
    return shown


def _evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    values, tolerance = evaluation["values"], evaluation["tolerance"]
    largest = max((abs(value["difference"]) for value in values), default=0.0)
    summary = (
        f"evaluation: {len(values)} values, off by at most {largest:.3f} (tolerance {tolerance:g})"
    )
    if not evaluation["problems"]:
        return [f"{summary}; the paired tests find no difference"]
    return [summary, *(f"  {problem}" for problem in evaluation["problems"])]
