"""Two processes (gloo).

They train, are killed, go on to the same bytes, and tell in one line what is wrong.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from regrpo.core import files
from tests.support.projects import MINIATURE, MODEL_FILES, environment, make_project, run
from tests.support.results import outputs, rows

pytestmark = pytest.mark.slow
TWO: dict[str, Any] = {"launch": {"processes": 2, "backend": "gloo"}}
LORA = {"lora": {"r": 4, "lora_alpha": 8}, "learning_rate": 1e-2}
SECTIONS = MINIATURE | {
    "sft": MINIATURE["sft"] | {"max_steps": 24, "logging_steps": 4, "save_steps": 8} | TWO,
    "grpo": MINIATURE["grpo"]
    | {
        "max_steps": 12,
        "save_steps": 2,
        "reward_funcs": {"exact_answer": 1.0, "length_penalty": 0.5},
    }
    | TWO,
}
REWARD_OF_ONE_RANK = """
import os

def my_reward(completions, answer, **columns):
    if os.environ.get("RANK") == "1" and len(completions) == 16:
        raise ArithmeticError("only here")
    return [float(len(one)) for one in completions]
"""

REWARD_OF_ANY_TEXT = """
def letters(completions, **columns):
    return [float(len(set(str(one)))) for one in completions]
"""
"""Differs between completions of a model that knows nothing, so that each step moves it."""


def trained(folder: Path) -> dict[str, str]:
    """SHA-256 of what sft and grpo leave."""
    return {
        name: digest
        for name, digest in outputs(folder).items()
        if "/sft/" in name or "/grpo/" in name
    }


def started(folder: Path, stage: str) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A stage, with its agent and its two workers; what it says lies in said.txt."""
    with (folder / "said.txt").open("wb") as said:
        command = ["python", "-m", f"stages.{stage}"]
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=said, stderr=subprocess.STDOUT
        )
    others: list[psutil.Process] = []
    while len(others) < 3:
        assert process.poll() is None, (folder / "said.txt").read_text()
        others = [
            one for one in psutil.Process(process.pid).children(recursive=True) if _trains(one)
        ]
        time.sleep(0.05)
    return process, others


