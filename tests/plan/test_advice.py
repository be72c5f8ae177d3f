"""What is advised to a stage that does not fit makes it fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from regrpo import cli
from regrpo.commands import plan as command
from regrpo.plan import advice, model_shape
from regrpo.plan.findings import GIB, Target
from regrpo.plan.memory import phases
from regrpo.plan.workload import CUDA, Training, Workload
from tests.support.plans import GEMMA, small_config
from tests.support.projects import edit_yaml


def test_no_length_is_advised_that_leaves_sft_no_room_behind_its_prompts(here: Path) -> None:
    longer = {"max_prompt_tokens": 4000, "max_length": 6000, "per_device_train_batch_size": 1}
    edit_yaml(here / "profiles/uk-summarize-detox.yaml", {"sft": longer})

    def advised(gib: float) -> list[int]:
        made = command.make(
            Path("profiles/uk-summarize-detox.yaml"),
            Target("RTX 3090", int(gib * GIB), stated=True),
        )
        changes = [
            one["keys"]
            for each in made["advice"]
            if each["stage"] == "sft"
            for one in each["changes"]
        ]
        return [keys["sft.max_length"] for keys in changes if "sft.max_length" in keys]

    assert [length > 4000 for length in advised(4.0)] == [True]
    assert advised(3.3) == [], "2,880 would do, were the prompts shorter"


def test_classifiers_stand_beside_vllm_in_evaluate(here: Path, gemma: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = here / "models/raw/judge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(
        {"weight": torch.zeros(10**6, 100, dtype=torch.float16)}, folder / "model.safetensors"
    )
    judge = {"path": "judge", "positive": ["LABEL_0"], "negative": ["LABEL_1"]}
    edit_yaml(
        gemma,
        {
            "evaluate": {
                "classifiers": {"kind": judge},
                "model_args": {"gpu_memory_utilization": 0.95},
            }
        },
    )
    told = command.make(gemma, Target("L4", 24 * 2**30, stated=True))
    (phase,) = [one for one in told["phases"] if one["phase"] == "evaluate"]
    assert phase["terms"]["classifiers"] == 4 * 10**8  # float32, however it was saved
    assert not phase["fits"]
    (advice,) = [one for one in told["advice"] if one["stage"] == "evaluate"]
    assert advice["changes"][0]["keys"] == {"evaluate.model_args.gpu_memory_utilization": 0.9}


def test_too_little_room_for_vllm_beside_training_is_advised_a_smaller_share(
    here: Path, gemma: Path
) -> None:
    edit_yaml(gemma, {"grpo": {"vllm_gpu_memory_utilization": 0.75}})
    told = command.make(gemma, Target("L4", 12 * GIB, stated=True))
    assert told["verdict"] == "does not fit"
    (advice,) = [one for one in told["advice"] if one["stage"] == "grpo"]
    assert advice["largest"] == "vLLM"
    keys = [key for change in advice["changes"] for key in change["keys"]]
    assert "grpo.vllm_gpu_memory_utilization" in keys


def test_sft_is_never_advised_a_length_below_the_longest_prompt(here: Path, gemma: Path) -> None:
    told = command.make(gemma, Target("A100", 8 * 2**30, stated=True))
    (advice,) = [one for one in told["advice"] if one["stage"] == "sft"]
    lengths = [change["keys"].get("sft.max_length", 768) for change in advice["changes"]]
    assert min(lengths) > 512


def test_generating_less_at_once_is_tried(here: Path, gemma: Path) -> None:
    edit_yaml(
        gemma,
        {"grpo": {"use_vllm": False, "vllm_max_model_length": None}, "evaluate": {"backend": "hf"}},
    )
    told = command.make(gemma, Target("A100", 7 * 2**30, stated=True))
    (change,) = next(one for one in told["advice"] if one["stage"] == "grpo")["changes"]
    assert (
        change["keys"]["grpo.steps_per_generation"]
        * change["keys"]["grpo.per_device_train_batch_size"]
        % 8
        == 0
    )
    edit_yaml(
        gemma, {"grpo": {key.partition(".")[2]: value for key, value in change["keys"].items()}}
    )
    again = command.make(gemma, Target("A100", 7 * 2**30, stated=True))
    assert [one["fits"] for one in again["phases"] if one["phase"].startswith("grpo")] == [
        True,
        True,
    ]
    assert not [one for one in again["findings"] if one["level"] == "wrong"]


def test_too_little_memory_is_told_with_changes_that_do_fit(
    here: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / GEMMA, {"grpo": {"lora": None, "activation_checkpointing": False}})
    assert cli.main(["plan", "--profile", GEMMA, "--gpu-memory", "40GiB", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "does not fit"
    (advice,) = told["advice"]
    assert advice["stage"] == "grpo"
    assert advice["largest"] == "activations"
    first = [next(iter(change["keys"])) for change in advice["changes"]]
    assert first == ["grpo.per_device_train_batch_size", "grpo.activation_checkpointing"]
    for change in advice["changes"]:
        again = YAML().load((here / GEMMA).read_text())
        for key, value in change["keys"].items():
            again["grpo"][key.partition(".")[2]] = (
                YAML(typ="safe").load(value) if isinstance(value, str) else value
            )
        with (here / "again.yaml").open("w") as f:
            YAML().dump(again, f)
        assert (
            command.make(Path("again.yaml"), Target("A100", 40 * 2**30, stated=True))["verdict"]
            == "fits"
        ), change


def test_changes_come_together_where_none_does_alone_and_none_where_nothing_helps() -> None:
    shape = model_shape.read(small_config("Llama", 2))
    train = Training(batch=64, prompt=512, completion=512)
    work = Workload("sft", CUDA, train, None, limit=0)
    (training,) = phases(shape, work)
    peak = training.total

    def advised(limit: int) -> list[dict[str, Any]]:
        changes = advice.advise(shape, dataclasses.replace(work, limit=limit))["changes"]
        assert all(one["total"] <= limit for one in changes)
        return list(changes)

    assert all(len(one["keys"]) <= 2 for one in advised(peak // 2))
    assert len(advised(peak // 2)) > 1
    assert [
        len(one["keys"]) > 2 for one in advised((CUDA.context + peak) // 200 + CUDA.context)
    ] == [True]
    assert advised(1000) == []
