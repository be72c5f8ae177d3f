"""How long pieces of work take beside each other: in turns, as ratios of medians.

A benchmark is a file of benchmarks/ with a function `measure(full, rounds)` that returns Rows, and
ends in `run_alone(measure, __doc__)`; bench.py runs all of them. `full` lifts the limit of time.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One figure: medians of ours and of the peer, and what the one is by the other.

    `ratio` is ours / peer, of the medians; `min` and `max` are the least and the greatest ratio of
    a round, or, without a peer, the least and the greatest of ours. `most` and `least` are what the
    ratio shall be at most, or at least. What was not measured has a note and no numbers.
    """

    subject: str
    what: str
    ours: float | None = None
    peer: float | None = None
    unit: str = "s"
    ratio: float | None = None
    min: float | None = None
    max: float | None = None
    rounds: int = 0
    note: str = ""
    most: float | None = None
    least: float | None = None


Measure = Callable[[bool, int], list[Row]]
"""`measure(full, rounds)` of a benchmark."""


# --- measuring ------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each work by round, taking turns."""
    timed = {name: lambda work=work: seconds(work) for name, work in works.items()}  # type: ignore[misc]
    return take_turns(timed, rounds)


def take_turns(works: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each work returns, by round; each round begins with another of them.

    What warms up or slows down the machine then favours none.
    """
    results: dict[str, list[T]] = {name: [] for name in works}
    names = list(works)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            show(f"round {number + 1} of {rounds}: {name}")
            results[name].append(works[name]())
    return results


def show(line: str) -> None:
    """A line of progress, apart from results."""
    print(f"  {line}", file=sys.stderr, flush=True)


# --- rows -----------------------------------------------------------------------------------------


def compared(
    subject: str,
    what: str,
    ours: Sequence[float],
    peer: Sequence[float],
    unit: str = "s",
    note: str = "",
    most: float | None = None,
    least: float | None = None,
) -> Row:
    """The row of two works that took turns; both have a figure for each round."""
    by_round = [one / other for one, other in zip(ours, peer, strict=True)]
    middle, beside = statistics.median(ours), statistics.median(peer)
    return Row(
        subject=subject,
        what=what,
        ours=middle,
        peer=beside,
        unit=unit,
        ratio=middle / beside,
        min=min(by_round),
        max=max(by_round),
        rounds=len(by_round),
        note=note,
        most=most,
        least=least,
    )


def alone(subject: str, what: str, ours: Sequence[float], unit: str = "s", note: str = "") -> Row:
    """The row of a figure that has no peer."""
    return Row(
        subject=subject,
        what=what,
        ours=statistics.median(ours),
        unit=unit,
        min=min(ours),
        max=max(ours),
        rounds=len(ours),
        note=note,
    )


def skipped(subject: str, what: str, peer: str, reason: str) -> Row:
    """The row of a comparison whose peer is not there."""
    return Row(subject=subject, what=what, note=f"skipped: {peer}: {reason}")


def lacks_package(name: str) -> str | None:
    """Why a package cannot be the peer; None if it can."""
    return None if importlib.util.find_spec(name) else "the package is not installed"


def lacks_command(name: str) -> str | None:
    """Why a command cannot be the peer; None if it can."""
    return None if shutil.which(name) else "no such command on PATH"


def holds(row: Row) -> bool | None:
    """Whether the ratio is what it shall be; None without a goal, or without a figure."""
    if row.ratio is None or (row.most is None and row.least is None):
        return None
    if row.most is not None and row.ratio > row.most:
        return False
    return row.least is None or row.ratio >= row.least


# --- a benchmark by itself ------------------------------------------------------------------------


def run_alone(measure: Measure, about: str | None) -> int:
    """The command line of one benchmark; the exit code is 1 if a ratio is not what it shall be."""
    import argparse

    import machine
    import results

    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--full", action="store_true", help="the whole sizes, without a limit")
    arguments = parser.parse_args()
    with machine.watched() as load:
        rows = measure(arguments.full, arguments.rounds)
    measured = results.measured(rows, machine.facts(), load)
    print(results.markdown(measured))
    return 1 if any(holds(row) is False for row in rows) else 0
