"""How long `regrpo compare` takes: of 2 runs, and of 100, each a whole process with its imports.

    python benchmarks/compare_speed.py [--runs 100] [--questions 300] [--folder DIR]

Makes a repository with 100 DVC experiments (no training: dvc.lock, records, reports and answers to
300 questions in five tasks) and compares two of them, all by their sweep's name, and all by the ids
of their runs. Exit code 1 where 2 take more than 5 s or 100 more than 20 s.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import synthetic  # noqa: E402

MOST_SECONDS = {2: 5.0, 100: 20.0}


def make(root: Path, runs: int, questions: int) -> list[str]:
    """Make a repository with the experiments sweep-1, sweep-2, …: settings of ten seeds each.

    Returns the ids of their grpo runs.
    """
    synthetic.make_repository(root)
    ids = []
    for index in range(runs):
        setting, seed = divmod(index, 10)
        share = 0.7 + 0.02 * setting
        values = {
            task: synthetic.right(share, questions, seed=100 * number + seed)
            for number, task in enumerate(synthetic.ROLES)
        }
        params = {"grpo.learning_rate": round(1e-4 * (setting + 1), 6), "grpo.seed": seed}
        made = synthetic.experiment(
            root, f"sweep-{index + 1}", synthetic.evaluation(values), params, full=True
        )
        ids.append(made["grpo"])
    return ids


def seconds(root: Path, *arguments: str) -> tuple[float, float]:
    """One `regrpo compare` in a process of its own: seconds by the clock, and of processors."""
    began, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "regrpo.cli", "compare", *arguments]
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  (no shell, and the command is ours)
    after = os.times()
    used = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return time.perf_counter() - began, used


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        root = Path(temporary) / "runs"
        ids = make(root, args.runs, args.questions)
        names = [f"sweep-{index + 1}" for index in range(args.runs)]
        cases = {
            "2 runs": (2, names[:2]),
            "2 runs by id": (2, ids[:2]),
            f"{args.runs} runs": (args.runs, ["--sweep", "sweep", "--no-mlflow"]),
            f"{args.runs} runs by id": (args.runs, ids),
            f"{args.runs} runs, page": (args.runs, [*names, "--html", str(root / "page.html")]),
        }
        too_slow = 0
        for what, (count, arguments) in cases.items():
            took, used = seconds(root, *arguments)
            most = MOST_SECONDS[2 if count == 2 else 100]
            too_slow += took > most
            print(f"{what}: {took:.1f} s (at most {most:.0f} s), processors {used:.1f} s")
    return 1 if too_slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
