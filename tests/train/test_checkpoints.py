"""Resuming: the same bits as a run that was never interrupted, from complete checkpoints only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files
from regrpo.train import checkpoints, curves
from regrpo.train.curves import draw
from stages import grpo, sft
from tests.support.trainings import run_for, section

CHANGES: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 12, "logging_steps": 2, "save_steps": 4},
    "grpo": {"max_steps": 6, "save_steps": 2, "dev_every": 2, "sample_every": 1},
    "grpo with LoRA": {
        "max_steps": 6,
        "save_steps": 2,
        "lora": {"r": 4, "lora_alpha": 8},
        "learning_rate": 1e-2,
    },
    "grpo stopped early": {
        "max_steps": 30,
        "save_steps": 1,
        "learning_rate": 1e-6,
        "dev_every": 0,
        "early_stopping": {"reward_patience": 1, "smoothing": 1},
    },
}


class Interrupted(Exception):
    """Stands for a kill, at a point that the test chooses."""


def train(case: str, log: Callable[..., None] = lambda values, step: None) -> dict[str, str]:
    """Run the stage; SHA-256 of the model's files and of every deterministic report."""
    stage = case.split()[0]
    module = {"sft": sft, "grpo": grpo}[stage]
    run = run_for(section(module.Params, stage, **CHANGES[case]), stage)
    run.log = log
    module.train(run)
    outputs = [
        *Path("models", stage).rglob("*"),
        *Path("reports", stage).glob("*.[cp]*"),
    ]
    return {path.as_posix(): files.sha256(path) for path in outputs if path.is_file()}


