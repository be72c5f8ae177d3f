"""kill -9 of the whole process group at random moments: the next `dvc repro` always ends in the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import environment, make_project, run
from tests.e2e.test_miniature import outputs, rows

SEED = 20261122
MOMENTS = [random.Random(f"{SEED}-{number}").random() for number in range(10)]
"""Shares of an uninterrupted run's time, so that the kills spread over all stages."""
SECTIONS = {
    "prepare": {"eval": 24, "dev": 12, "sft": 0.6},
    "validate": {"min_rows": 10},
    "sft": {"max_steps": 60, "per_device_train_batch_size": 16, "warmup_steps": 5, "logging_steps": 5, "save_steps": 5},
    "grpo": {"max_steps": 12, "per_device_train_batch_size": 16, "num_generations": 4, "warmup_steps": 1,
             "dev_every": 4, "sample_every": 2, "save_steps": 1},
    "evaluate": {"batch_size": 24, "bootstrap": 200},
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """The outputs of a run that was never killed, and the seconds it took."""
    folder = make_project(tmp_path_factory.mktemp("kills") / "reference", SECTIONS)
    started = time.monotonic()
    run(folder, "dvc", "repro")
    return outputs(folder), time.monotonic() - started


def kill_after(folder: Path, seconds: float) -> None:
    """Start `dvc repro` in a process group of its own and kill -9 the group."""
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=[] if number < 3 else pytest.mark.slow) for number, moment in enumerate(MOMENTS)],
)
def test_a_killed_pipeline_goes_on_to_the_same_bytes(
    moment: float, reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, seconds = reference
    folder = make_project(tmp_path / "project", SECTIONS)
    kill_after(folder, 1 + moment * (seconds - 1))
    run(folder, "dvc", "repro")
    run(folder, "python", "-m", "regrpo.cli", "sync")
    assert outputs(folder) == expected
    for kind in ("stage", "pipeline"):
        assert "RUNNING" not in {one["status"] for one in rows(folder, kind)}
    assert not list((folder / ".checkpoints").glob("*/checkpoint-*"))
