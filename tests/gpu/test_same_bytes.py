"""`deterministic: true` on a GPU: the same bytes twice, and after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files
from tests.support.projects import environment, make_project, run
from tests.support.results import outputs

TRAINED = ("sft", "grpo")
OFF = {"REGRPO_TRACKING": "off"}
DETERMINISTIC: dict[str, dict[str, Any]] = {
    "prepare": {"eval": 24, "dev": 12, "sft": 0.6},
    "validate": {"min_rows": 12},
    "sft": {"max_steps": 60, "warmup_steps": 5, "save_steps": 20},
    "grpo": {"max_steps": 12, "warmup_steps": 1, "dev_every": 4, "save_steps": 1},
}


@pytest.fixture(scope="module")
def start(device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with data and base model, ready to train deterministically."""
    sections = DETERMINISTIC | {
        stage: DETERMINISTIC[stage] | {"device": device, "deterministic": True} for stage in TRAINED
    }
    folder = make_project(tmp_path_factory.mktemp("same") / "start", sections, with_git=False)
    for stage in ("prepare", "base_model", "select"):
        run(folder, "python", "-m", f"stages.{stage}", **OFF)
    return folder


@pytest.fixture(scope="module")
def reference(start: Path, device: str) -> dict[str, str]:
    """The outputs of sft and grpo, never interrupted."""
    folder = train(start, "reference")
    on = files.read_json(folder / "reports/grpo/metrics.json")["deterministic"]
    assert bool(on) == (device == "cuda"), "a CPU needs no switches"
    return outputs(folder)


def train(start: Path, name: str) -> Path:
    """sft and grpo in a copy of the project."""
    folder = start.with_name(name)
    shutil.copytree(start, folder)
    for stage in TRAINED:
        run(folder, "python", "-m", f"stages.{stage}", **OFF)
    return folder


def test_two_runs_give_the_same_bytes(start: Path, reference: dict[str, str]) -> None:
    assert "models/grpo/model.safetensors" in reference
    assert outputs(train(start, "again")) == reference


def test_a_killed_grpo_goes_on_to_the_same_bytes(start: Path, reference: dict[str, str]) -> None:
    folder = start.with_name("killed")
    shutil.copytree(start, folder)
    run(folder, "python", "-m", "stages.sft", **OFF)
    kill_after_a_checkpoint(folder)
    resumed = run(folder, "python", "-m", "stages.grpo", **OFF)
    assert "resuming from checkpoint-" in resumed.stdout
    assert outputs(folder) == reference


def kill_after_a_checkpoint(folder: Path) -> None:
    """Start grpo and kill it, with its children, as soon as a checkpoint is complete."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.grpo"],
        cwd=folder,
        env=environment(**OFF),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if list(folder.glob(".checkpoints/grpo-*/checkpoint-*/manifest.json")):
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
