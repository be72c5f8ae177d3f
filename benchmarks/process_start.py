"""How long each stage imports before it works, and what.

    python benchmarks/process_start.py [--rounds 5] [--full]

Every stage runs once, for some steps, under `python -X importtime`. What it asked for by then is
imported again in fresh processes, which is what is timed, the interpreter's start included. The
note names the packages that take longest.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
import workspace
from timing import Row

from regrpo.core.processes import clean_environment
from regrpo.core.profiles import STAGES

LINE = re.compile(r"import time: +(\d+) \| +\d+ \| ( *)(\S+)")
"""A module as CPython says it: its own microseconds, two spaces for each module around it."""
IMPORT = """
import contextlib, importlib, sys
for name in sys.stdin.read().split():
    with contextlib.suppress(ImportError):  # made by a library for itself
        importlib.import_module(name)
"""
FEW = 2
"""Rounds without --full: nothing stands beside these figures, and all of them take a minute."""
NAMED = 4
"""Packages that a note names."""


def asked_for(said: str) -> list[str]:
    """The modules that a process imported by itself, not on behalf of another, in order."""
    return [name for _, inside, name in LINE.findall(said) if not inside]


def longest(said: str) -> str:
    """The packages that took longest, with their seconds, what they import of others aside."""
    spent: Counter[str] = Counter()
    for microseconds, _, name in LINE.findall(said):
        spent[name.partition(".")[0]] += int(microseconds)
    return ", ".join(f"{name} {total / 1e6:.1f}" for name, total in spent.most_common(NAMED))


def said_by(folder: Path, stage: str) -> str:
    """What a run of a stage says of its imports."""
    done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
        [sys.executable, "-X", "importtime", "-m", f"stages.{stage}"],
        cwd=folder,
        env=clean_environment(REGRPO_TRACKING="off", HF_HUB_OFFLINE="1", PYTHONPATH=str(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stderr


def import_again(folder: Path, names: list[str]) -> None:
    subprocess.run(  # noqa: S603  (no shell, and the command is ours)
        [sys.executable, "-c", IMPORT],
        input="\n".join(names),
        cwd=folder,
        env=clean_environment(HF_HUB_OFFLINE="1", PYTHONPATH=str(folder)),
        text=True,
        capture_output=True,
        check=True,
    )


def measure(full: bool, rounds: int) -> list[Row]:
    folder = workspace.miniature()
    said = {stage: said_by(folder, stage) for stage in STAGES}
    works = {
        stage: partial(import_again, folder, asked_for(lines)) for stage, lines in said.items()
    }
    taken = timing.interleaved(works, rounds if full else min(rounds, FEW))
    return [
        timing.alone("process start", stage, seconds, note=longest(said[stage]))
        for stage, seconds in taken.items()
    ]


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
