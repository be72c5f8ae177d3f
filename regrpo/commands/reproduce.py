"""regrpo reproduce: make a run again in a temporary worktree, and say whether the same came out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from regrpo.audit.reproduce import TOLERANCE, changed_parameter, reproduce
from regrpo.core.files import Json
from regrpo.core.text import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code 0: the verdict is as expected or better. 1: it is not. 2: the run could not be "
        "made again. Workspace and DVC cache are only read."
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
        help="the verdict that makes the exit code 0 "
        "(default: identical with the record's processor, thread counts and versions and without "
        "CUDA, equivalent elsewhere)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="D",
        help="how far beyond chance (the 95 %% interval) an evaluation value of an equivalent run "
        "may lie off (default: %(default)s)",
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
            say=_print_progress,
        )
    except KeyboardInterrupt:  # the worktree is gone by now
        _print_progress("regrpo reproduce: interrupted; nothing is left behind")
        return 130
    if args.json:
        print(json.dumps(verdict, indent=2))
    else:
        print("\n".join(map(one_line, lines(verdict))))
    if verdict["mlflow_error"]:
        _print_progress(
            f"regrpo reproduce: the verdict is not in MLflow: {verdict['mlflow_error']}"
        )
        return 2
    return 0 if verdict["holds"] else 1


def _print_progress(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def lines(verdict: Json) -> Iterator[str]:
    """The verdict for people; what it comes to stands last."""
    for stage in verdict["stages"]:
        yield from _stage_lines(stage)
    if verdict["evaluation"]:
        yield from _evaluation_lines(verdict["evaluation"])
    for source in verdict["sources_of_difference"]:
        yield f"possible source: {source}"
    for change in verdict["parameters"]:
        yield f"note: {changed_parameter(change)}"
    for note in verdict["notes"]:
        yield f"note: {note}"
    yield _summary(verdict)
    if verdict["reproduction_run_id"]:
        yield f"written to MLflow as run {verdict['reproduction_run_id']}"
    if verdict["kept"]:
        yield f"kept: {verdict['kept']} (remove it with `git worktree remove --force`)"


def _stage_lines(stage: Json) -> Iterator[str]:
    differing = stage["differing"]
    state = f"identical ({stage['files']} files)"
    if differing:
        state = f"{len(differing)} of {stage['files']} files differ"
    yield f"{stage['stage']:<11} {stage['reproduction']['seconds']:6.1f} s  {state}"
    for entry in differing:
        line = f"{'':<23}{entry['path']}"
        if "how" in entry:  # only in the stage where it departs; the rest follows from it
            line += f": {entry['how']['what']}"
        yield line


def _evaluation_lines(evaluation: Json) -> Iterator[str]:
    values, largest = evaluation["values"], evaluation["largest_difference"]
    summary = f"evaluation: {len(values)} values, off by at most {largest:.3f}"
    if not evaluation["problems"]:
        summary += f"; the {evaluation['test']} tests find no difference"
    if least := [value["detectable"] for value in values if value.get("detectable")]:
        summary += f" ({max(least):.3f} would be found, power 80 %)"
    yield summary
    for problem in evaluation["problems"]:
        yield f"  {problem}"


def _summary(verdict: Json) -> str:
    line = f"{verdict['verdict']}: {verdict['revision'][:10]}"
    if verdict["experiment"]:
        line += f" ({verdict['experiment']})"
    if first := verdict["first_difference"]:
        line += f"; it departs in stage {first['stage']}: {first['file']}"
        if first["tensor"]:
            line += f", tensor {first['tensor']}"
        if first["step"] is not None:
            line += f", training step {first['step']}"
    if not verdict["holds"]:
        line += f" (expected: {verdict['expected']})"
    return line
