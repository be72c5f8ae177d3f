"""A copy of the project in a folder of its own, in which stages and commands run apart."""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import show

from regrpo.core.processes import clean_environment
from regrpo.core.profiles import STAGES
from tests.support import projects

ROOT = projects.ROOT
SHORT: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 60, "logging_steps": 20},
    "grpo": {"max_steps": 2, "warmup_steps": 1, "dev_every": 0, "sample_every": 1},
}
"""The default's trainings, for as long as shows that they run."""


def make(folder: Path) -> None:
    """Copy the project's code and its default profile to `folder`."""
    projects.make_project(folder, {}, with_git=False)


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command there, offline and untracked unless the variables say otherwise.

    Returns what it printed. Ends the benchmark, with its last words, if the command fails.
    """
    usual = {"REGRPO_TRACKING": "off", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
        command,
        cwd=folder,
        env=clean_environment(**usual | variables),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = f"{done.stdout}{done.stderr}"[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{words}")
    return done.stdout


def run_stage(folder: Path, stage: str, **variables: str) -> str:
    """Run one stage there."""
    return run(folder, sys.executable, "-m", f"stages.{stage}", **variables)


def set_sections(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set keys of sections of the copy's default profile."""
    projects.edit_yaml(folder / "params.yaml", changes)


def wait_for_tracker(folder: Path) -> None:
    """Wait until MLflow's writer, which a tracked stage leaves behind, has ended."""
    path = folder / ".regrpo/tracking.lock"
    if not path.exists():
        return
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)


@functools.cache
def miniature() -> Path:
    """A copy in which every stage has run, trained for some steps; made once a process.

    What it evaluates are the default's questions, with the default's model and tasks.
    """
    temporary = tempfile.TemporaryDirectory(prefix="regrpo-benchmark-")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    make(folder)
    set_sections(folder, SHORT)
    for stage in STAGES:
        show(stage)
        run_stage(folder, stage)
    return folder


def write_random(path: Path, mib: int) -> None:
    """A file of so many MiB that no compression shrinks."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(2**20))
