"""What a run costs that has nothing to do: `dvc repro` beside `dvc status`, `make repro` beside it.

    python benchmarks/nothing_to_do.py [--rounds 5] [--full]

In a finished pipeline whose stages bring what was made beforehand, with MLflow's tracking on.
`make repro` checks the profile, runs `dvc repro`, tells MLflow and writes the report; the first and
the last only where something is newer than they are.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
import workspace
from timing import Row
from workspace import ROOT

from tests.support import finished

MOST = 1.3
"""Times as long as `dvc repro` that `make repro` may take."""
COMMANDS = {
    "dvc status": (sys.executable, "-m", "dvc", "status", "-q"),
    "dvc repro": (sys.executable, "-m", "dvc", "repro"),
    "make repro": ("make", "repro"),
}
PARTS = ("check", "sync", "report")
"""The commands of ours that `make repro` may call besides."""


def make(root: Path) -> Path:
    """A finished pipeline with the Makefile and this environment."""
    folder = finished.make_alone(root)
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    environment = folder / ".venv"
    environment.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".installed":
            (environment / path.name).symlink_to(path)
    (environment / ".installed").touch()  # `make install` has nothing to do either
    return folder


def measure(full: bool, rounds: int) -> list[Row]:
    reason = timing.lacks_command("make")
    if reason:
        return [timing.skipped("nothing to do", "make repro beside dvc repro", "make", reason)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = make(Path(temporary))
        commands = dict(COMMANDS)
        for part in PARTS:
            commands[part] = (sys.executable, "-m", "regrpo.cli", part)
        works = {
            name: partial(workspace.run, folder, *command, REGRPO_TRACKING="on")
            for name, command in commands.items()
        }
        parts = {part: works.pop(part) for part in PARTS}
        for name, work in works.items():
            said = work()
            if "Running stage" in said:
                raise RuntimeError(f"{name} has something to do:\n{said}")
        taken = timing.interleaved(works, rounds)
        # Later: a new page is something to do for `make repro`.
        taken |= timing.interleaved(parts, rounds)
    status, repro, made = (taken[name] for name in COMMANDS)
    return [
        timing.compared("nothing to do", "dvc repro beside dvc status", repro, status),
        timing.compared("nothing to do", "make repro beside dvc repro", made, repro, most=MOST),
        *(timing.alone("nothing to do", f"regrpo {part} alone", taken[part]) for part in PARTS),
    ]


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
