"""Gemma 3 of 999,885,952 random parameters on a GPU: bf16 with LoRA, nf4, memory by the plan.

benchmarks/gpu_shapes.py makes the model from the profile's configuration and trains some steps;
tests/benchmarks runs it on a CPU, tiny.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import gpu, stand_ins
from tests.support.projects import ROOT, make_project, run

pytestmark = pytest.mark.gpu
SHAPES = str(ROOT / "benchmarks/gpu_shapes.py")
LORA, NF4 = ("sft-lora-saved", "grpo-lora"), ("sft-nf4", "grpo-nf4")
FURTHEST = 0.20
"""The plan's own claim (docs/plan.md)."""
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the model, and plans of its variants."""
    gpu.require("cuda", needed=6e9)  # to make the model
    copy = make_project(tmp_path_factory.mktemp("gemma") / "copy", {}, with_git=False)
    stand_ins.gsm8k(copy / "data/raw")
    for verb in ("make", "plan"):
        run(copy, sys.executable, SHAPES, verb)
    return copy


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """What was measured of every case that fits, with the plan's numbers."""
    cases = [*LORA, *([] if gpu.lacking("bitsandbytes") else NF4)]
    fitting = [case for case in cases if planned_bytes(folder, case) < gpu.memory()]
    run(folder, sys.executable, SHAPES, "run", *fitting)
    run(folder, sys.executable, SHAPES, "table")
    return {one["case"]: one for one in json.loads((folder / "cases.json").read_text())}


def planned_bytes(folder: Path, case: str) -> int:
    """The largest phase of the case's stage, by the plan."""
    stage, variant, *_ = case.split("-")
    phases = json.loads((folder / f"plan-{variant}.json").read_text())["phases"]
    return max(one["total"] for one in phases if one["phase"].split(",")[0] == stage)


def result_of(case: str, folder: Path, results: Results) -> dict[str, Any]:
    gpu.require("cuda", needed=planned_bytes(folder, case))
    result = results[case]
    assert "failed" not in result, result["failed"]
    return result


@pytest.mark.parametrize("case", LORA)
def test_bf16_lora_trains(case: str, folder: Path, results: Results) -> None:
    check_training(result_of(case, folder, results))


@pytest.mark.parametrize("case", NF4)
def test_nf4_trains(case: str, request: pytest.FixtureRequest) -> None:
    gpu.require("cuda", "bitsandbytes")
    folder, results = (request.getfixturevalue(name) for name in ("folder", "results"))
    check_training(result_of(case, folder, results))


def check_training(result: dict[str, Any]) -> None:
    assert result["numbers"]
    assert all(math.isfinite(number) for number in result["numbers"].values())
    assert min(result["steps"]) > 0
    assert sum(result["phases"].values()) == pytest.approx(result["step_seconds"], rel=0.2)


def test_the_adapter_has_moved_and_is_merged(folder: Path, results: Results) -> None:
    from safetensors.torch import load_file

    result_of(LORA[0], folder, results)
    model = folder / "cases" / LORA[0] / "models/sft"
    assert (model / "model.safetensors").exists()
    adapter = load_file(model / "adapter/adapter_model.safetensors")
    outer = [weights for name, weights in adapter.items() if ".lora_B." in name]
    assert len(outer) == 26 * 7, "seven linear modules of 26 layers"
    assert all(bool(weights.abs().max() > 0) for weights in outer)


@pytest.mark.parametrize("case", [*LORA, *NF4])
def test_the_measured_peak_is_within_a_fifth_of_the_plan(
    case: str, request: pytest.FixtureRequest
) -> None:
    gpu.require("cuda", *(["bitsandbytes"] if case in NF4 else []))
    folder, results = (request.getfixturevalue(name) for name in ("folder", "results"))
    result = result_of(case, folder, results)
    differences = {
        name: result[f"difference_{name}"]
        for name in ("train", "generate")
        if f"difference_{name}" in result
    }
    assert differences
    assert max(map(abs, differences.values())) <= FURTHEST, differences
