"""The device that a test runs on."""

from __future__ import annotations

import pytest

from tests.support import gpu


@pytest.fixture(scope="module", params=gpu.DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """CUDA for tests marked gpu, which are skipped where there is none, else the CPU."""
    wanted = str(request.param)
    gpu.require(wanted)
    return wanted
