"""regrpo check: the whole profile, the environment and free disk, before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from regrpo.commands import clone
from regrpo.core import processes
from regrpo.plan.check import check
from regrpo.plan.findings import Level, lines
from regrpo.records import lock_copy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=Path,
        help="the profile to check (default: the one that params.yaml names)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing where all is well")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong, could not be checked, or may not be meant.

    Exit code 0: nothing is wrong; 1: something is; 2: something could not be checked.
    """
    if processes.PARENT in os.environ and sys.platform == "linux":
        processes.end_with_parent()
    clone.enter()
    for line in lock_copy.mend():
        print(line, file=sys.stderr)
    findings = check(arguments.profile, clone.section_models())
    levels = {one.level for one in findings}
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
        return _code(levels)
    text = [line for level in LEVELS for line in lines(findings, level)]
    if text:
        print("\n".join(text), file=sys.stderr)
    if not levels - {"warning"} and not arguments.quiet:
        print("ok: every section of the profile, the environment, dvc.lock and free disk")
    return _code(levels)


LEVELS: tuple[Level, ...] = ("wrong", "unchecked", "warning")


def _code(levels: set[Level]) -> int:
    if "unchecked" in levels:
        return 2
    return 1 if "wrong" in levels else 0