def interrupt(case: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stage until it has logged step `at`, then stop it as a kill would.

    Nothing is tidied up.
    """
    from regrpo.train import callbacks

    real = callbacks.History.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        real(self, args, state, control, **kwargs)
        if state.global_step >= at:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.History, "on_log", on_log)
        with pytest.raises(Interrupted):
            train(case)


@pytest.fixture(scope="module")
def left(folder: Path) -> Path:
    """What grpo leaves in .checkpoints when it is interrupted at its fifth step."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt("grpo", 5, patch)
    return Path(".checkpoints").rename(folder / "left")


@pytest.fixture
def interrupted(left: Path, no_checkpoints: None) -> None:
    """As after a kill of grpo at its fifth step."""
    shutil.copytree(left, ".checkpoints")


def saved(case: str) -> list[int]:
    left = checkpoints.by_step(Path(".checkpoints") / case.split()[0])
    return [int(path.name.rpartition("-")[2]) for path in left]


@pytest.fixture(autouse=True)
def no_checkpoints(folder: Path) -> Iterator[None]:
    keep = folder / "kept-sft"
    shutil.copytree(folder / "models/sft", keep)
    yield
    shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
    shutil.rmtree(folder / "models/sft")
    keep.rename(folder / "models/sft")


def test_a_resumed_run_ends_in_the_same_bytes_and_sends_its_history_from_the_start(
    interrupted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curves, "draw", draw)
    assert saved("grpo") == [4, 2], "at most two are kept"
    sent: list[tuple[int, str]] = []
    resumed = train("grpo", lambda values, step: sent.extend((step, name) for name in values))
    assert "resuming from checkpoint-4" in capsys.readouterr().out
    assert not saved("grpo"), "none is left after success"
    assert train("grpo") == resumed
    assert "resuming" not in capsys.readouterr().out
    assert len(sent) == len(set(sent)), "no metric has two values at one step"
    assert [step for step, name in sent if name == "reward"] == [1, 2, 3, 4, 5, 6]
    assert [step for step, name in sent if name == "dev_accuracy"] == [0, 2, 4, 6]


@pytest.mark.parametrize(("case", "at", "left"), [("sft", 10, [8, 4]), ("grpo with LoRA", 3, [2])])
def test_a_resumed_warm_start_or_adapter_ends_in_the_same_bytes(
    case: str,
    at: int,
    left: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same bytes twice, too, from the seed alone: what was interrupted begins anew."""
    expected = train(case)
    assert not saved(case), "none is left after success"
    interrupt(case, at, monkeypatch)
    assert saved(case) == left, "at most two are kept"
    capsys.readouterr()
    assert train(case) == expected
    assert f"resuming from checkpoint-{left[0]}" in capsys.readouterr().out
    assert not saved(case)


def test_a_kill_after_an_early_stop_does_not_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checkpoint of that very step, it would train one more before its rule is asked."""
    from regrpo.train import saving

    case = "grpo stopped early"
    expected = train(case)
    step = files.read_json(Path("reports/grpo/metrics.json"))["stopped_early"]["step"]

    def killed(*_: Any, **__: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_model", killed)
        with pytest.raises(Interrupted):
            train(case)
    assert saved(case)[0] == step - 1
    assert train(case) == expected


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "altered"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(damage: str, interrupted: None) -> None:
    newest = Path(".checkpoints/grpo/checkpoint-4")
    target = newest / ("manifest.json" if damage == "no manifest" else "optimizer.pt")
    data = target.read_bytes()
    if damage == "truncated":
        target.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        target.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        target.unlink()
    found = checkpoints.newest_complete(Path(".checkpoints/grpo"))
    assert found == Path(".checkpoints/grpo/checkpoint-2")
    assert not newest.exists()


def test_a_run_told_not_to_resume_starts_from_its_beginning(
    interrupted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRPO_NO_RESUME", "1")
    assert checkpoints.newest_complete(Path(".checkpoints/grpo")) is None
    assert saved("grpo") == []


@pytest.mark.parametrize(
    ("changes", "cycle", "save_steps"),
    [
        ({"save_steps": 3}, 1, 3),
        ({"gradient_accumulation_steps": 4, "save_steps": 3}, 1, 3),
        ({"steps_per_generation": 4, "save_steps": 3}, 4, 4),
        ({"steps_per_generation": 4, "num_iterations": 2, "save_steps": 9}, 8, 16),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3, "save_steps": 4}, 3, 6),
        ({"generation_batch_size": 64, "save_steps": 3}, 4, 4),
        ({"logging_steps": 5, "steps_per_generation": 2, "save_steps": 1}, 2, 10),
    ],
)
def test_save_points_fall_on_cycles_and_logging_windows_whatever_is_asked(
    changes: dict[str, Any], cycle: int, save_steps: int
) -> None:
    params = section(grpo.Params, "grpo", **changes)
    assert (params.cycle, params.trainer_settings("cpu")["save_steps"]) == (cycle, save_steps)


def test_a_second_run_of_the_same_key_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with checkpoints.held(tmp_path / "key"):
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with checkpoints.held(tmp_path / "key"):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]


def test_the_lock_goes_with_the_folder_and_never_lets_two_in(tmp_path: Path) -> None:
    inside: list[int] = []
    met: list[int] = []

    def run(name: int) -> None:
        for _ in range(25):
            with checkpoints.held(tmp_path / "key") as folder:
                inside.append(name)
                (folder / "mine").touch(exist_ok=False)
                threading.Event().wait(0.0005)
                met.append(len(inside))
                inside.remove(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert met == [1] * 100
    assert list(tmp_path.iterdir()) == []


def test_locks_of_other_keys_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    (tmp_path / "killed.lock").touch()
    with checkpoints.held(tmp_path / "living"), checkpoints.held(tmp_path / "key"):
        assert {path.name for path in tmp_path.glob("*.lock")} == {"living.lock", "key.lock"}


def test_a_failed_run_keeps_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "key/checkpoint-2").mkdir(parents=True)
    with pytest.raises(Interrupted), checkpoints.held(tmp_path / "key"):
        raise Interrupted
    assert (tmp_path / "key/checkpoint-2").exists()


def test_a_forked_child_does_not_hold_the_lock_beyond_its_parent(tmp_path: Path) -> None:
    """A worker of a data loader that outlives a killed stage."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom regrpo.train import checkpoints\n"
        "with checkpoints.held(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child:\n        print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "key")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    try:
        waiting = threading.Thread(target=lambda: checkpoints.held(tmp_path / "key").__enter__())
        waiting.daemon = True
        waiting.start()
        waiting.join(10)
        assert not waiting.is_alive()
    finally:
        os.kill(child, signal.SIGKILL)
