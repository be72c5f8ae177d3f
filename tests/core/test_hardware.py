"""regrpo.core.hardware: what `deterministic` turns on, and that nothing is turned on without it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from regrpo.core import hardware

VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC", "VLLM_BATCH_INVARIANT")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flags, thread count and variables as they were."""
    import torch

    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what the code sets
        monkeypatch.delenv(name)
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]
    torch.set_num_threads(threads)


def test_without_deterministic_nothing_is_turned_on() -> None:
    import torch

    assert hardware.set_up(0, 1) == {}
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_turns_on_every_switch_and_says_which(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    import torch

    on = hardware.set_up(0, 1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == on["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"
    assert on["torch.use_deterministic_algorithms"] is True
    assert "VLLM_BATCH_INVARIANT" not in on, (
        "no vLLM, or no device that its batch-invariant mode runs on"
    )


def test_vllm_is_asked_for_batch_invariance_where_the_device_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    import torch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((9, 0), "1"), ((7, 5), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert hardware.turn_on_determinism().get("VLLM_BATCH_INVARIANT") == expected


def test_the_seed_reaches_every_generator() -> None:
    import numpy as np
    import torch

    drawn = []
    for seed in (3, 3, 4):
        hardware.set_up(seed, 1)
        drawn.append((random.random(), float(np.random.random()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]
    assert all(first != other for first, other in zip(drawn[0], drawn[2], strict=True))


def test_peak_memory_counts_the_processes_that_were_started_and_ended() -> None:
    import subprocess
    import sys

    before = hardware.peak_memory_mb()
    subprocess.run([sys.executable, "-c", f"kept = b'x' * {(before + 200) * 10**6}"], check=True)
    assert hardware.peak_memory_mb() > before + 150
