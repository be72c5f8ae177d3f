"""kill -9 of the whole process group at random moments.

The next `dvc repro` always ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support.projects import RESUMABLE, environment, make_project, run
from tests.support.results import outputs, rows

SEED = 20261122
MOMENTS = [
    random.Random(f"{SEED}-{tenth}").uniform(tenth / 10, min((tenth + 1) / 10, 0.95))
    for tenth in range(10)
]
"""One kill in each tenth of an uninterrupted run's time, so that they spread over all stages.

The end is left out, lest it be over before the kill.
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """The outputs of a run that was never killed, and the seconds it took."""
    folder = make_project(tmp_path_factory.mktemp("kills") / "reference", RESUMABLE)
    started = time.monotonic()
    run(folder, "dvc", "repro")
    return outputs(folder), time.monotonic() - started


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`dvc repro` in a process group of its own."""
    return subprocess.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes]) -> bool:
    """kill -9 of the whole group; whether its leader was alive until then."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_after(folder: Path, seconds: float) -> tuple[bool, float]:
    """Start `dvc repro` and kill it.

    Whether it really was killed, and the seconds that it lived.
    """
    started = time.monotonic()
    process = start(folder)
    try:
        process.wait(seconds)
        return False, time.monotonic() - started
    except subprocess.TimeoutExpired:
        return kill(process), time.monotonic() - started


def incomplete(folder: Path, stage: str) -> list[Path]:
    """A stage's checkpoints whose manifest, which is written last, is not there yet."""
    found = folder.glob(f".checkpoints/{stage}-*/checkpoint-*")
    return [checkpoint for checkpoint in found if not (checkpoint / "manifest.json").exists()]


def kill_at_a_checkpoint(folder: Path, stage: str) -> bool:
    """Start `dvc repro` and kill it while the stage writes a checkpoint.

    Whether a part of one was left behind.
    """
    process = start(folder)
    while process.poll() is None:
        if incomplete(folder, stage):
            return kill(process) and bool(incomplete(folder, stage))
        time.sleep(0.001)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_pipeline_goes_on_to_the_same_bytes(
    moment: float, reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, seconds = reference
    for attempt in range(5):
        folder = make_project(tmp_path / str(attempt), RESUMABLE)
        killed, lived = kill_after(folder, 1 + moment * (seconds - 1))
        if killed:
            break
        seconds = (
            0.95 * lived
        )  # the machine has less to do than when the reference was made, and may have still less
    assert killed, f"it was over after {lived:.0f} s"
    goes_on_to(expected, folder)


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_no_trace(
    reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    """In sft, then in grpo of the same pipeline."""
    folder = make_project(tmp_path / "project", RESUMABLE)
    for stage in ("sft", "grpo"):  # a kill that came a moment too late is one more interruption
        for _ in range(4):
            mend_lock(folder)
            if kill_at_a_checkpoint(folder, stage):
                break
        else:
            pytest.fail(f"{stage} was never killed in the middle of a checkpoint")
    goes_on_to(reference[0], folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_does_not_outlive_its_dvc(
    number: signal.Signals, reference: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    folder = make_project(tmp_path / "project", RESUMABLE)
    process = start(folder)
    while process.poll() is None and not list(folder.glob(".checkpoints/grpo-*/checkpoint-*")):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() in (-number, 128 + number)
    until = time.monotonic() + 20
    while stages_of(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert stages_of(folder) == []
    goes_on_to(reference[0], folder)
    statuses = {one["status"] for one in rows(folder, "stage") if one["regrpo.stage"] == "grpo"}
    assert statuses == {"KILLED", "FINISHED"}


def stages_of(folder: Path) -> list[str]:
    """The command lines of stages that run in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "-m stages." in command and Path(process.cwd()) == folder:
                found.append(command)
    return found


def mend_lock(folder: Path) -> None:
    """What `make repro` does first."""
    run(folder, "python", "-m", "regrpo.cli", "check", "--quiet")


def goes_on_to(expected: dict[str, str], folder: Path) -> None:
    """`dvc repro` of what was killed ends in these bytes.

    No run is left open, no checkpoint behind.
    """
    mend_lock(folder)
    run(folder, "dvc", "repro")
    run(folder, "python", "-m", "regrpo.cli", "sync")
    assert outputs(folder) == expected
    for kind in ("stage", "pipeline"):
        assert "RUNNING" not in {one["status"] for one in rows(folder, kind)}
    assert not list((folder / ".checkpoints").glob("*/checkpoint-*"))
