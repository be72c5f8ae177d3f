"""What tests of tests/gpu need, and the reason where it is not there."""

from __future__ import annotations

import importlib.util

import pytest

DEVICES = (
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param("cpu", marks=pytest.mark.slow),
)
"""Where a test's body runs: on a GPU, and as long as it takes on a CPU among the slow tests."""


def lacking(*packages: str, needed: float = 0) -> str:
    """What this machine lacks of a CUDA device, packages and bytes of GPU memory, in words."""
    import torch

    found = []
    if not torch.cuda.is_available():
        found.append(f"no CUDA device (torch {torch.__version__})")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            found.append(f"{package} is not installed")
    if not found and needed > memory():
        has = f"the card has {memory() / 1e9:.0f}"
        found.append(f"needs {needed / 1e9:.0f} GB of GPU memory, {has}")
    return "; ".join(found)


def require(device: str, *packages: str, needed: float = 0) -> None:
    """Skip what needs a GPU where it, a package or the memory is not there."""
    if device == "cuda" and (why := lacking(*packages, needed=needed)):
        pytest.skip(why)


def memory() -> int:
    """Bytes of the GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
