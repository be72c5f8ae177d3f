"""Every benchmark, one table: what the pipeline costs beside what people would use instead.

    python benchmarks/bench.py [SUBJECT ...] [--full] [--rounds 5]

Writes benchmarks/results.json, the table in docs/performance.md and benchmarks/results.svg. What
was measured before and is not measured now stays. It wants two idle cores: what was measured while
others used them is marked. About half an hour; with --full as long as it takes. A subject
that fails is named, and the others go on. Exit code 1 if one failed or missed its goal.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import machine
import picture
import results
from timing import ROUNDS, Measure, show

SUBJECTS: tuple[str, ...] = (
    "training",
    "step_time",
    "defaults",
    "nothing_to_do",
    "process_start",
    "data_speed",
    "evaluate_speed",
    "audit_speed",
    "release_speed",
    "compare_speed",
    "two_processes",
)
"""The files of this folder, in running order."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--full", action="store_true", help="the whole sizes, without a limit")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.subjects) - set(SUBJECTS))
    if unknown:
        parser.error(f"no such subject: {', '.join(unknown)} (there are {', '.join(SUBJECTS)})")
    chosen = {name: importlib.import_module(name).measure for name in SUBJECTS}
    if arguments.subjects:
        chosen = {name: chosen[name] for name in arguments.subjects}
    return run(chosen, arguments.full, arguments.rounds)


def run(chosen: Mapping[str, Measure], full: bool, rounds: int) -> int:
    """Measure these subjects one after the other, each written as soon as it is measured."""
    facts = machine.facts()
    worst = 0
    for number, (name, measure) in enumerate(chosen.items(), start=1):
        show(f"--- {number} of {len(chosen)}: {name}")
        began = time.perf_counter()
        try:
            with machine.watched() as load:
                rows = measure(full, rounds)
        except Exception:  # whatever a library raises: the other subjects are still wanted
            traceback.print_exc()
            show(f"--- {name} failed: nothing of it is written")
            worst = 1
            continue
        now = results.measured(rows, facts, load)
        write(now)
        print(results.markdown(now), flush=True)
        show(f"--- {name}: {time.perf_counter() - began:.0f} s")
        if any(row["holds"] is False for row in now):
            worst = 1
    return worst


def write(now: list[dict[str, Any]]) -> None:
    """Put new rows among those that are there: file, page and picture."""
    rows = results.merged(results.read(), now)
    results.write(rows)
    picture.draw(rows)


if __name__ == "__main__":
    raise SystemExit(main())
