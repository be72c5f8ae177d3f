"""Time and peak memory of prepare and of the gate, and sft's and grpo's peak, by number of rows.

    python benchmarks/data_speed.py [--rounds 5] [--full]

JSON lines of sums (about 60 bytes a row), a hundredth of them repeated: 10,000 and 40,000; with
--full 10,000 to 1,000,000 and, once, 10,000,000. prepare stands beside pyarrow reading the source,
the gate beside pyarrow reading the splits and beside Great Expectations with the same expectations
on frames that are there already. What the gate does besides is itemised. Every work runs in a
process of its own, and its imports count apart (process_start.py). sft and grpo take two steps,
once a size; half of the rows are each one's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
import workspace
from timing import Row
from workspace import ROOT

from regrpo.inputs.formats import SPLITS

SIZES = (10_000, 40_000)
FULL_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
LARGEST_FRAME = 1_000_000
"""Rows that Great Expectations alone is given: it holds them all in memory."""
MOST_MEMORY = 1.2
"""Times the peak that ten times the rows may take, from 100,000 rows."""
CASE = str(ROOT / "benchmarks/data_case.py")
SOURCE = "data/raw/train.jsonl"
PREPARED = [f"data/prepared/{split}.parquet" for split in SPLITS]
TRAINED = ("sft", "grpo")
STEPS = {"max_steps": 2, "warmup_steps": 1}
Taken = Mapping[str, Sequence[Mapping[str, Any]]]


def write_source(path: Path, rows: int) -> None:
    """Sums that differ, but for the last hundredth, which repeats the first."""
    with path.open("w", encoding="utf-8") as f:
        for index in range(rows):
            number = index % (rows - rows // 100)
            other = number % 97
            row = {"question": f"What is {number} + {other}?", "answer": str(number + other)}
            f.write(json.dumps(row) + "\n")


def make_project(folder: Path, rows: int) -> None:
    """The project's code with the source, a profile for it, and the default's base model."""
    workspace.make(folder)
    section = {
        "seed": 1,
        "format": "question_answer",
        "drop_duplicates": True,
        "eval": 1000,
        "dev": 200,
        "sft": 0.5,
        "source": {"kind": "local", "train": "train.jsonl", "license": "CC0-1.0"},
    }
    trained = {"sft": STEPS, "grpo": STEPS | {"dev_every": 0}}
    workspace.set_sections(folder, {"prepare": section} | trained)
    write_source(folder / SOURCE, rows)
    workspace.run_stage(folder, "base_model")


def run(folder: Path, case: str, *paths: str) -> dict[str, Any]:
    """What data_case.py says of a work."""
    said = workspace.run(folder, sys.executable, CASE, case, *paths)
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def measure(full: bool, rounds: int) -> list[Row]:
    rows = []
    peaks: dict[str, dict[int, list[float]]] = {}
    for stage in ("prepare", "validate", *TRAINED):
        peaks[stage] = {}
    for size in FULL_SIZES if full else SIZES:
        taken = measure_size(size, 1 if size > LARGEST_FRAME else rounds)
        rows += rows_of(size, taken)
        for stage, of_size in peaks.items():
            of_size[size] = [one["peak"] for one in taken[stage]]
    for stage, of_size in peaks.items():
        rows += growth(stage, of_size)
    return rows


def measure_size(size: int, rounds: int) -> Taken:
    """What each work took in each round."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_project(folder, size)
        works = {
            "prepare": partial(run, folder, "prepare"),
            "pyarrow, source": partial(run, folder, "pyarrow", SOURCE),
            "validate": partial(run, folder, "validate"),
            "pyarrow, splits": partial(run, folder, "pyarrow", *PREPARED),
        }
        if size <= LARGEST_FRAME:
            for case in ("prepare", "frames"):  # what the first round reads
                run(folder, case)
            works["Great Expectations"] = partial(run, folder, "great_expectations")
        taken = timing.take_turns(works, rounds)
        taken["sft"] = [run(folder, "sft")]
        workspace.run_stage(folder, "select")
        taken["grpo"] = [run(folder, "grpo")]
        return taken


# --- rows -----------------------------------------------------------------------------------------


def rows_of(size: int, taken: Taken) -> list[Row]:
    """The rows of one size."""
    seconds = {work: [one["seconds"] for one in found] for work, found in taken.items()}
    pairs = {
        "prepare": ("pyarrow, source", "pyarrow reading the source"),
        "validate": ("pyarrow, splits", "pyarrow reading the splits"),
    }
    rows = []
    for stage, (peer, name) in pairs.items():
        what = f"{stage}, {size:,} rows"
        rates = [size / one for one in seconds[stage]]
        rows.append(timing.alone("data", what, rates, "rows/s"))
        rows.append(
            timing.compared("data", f"{what}, beside {name}", seconds[stage], seconds[peer])
        )
    beside = f"validate, {size:,} rows, beside Great Expectations alone"
    if "Great Expectations" in seconds:
        peer_seconds = seconds["Great Expectations"]
        rows.append(timing.compared("data", beside, seconds["validate"], peer_seconds))
    else:
        reason = "it would hold every row in memory"
        rows.append(timing.skipped("data", beside, "Great Expectations", reason))
    parts = dict.fromkeys(part for one in taken["validate"] for part in one["parts"])
    for part in parts:
        spent = [one["parts"].get(part, 0.0) for one in taken["validate"]]
        rows.append(timing.alone("the gate's parts", f"{size:,} rows: {part}", spent))
    return rows


def growth(stage: str, peaks: Mapping[int, Sequence[float]]) -> list[Row]:
    """The peaks of a stage, each beside that of the size before."""
    smallest, *larger = peaks
    rows = [timing.alone("data", f"{stage}, {smallest:,} rows, peak", peaks[smallest], "MB")]
    before = smallest
    for size in larger:
        what = f"{stage}, {size:,} rows, peak beside {before:,}'s"
        most = MOST_MEMORY if before >= 100_000 else None
        ours, theirs = list(peaks[size]), list(peaks[before])[: len(peaks[size])]
        rows.append(timing.compared("data", what, ours, theirs, "MB", most=most))
        before = size
    return rows


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
