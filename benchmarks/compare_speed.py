"""How long `regrpo compare` takes: of 2 runs, and of 100, each a whole process with its imports.

    python benchmarks/compare_speed.py [--rounds 5] [--full]

Makes a repository with 100 DVC experiments (no training: dvc.lock, records, reports and answers to
300 questions in five tasks) and compares two of them, and all by their sweep's name. With --full
also by the ids of their runs, and as a page.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
import workspace
from timing import Row
from workspace import ROOT

from tests.support import synthetic

RUNS, QUESTIONS = 100, 300
MOST = 4.0
"""Times as long as a comparison of two that one of a hundred may take."""


def make(root: Path) -> list[str]:
    """Make a repository with the experiments sweep-1, sweep-2, …: settings of ten seeds each.

    Returns the ids of their grpo runs.
    """
    synthetic.make_repository(root)
    ids = []
    for index in range(RUNS):
        setting, seed = divmod(index, 10)
        share = 0.7 + 0.02 * setting
        values = {
            task: synthetic.right(share, QUESTIONS, seed=100 * number + seed)
            for number, task in enumerate(synthetic.ROLES)
        }
        params = {"grpo.learning_rate": round(1e-4 * (setting + 1), 6), "grpo.seed": seed}
        made = synthetic.experiment(
            root, f"sweep-{index + 1}", synthetic.evaluation(values), params, full=True
        )
        ids.append(made["grpo"])
    return ids


def measure(full: bool, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "runs"
        ids = make(root)
        cases = {
            "2 runs": ["sweep-1", "sweep-2"],
            f"{RUNS} runs": ["--sweep", "sweep", "--no-mlflow"],
        }
        if full:
            cases |= {
                "2 runs by id": ids[:2],
                f"{RUNS} runs by id": ids,
                f"{RUNS} runs, page": ["--sweep", "sweep", "--html", str(root / "page.html")],
            }
        command = (sys.executable, "-m", "regrpo.cli", "compare")
        works = {
            what: partial(workspace.run, root, *command, *arguments, PYTHONPATH=str(ROOT))
            for what, arguments in cases.items()
        }
        taken = timing.interleaved(works, rounds)
    two = taken.pop("2 runs")
    rows = [timing.alone("compare", "2 runs", two)]
    for what, seconds in taken.items():
        rows.append(timing.compared("compare", f"{what} beside 2", seconds, two, most=MOST))
    return rows


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
