"""What each stage imports while it runs: nothing heavy that it does not use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regrpo.core.profiles import STAGES
from tests.support.projects import make_project, run

HEAVY = {
    "datasets",
    "fastapi",
    "great_expectations",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "pandas",
    "peft",
    "torch",
    "transformers",
    "trl",
    "vllm",
}
TRAINS = {"torch", "transformers", "trl", "peft", "datasets", "pandas"}
USED = {
    # matplotlib: reasoning_gym imports cellpylib, which draws. pandas: pyarrow asks of every list
    # whether it is one of pandas'.
    "prepare": {"matplotlib", "pandas"},
    # peft: transformers imports it with every model.
    "base_model": {"torch", "transformers", "peft"},
    # torch, transformers: the tokenizer.
    "validate": {"great_expectations", "pandas", "torch", "transformers"},
    "sft": TRAINS,
    # By default it copies.
    "select": set(),
    "grpo": TRAINS | {"matplotlib"},
    "evaluate": {"lm_eval", "torch", "transformers", "peft", "datasets", "pandas", "matplotlib"},
    # pandas: its frames hold the samples.
    "model_card": {"pandas"},
}
"""What is wanted of HEAVY, and what a library brings along that cannot be had without it."""


@pytest.mark.slow
def test_no_stage_imports_what_it_does_not_use(tmp_path: Path) -> None:
    project = make_project(tmp_path, with_git=False)
    found = {}
    for stage in STAGES:
        command = ("python", "-X", "importtime", "-m", f"stages.{stage}")
        said = run(project, *command, REGRPO_TRACKING="off").stderr
        found[stage] = set(re.findall(r"\| +(\w+)$", said, re.MULTILINE)) & HEAVY
    # Where vLLM is installed, TRL imports it (docs/gpu.md).
    found["sft"].discard("vllm")
    found["grpo"].discard("vllm")
    assert found == USED
