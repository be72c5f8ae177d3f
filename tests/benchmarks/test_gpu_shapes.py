"""Every verb of benchmarks/gpu_shapes.py, tiny and on a CPU, in a copy of the project."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from regrpo.core.profiles import read_yaml
from tests.support import projects, stand_ins

SCRIPT = projects.ROOT / "benchmarks/gpu_shapes.py"


def gpu_shapes(folder: Path, *arguments: str, check: bool = True) -> CompletedProcess[str]:
    command = (sys.executable, str(SCRIPT), *arguments)
    return projects.run(folder, *command, check=check, SHORT="1", DEVICE="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with GSM8K's columns in data/raw and what `make` writes."""
    copy = projects.make_project(tmp_path_factory.mktemp("shapes") / "copy", {}, with_git=False)
    stand_ins.gsm8k(copy / "data/raw")
    said = gpu_shapes(copy, "make").stdout
    assert said.startswith("336,576 parameters, 4,096 words")
    return copy


def test_the_variants_are_whole_profiles_without_vllm(folder: Path) -> None:
    for variant in ("lora", "full", "nf4"):
        grpo = read_yaml(folder / f"profiles/gemma-{variant}.yaml")["grpo"]
        assert [key for key in grpo if "vllm" in key] == ["use_vllm"]
    checked = projects.run(
        folder, "python", "-m", "regrpo.cli", "check", "--profile", "profiles/gemma-lora.yaml"
    )
    assert "FAIL" not in checked.stdout


@pytest.mark.slow
def test_a_case_is_measured_and_stands_beside_the_plan(folder: Path) -> None:
    gpu_shapes(folder, "plan")
    assert json.loads((folder / "plan-lora.json").read_text())["phases"]
    said = gpu_shapes(folder, "run", "grpo-full", "sft-unknown").stdout.splitlines()
    assert [line.split()[0] for line in said] == ["grpo-full", "sft-unknown"]
    assert "FAILED" in said[1]
    printed = gpu_shapes(folder, "table").stdout.splitlines()
    assert printed[0].split()[:2] == ["case", "plan"]
    grpo, unknown = json.loads((folder / "cases.json").read_text())
    assert (grpo["lengths"], grpo["sequences"], grpo["tokens_a_step"]) == ([48, 16], 16, 1024)
    assert len(grpo["steps"]) == 3
    assert grpo["generate_seconds"] > 0
    assert grpo["allocated_train"] == grpo["context"] == 0, "a CPU's memory is not CUDA's"
    assert grpo["plan_train"] == sum(grpo["plan_train_terms"].values())
    assert grpo["plan_generate"] > 0
    assert list(unknown) == ["case", "failed"]
    assert not (folder / "cases/grpo-full/models/grpo").exists(), "nothing is saved"


@pytest.mark.slow
def test_sft_is_measured_on_the_plans_lengths_and_on_real_rows(folder: Path) -> None:
    (folder / "params.yaml").write_text("profile: profiles/gemma-lora.yaml\n")
    projects.edit_yaml(folder / "profiles/gemma-lora.yaml", {"prepare": {"dev": 8}})
    projects.run(folder, "python", "-m", "stages.prepare", REGRPO_TRACKING="off")
    gpu_shapes(folder, "run", "sft-lora", "sft-lora-real")
    same_length, real = json.loads((folder / "cases.json").read_text())
    assert (same_length["lengths"], same_length["tokens_a_step"]) == ([48, 48], 384)
    assert len(same_length["steps"]) == len(real["steps"]) == 6
    assert real["tokens_a_step"] is None, "real rows have lengths of their own"


def test_without_a_verb_it_says_what_it_does(tmp_path: Path) -> None:
    done = gpu_shapes(tmp_path, check=False)
    assert done.returncode == 1
    assert "gpu_shapes.py make" in done.stderr
