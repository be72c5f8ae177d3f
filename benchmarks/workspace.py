"""A copy of the project in a folder of its own, in which stages and commands run apart."""

from __future__ import annotations

import atexit
import fcntl
import functools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from timing import show

from regrpo.core.processes import clean_environment
from regrpo.core.profiles import STAGES

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "stages",
    "regrpo",
    "custom",
    "profiles",
    "dvc.yaml",
    "params.yaml",
    "pyproject.toml",
    "constraints.txt",
)


SHORT: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 60, "logging_steps": 20},
    "grpo": {"max_steps": 2, "warmup_steps": 1, "dev_every": 0, "sample_every": 1},
}
"""The default's trainings, for as long as shows that they run."""


def make(folder: Path) -> None:
    """Copy the project's code and its default profile to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NEEDED:
        if (ROOT / name).is_dir():
            kept_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=kept_out)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    for raw in ("data/raw", "models/raw"):
        (folder / raw).mkdir(parents=True)


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
    yaml = YAML()
    profile = yaml.load((folder / "params.yaml").read_text())
    for section, values in changes.items():
        profile[section] |= values
    with (folder / "params.yaml").open("w") as f:
        yaml.dump(profile, f)


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
