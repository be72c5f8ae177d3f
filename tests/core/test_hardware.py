"""What `deterministic` turns on, and what a machine fails of, in one line each."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import hardware
from regrpo.core.errors import CannotCheck, Refused, RegrpoError

VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "FLASH_ATTENTION_DETERMINISTIC",
    "NCCL_ALGO",
    "VLLM_BATCH_INVARIANT",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
)


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
    hardware.SWITCHES.clear()
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]
    torch.set_num_threads(threads)


def test_without_deterministic_nothing_is_turned_on() -> None:
    import torch

    hardware.set_up(0, 1)
    assert hardware.switches_on() == []
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_turns_on_every_switch_and_says_which() -> None:
    import torch

    hardware.set_up(0, 1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "attention would be left out"
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert hardware.switches_on() == [
        "torch.use_deterministic_algorithms=True",
        "torch.backends.cudnn.deterministic=True",
        "torch.backends.cudnn.benchmark=False",
        "CUBLAS_WORKSPACE_CONFIG=:4096:8",
        "FLASH_ATTENTION_DETERMINISTIC=1",
        "NCCL_ALGO=Ring",
    ], "no vLLM here"


def test_vllm_runs_in_this_process_and_batch_invariant_where_the_device_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    import torch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    hardware.turn_on_determinism()
    assert hardware.switches_on()[-1] == "VLLM_ENABLE_V1_MULTIPROCESSING=0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    hardware.turn_on_determinism()
    assert hardware.switches_on()[-1] == "VLLM_BATCH_INVARIANT=1"
    # As vLLM does when it starts.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert "CUBLAS_WORKSPACE_CONFIG=:16:8" in hardware.switches_on(), "what is on is read back"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            ValueError(
                "Free memory on device cuda:0 (3.25/23.43 GiB) on startup is less than desired GPU "
                "memory utilization (0.96, 22.49 GiB). Decrease GPU memory utilization or reduce"
            ),
            r"Lower SHARE, or end what else holds the GPU .* Or `use_vllm: false`\.$",
        ),
        (
            ValueError(
                "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
            ),
            r"Raise SHARE, or lower LENGTH\. Or",
        ),
        (
            ValueError(
                "To serve at least one request with the models's max seq len (32768), (3.2 GiB KV "
                "cache is needed, which is larger than the available KV cache memory (1.2 GiB)."
            ),
            r"Raise SHARE, or lower LENGTH\.",
        ),
        (
            ValueError(
                "User-specified max_model_len (4096) is greater than the derived max_model_len"
            ),
            r"Lower LENGTH\.",
        ),
        (
            RuntimeError("VLLM batch_invariant mode requires an attention backend in [...]"),
            r"Set `deterministic: false`",
        ),
        (ImportError("vllm/_C.abi3.so: undefined symbol: _ZN3c1"), r"of another torch"),
        (
            RuntimeError("Engine core initialization failed. See root cause above.\nmore"),
            r"found RuntimeError: .* cause above\. Its own words stand above\. SHARE and LENGTH",
        ),
    ],
)
def test_a_vllm_that_does_not_start_is_one_line_with_the_key_to_change(
    error: Exception, remedy: str
) -> None:
    with (
        pytest.raises(
            Refused, match=rf"^grpo: expected vLLM's engine to start; .*{remedy}"
        ) as told,
        hardware.refuse_vllm_failure("grpo", "SHARE", "LENGTH", "use_vllm: false"),
    ):
        raise error
    assert "\n" not in str(told.value)


def out_of_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB "
        "of which 5.31 MiB is free. Process 7 has 9.00 GiB memory in use. Of the allocated memory "
        "22.98 GiB is allocated by PyTorch, and 238.07 MiB is reserved by PyTorch but unallocated."
    )


@pytest.mark.parametrize(
    "error",
    [
        out_of_memory(),
        MemoryError("no more"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: not enough memory"
        ),
    ],
)
def test_full_memory_is_one_line_with_the_peak_the_plan_and_two_changes(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "planned_memory", lambda stage: f"the plan of {stage}")
    words = (
        r"^grpo: .*fit into memory; found .*; it held [\d,]+ MB of memory at most, "
        r"and the plan of grpo\. Set A, or B;"
    )
    with (
        pytest.raises(RegrpoError, match=words) as told,
        hardware.refuse_full_memory("grpo", ["A", "B", "C"]),
    ):
        raise error
    assert told.value.exit_code == (1 if "CUDA" in str(error) else 2)
    assert "allocated by PyTorch" not in str(told.value)
    assert "`regrpo plan`" in str(told.value)


def test_the_plan_is_asked_for_a_stages_highest_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plan(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command[1:])
        phases = [
            {"phase": "sft, train", "total": 9e9},
            {"phase": "grpo, train", "total": 2e9},
            {"phase": "grpo, generate", "total": 3e9},
        ]
        return subprocess.CompletedProcess(command, 1, json.dumps({"phases": phases}).encode(), b"")

    monkeypatch.setattr(subprocess, "run", plan)
    assert hardware.planned_memory("grpo") == "`regrpo plan` expects 3.0 GB"
    assert hardware.planned_memory("evaluate") == (
        "`regrpo plan` could not be asked what it expects"
    )
    assert asked[0] == ["-m", "regrpo.cli", "plan", "--json"]


def test_an_address_space_that_is_too_small_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit in (resource.RLIM_INFINITY, 4 * 10**9):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, -1))
        hardware.require_address_space()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * 10**9, -1))
    with pytest.raises(CannotCheck, match=r"^ulimit -v: expected at least 3,200 MB .* 3,000 MB\."):
        hardware.require_address_space()


def test_what_is_not_about_memory_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), hardware.refuse_full_memory("sft", []):
        raise RuntimeError("shapes do not fit")


def test_what_no_user_can_mend_goes_to_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging
    import warnings

    bitsandbytes = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(bitsandbytes, "handlers", [])
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        hardware.log_what_no_user_can_mend()
        old = "`gradient_checkpointing_enable` is deprecated and will be removed in v6."
        warnings.warn(old, FutureWarning, stacklevel=1)
        warnings.warn("your reward is odd", UserWarning, stacklevel=1)
    bitsandbytes.getChild("backends").warning("no kernel for this processor")
    bitsandbytes.error("library load error")
    bitsandbytes.handlers[0].close()
    shown = capsys.readouterr().err.splitlines()
    assert "your reward is odd" in shown[0]
    assert shown[-1] == "library load error"
    assert not any("deprecated" in line or "kernel" in line for line in shown)
    logged = (tmp_path / ".regrpo" / hardware.WARNINGS_LOG).read_text()
    assert old in logged
    assert "no kernel for this processor" in logged


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
    before = hardware.peak_memory_mb()
    subprocess.run([sys.executable, "-c", f"kept = b'x' * {(before + 200) * 10**6}"], check=True)
    assert hardware.peak_memory_mb() > before + 150


def test_switched_off_vector_units_are_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hardware.VECTOR_UNITS:
        monkeypatch.delenv(name, raising=False)
    whole = hardware.cpu_model()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert hardware.cpu_model() == f"{whole}, ATEN_CPU_CAPABILITY=avx2"


def test_peak_memory_does_not_begin_at_what_the_parent_held() -> None:
    code = "from regrpo.core import hardware; print(hardware.peak_memory_mb())"
    held = b"x" * 400 * 10**6
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert hardware.peak_memory_mb() > len(held) / 1e6
    assert int(done.stdout) < 200