def _trains(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(word == "regrpo.train.agent" or word.startswith("stages.") for word in words)


def wait_for_checkpoint(folder: Path, stage: str, process: subprocess.Popen[bytes]) -> None:
    while not list(folder.glob(f".checkpoints/{stage}-*/checkpoint-*/manifest.json")):
        assert process.poll() is None, (folder / "said.txt").read_text()
        time.sleep(0.01)


def all_gone(processes: list[psutil.Process], within: float = 3) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a refused stage said, which is one line."""
    [line] = done.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data and base are there; a warm start of no steps."""
    folder = make_project(tmp_path_factory.mktemp("launch") / "base", SECTIONS)
    for stage in ("prepare", "base_model", "select"):
        run(folder, "python", "-m", f"stages.{stage}")
    return folder


def copy(base: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    """The project elsewhere, with other parameters.

    Its warm start, where it has none, is the base.
    """
    from tests.support.projects import edit_yaml

    shutil.copytree(
        base,
        folder,
        ignore=shutil.ignore_patterns(".regrpo", ".checkpoints", "mlflow.db*", "mlartifacts"),
    )
    if not (folder / "models/sft").exists():
        shutil.copytree(folder / "models/base", folder / "models/sft")
    edit_yaml(folder / "params.yaml", changes)
    return folder


def test_two_processes_train_one_writes_and_only_the_stage_is_tracked(
    base: Path, tmp_path: Path
) -> None:
    # Two completions a process and four a prompt: each group lies on both.
    small = {"max_steps": 2, "per_device_train_batch_size": 2, "sample_every": 1}
    folder = copy(
        base, tmp_path / "project", grpo=small | {"reward_funcs": {"custom.varied:letters": 1.0}}
    )
    (folder / "custom/varied.py").write_text(REWARD_OF_ANY_TEXT)
    done = run(folder, "python", "-m", "stages.grpo", REGRPO_TRACKING="off")
    assert not done.stderr.strip()
    assert done.stdout.count("step 2/2") == 1
    assert {file.name for file in (folder / "models/grpo").iterdir()} == MODEL_FILES
    assert len(weights(folder)) == 2, "grpo moved them"
    metrics = files.read_json(folder / "reports/grpo/metrics.json")
    assert (metrics["steps"], metrics["prompts_seen"]) == (2, 2)
    samples = files.read_parquet(folder / "reports/grpo/samples.parquet")
    assert samples.groupby("step").size().tolist() == [4, 4]
    assert samples.groupby("step")["prompt"].nunique().tolist() == [1, 1], (
        "a whole group, of both processes"
    )
    [journal] = (folder / ".regrpo/journal").iterdir()
    assert len((journal / "metrics.jsonl").read_text().splitlines()) == 4, (
        "two steps, dev accuracy before and after"
    )
    left = sorted(path.suffix for path in (folder / ".checkpoints").iterdir())
    assert left == [], "no checkpoint, no lock, nothing that they talked through"


@pytest.fixture(scope="module")
def reference(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft and grpo by two processes that nobody disturbed."""
    folder = copy(base, tmp_path_factory.mktemp("launch") / "reference")
    for stage in ("sft", "grpo"):
        run(folder, "python", "-m", f"stages.{stage}")
    assert len(weights(folder)) == 3, "each stage moved them"
    return folder


def weights(folder: Path) -> set[str]:
    """The different weights of base, sft and grpo."""
    return {
        digest for name, digest in outputs(folder).items() if name.endswith("/model.safetensors")
    }


def test_killed_in_the_middle_they_go_on_to_the_bytes_of_a_run_never_killed(
    base: Path, reference: Path, tmp_path: Path
) -> None:
    """kill -9 of the stage's process alone: its agent and its workers must follow it at once."""
    folder = copy(base, tmp_path / "killed")
    for stage in ("sft", "grpo"):
        process, others = started(folder, stage)
        wait_for_checkpoint(folder, stage, process)
        process.kill()
        process.wait()
        assert all_gone(others)
        newest = max(
            folder.glob(f".checkpoints/{stage}-*/checkpoint-*/manifest.json"),
            key=lambda path: str(path),
        )
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(files.read_json(newest))
        said = run(folder, "python", "-m", f"stages.{stage}").stdout
        assert said.count("resuming from checkpoint-") == 1
    assert trained(folder) == trained(reference)
    run(folder, "python", "-m", "regrpo.cli", "sync")
    stages = sorted((one["regrpo.stage"], one["status"]) for one in rows(folder, "stage"))
    assert stages == [
        ("grpo", "FINISHED"),
        ("grpo", "KILLED"),
        ("sft", "FINISHED"),
        ("sft", "KILLED"),
    ]


def test_the_whole_group_killed_with_adapters(reference: Path, tmp_path: Path) -> None:
    expected = copy(reference, tmp_path / "expected", grpo=LORA)
    run(expected, "python", "-m", "stages.grpo")
    folder = copy(reference, tmp_path / "killed", grpo=LORA)
    process, others = started(folder, "grpo")
    wait_for_checkpoint(folder, "grpo", process)
    for one in others:  # the agent first, as it comes
        one.kill()
    assert process.wait(30) == 2
    assert all_gone(others)
    run(folder, "python", "-m", "stages.grpo")
    assert trained(folder) == trained(expected)
    assert len(weights(folder) | weights(reference)) == 4, (
        "they moved, and elsewhere than without adapters"
    )


def test_one_worker_killed_ends_the_stage_with_a_line(reference: Path, tmp_path: Path) -> None:
    folder = copy(reference, tmp_path / "project")
    process, others = started(folder, "grpo")
    wait_for_checkpoint(folder, "grpo", process)
    others[-1].kill()
    assert process.wait(60) == 2
    said = (folder / "said.txt").read_text().strip().splitlines()[-1]
    assert said.startswith("grpo.launch: expected 2 processes to end well; found process")
    assert "SIGKILL" in said
    assert all_gone(others)
    run(folder, "python", "-m", "stages.grpo")
    assert trained(folder) == trained(reference)


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT not ignored.

    Under nohup and the like it is, and what is ignored is inherited, as no handler is.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_stage_told_to_end_ends_its_workers(
    sent: int, code: int, reference: Path, tmp_path: Path
) -> None:
    folder = copy(reference, tmp_path / "project")
    process, others = started(folder, "grpo")
    wait_for_checkpoint(folder, "grpo", process)
    process.send_signal(sent)
    assert process.wait(60) == code
    assert all_gone(others)
    assert (folder / "reports/grpo/history.csv").read_text().count("\n") > 1, (
        "the evidence of a stopped run"
    )
    assert not list((folder / ".checkpoints").glob("*.launch"))


def test_what_was_not_started_as_asked_is_refused_before_a_step(base: Path, tmp_path: Path) -> None:
    """accelerate silently starts one process for MULTI_CPU, and trains DDP for FSDP on CPUs."""
    one_process = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_CPU",
        "use_cpu": True,
    }
    for name, found in (
        ("one", "found 1."),
        ("fsdp2", "gloo, FSDP2; found 2 processes, gloo, DDP."),
    ):
        config = f"profiles/launch/{name}.yaml"
        changed = {"launch": TWO["launch"] | {"config": config}, "dev_every": 0}
        folder = copy(base, tmp_path / name, grpo=changed)
        if name == "one":
            files.write_json(folder / config, one_process | {"num_processes": 2, "num_machines": 1})
        done = run(folder, "python", "-m", "stages.grpo", check=False)
        assert (done.returncode, "step" in done.stdout) == (1, False)
        assert "expected 2 processes" in last_line(done)
        assert found in last_line(done)
        assert not list((folder / "models").glob("grpo"))


def test_an_error_of_one_process_is_one_line_and_the_right_code(base: Path, tmp_path: Path) -> None:
    rewards = {"reward_funcs": {"custom.broken:my_reward": 1.0}, "dev_every": 0}
    folder = copy(base, tmp_path / "project", grpo=rewards)
    (folder / "custom/broken.py").write_text(REWARD_OF_ONE_RANK)
    done = run(folder, "python", "-m", "stages.grpo", check=False)
    assert done.returncode == 1
    assert last_line(done).startswith(
        "grpo.reward_funcs: custom.broken:my_reward: expected 16 finite numbers or None"
    )
    assert "ArithmeticError: only here" in last_line(done)
    assert (folder / "reports/grpo/health.json").exists(), "the evidence of a stopped run"


def test_torchrun_by_hand_is_refused(base: Path, tmp_path: Path) -> None:
    folder = copy(base, tmp_path / "project")
    done = run(folder, "python", "-m", "stages.grpo", check=False, WORLD_SIZE="2", RANK="0")
    assert done.returncode == 1
    assert "found WORLD_SIZE=2. Run `python -m stages.grpo` without torchrun" in last_line(done)


def test_two_nodes_of_one_process_each_end_in_the_bytes_of_one_node(
    reference: Path, tmp_path: Path
) -> None:
    """srun's stand-in starts the agents that SLURM would start, here."""
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(
        '#!/bin/bash\n[ "$1 $2" = "--nodes=2 --ntasks=2" ] || exit 9\nshift 4\n'
        'SLURM_NODEID=0 "$@" & SLURM_NODEID=1 "$@" & wait -n && wait -n\n'
    )
    srun.chmod(0o755)
    folder = copy(reference, tmp_path / "project", grpo={"launch": TWO["launch"] | {"nodes": 2}})
    done = run(folder, "python", "-m", "stages.grpo", check=False)
    assert "expected srun" in last_line(done)
    path = environment()["PATH"]
    run(folder, "python", "-m", "stages.grpo", PATH=f"{srun.parent}:{path}")
    assert trained(folder) == trained(reference)
