"""What a profile passes on is judged by the libraries that take it."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from regrpo.commands import plan as command
from regrpo.plan import (
    library_settings,
)
from tests.support.plans import HERE
from tests.support.projects import edit_yaml

ALSO_WRONG: dict[str, tuple[Any, str]] = {
    # key below grpo: value, what would do
    "loss_type": ("grppo", "grpo"),
    "scale_rewards": ("grp", "group"),
    "importance_sampling_level": ("tok", "token"),
    "vllm_mode": ("servr", "server"),
    "generation_kwargs.num_beens": (3, "num_beams"),
    "top_p": (1.5, "leave it out"),
    "weight_decay": (-0.1, "leave it out"),
    "adam_beta2": (1.5, "leave it out"),
    "model_init_kwargs.dtype": ("float8", "leave it out"),
    "model_init_kwargs.attn_implementation": ("sdqa", "sdpa"),
    "model_init_kwargs.attn_implementaton": ("sdpa", "attn_implementation"),
    "steps_per_generation": (0, "at least 1"),
    "generation_batch_size": (-256, "at least 1"),
    "num_iterations": (-1, "at least 1"),
}


@pytest.mark.parametrize("key", ALSO_WRONG)
def test_what_libraries_would_fail_on_in_training_only_is_told(here: Path, key: str) -> None:
    value, would_do = ALSO_WRONG[key]
    outer, _, inner = key.partition(".")
    edit_yaml(here / "params.yaml", {"grpo": {outer: {inner: value} if inner else value}})
    (found,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert found["key"] == f"grpo.{key}"
    assert repr(value) in found["why"] or "is no argument of" in found["why"]
    assert would_do in found["would_do"]


def test_the_names_that_plan_knows_are_those_that_trls_trainer_compares_with() -> None:
    from trl import generation
    from trl.trainer import grpo_trainer

    source = inspect.getsource(grpo_trainer) + inspect.getsource(generation.vllm_generation)
    source += inspect.getsource(importlib.import_module("trl.trainer.grpo_config"))
    for key, names in library_settings.CHOICES.items():
        assert [name for name in names if not re.search(rf"[\"'`]{name}[\"'`]", source)] == [], key
        compared = re.findall(rf'\b{key}(?: ==| !=| in| not in) (\[[^]]*\]|"\w+")', source)
        assert {name for part in compared for name in re.findall(r'"(\w+)"', part)} <= set(names), (
            key
        )
    assert len(re.findall(r'\bloss_type == "\w+"', source)) > 5, (
        "the pattern finds what it looks for"
    )
