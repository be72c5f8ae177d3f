"""regrpo plan.

It accepts what is right, and names key, reason and a value that would do for what is wrong.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from regrpo import cli
from regrpo.commands import plan as command
from regrpo.core.errors import Refused
from regrpo.core.settings import Lora
from regrpo.inputs import base_models
from regrpo.plan import (
    advice,
    findings,
    library_settings,
    machine,
    memory,
    model_shape,
    step_time,
    workload,
)
from regrpo.plan.findings import GIB, Target
from regrpo.plan.memory import CPU, CUDA, Generation, Training
from tests.support.projects import ROOT, edit_yaml

HERE = Target("A100", 80 * 2**30)
GEMMA = "profiles/gemma-3-1b-pt.yaml"
SCRATCH = {"kind": "scratch", "license": "MIT", "tokenizer": {"kind": "characters"}}
HUB = {"kind": "hub", "repo": "a/b", "revision": "0" * 40, "license": "MIT"}
GYM = {"kind": "reasoning_gym", "task": "chain_sum", "size": 32000, "license": "MIT"}
GLOO = {"processes": 2, "backend": "gloo"}
SERVER = {"use_vllm": True, "vllm_mode": "server", "vllm_max_model_length": None}
VLLM = {"device": "cuda", "use_vllm": True, "vllm_gpu_memory_utilization": 0.3}


@pytest.fixture
def here(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = project({}, with_git=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.import_module("torch").cuda, "is_available", lambda: False)
    return folder


@pytest.fixture
def gemma(here: Path) -> Path:
    """Gemma's profile, asked our task only: lm-eval's own are looked up in 14,000 files."""
    edit_yaml(here / GEMMA, {"evaluate": {"tasks": ["heldout"]}})
    return here / GEMMA


def shipped() -> list[str]:
    return [
        "params.yaml",
        *(f"profiles/{path.name}" for path in sorted((ROOT / "profiles").glob("*.yaml"))),
    ]


@pytest.mark.parametrize("profile", shipped())
def test_every_shipped_profile_is_accepted(
    here: Path, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--profile", profile]) == 0
    said = capsys.readouterr().out
    assert said.startswith((f"{profile}: fits", f"{profile}: nothing is wrong"))
    assert max(map(len, said.splitlines())) <= 100


def test_gemma_is_counted_to_the_parameter_from_what_its_profile_says(
    here: Path, gemma: Path
) -> None:
    told = command.make(Path(GEMMA), HERE)
    assert told["base"]["parameters"] == 999_885_952
    assert told["base"]["sliding_layers"] == 22
    assert [one["phase"] for one in told["phases"]] == [
        "sft",
        "grpo, train",
        "grpo, generate",
        "evaluate",
    ]
    assert all(one["fits"] for one in told["phases"])


WRONG: dict[str, tuple[str, Mapping[str, Mapping[str, Any]], list[str], str, str, str]] = {
    # what: profile, its changes, arguments, key, why, what would do
    "groups that do not divide": (
        "params.yaml",
        {"grpo": {"num_generations": 5}},
        [],
        "grpo.num_generations",
        "(5) must divide the completions generated at once, 256",
        "4 or 8",
    ),
    "a misspelled key of TRL": (
        "params.yaml",
        {"grpo": {"max_completion_lenght": 14}},
        [],
        "grpo.max_completion_lenght",
        "is neither ours nor a field of GRPOConfig",
        "max_completion_length",
    ),
    "text for a number": (
        "params.yaml",
        {"sft": {"learning_rate": "fast"}},
        [],
        "sft.learning_rate",
        "should be a valid number; found 'fast'",
        "0.003, as in params.yaml",
    ),
    "a number out of range": (
        "params.yaml",
        {"evaluate": {"bootstrap": 1}},
        [],
        "evaluate.bootstrap",
        "greater than or equal to 100; found 1",
        "as in params.yaml",
    ),
    "a key that regrpo sets": (
        "params.yaml",
        {"grpo": {"output_dir": "elsewhere"}},
        [],
        "grpo.output_dir",
        "is set by regrpo",
        "leave it out",
    ),
    "code from a repository": (
        "params.yaml",
        {"sft": {"model_init_kwargs": {"trust_remote_code": True}}},
        [],
        "sft.trust_remote_code",
        "is refused",
        "leave it out",
    ),
    "completions beyond the window": (
        "params.yaml",
        {"grpo": {"max_completion_length": 300}},
        [],
        "grpo.max_completion_length",
        "(64 + 300 = 364 tokens) exceed the base's window of 256",
        "at most 192",
    ),
    "answers beyond the window": (
        "params.yaml",
        {"evaluate": {"max_gen_toks": 250}},
        [],
        "evaluate.max_gen_toks",
        "exceed the base's window of 256",
        "at most 192",
    ),
    "solutions beyond the window": (
        "params.yaml",
        {"sft": {"max_length": 1000}},
        [],
        "sft.max_length",
        "1000 tokens exceed the base's window of 256",
        "at most 256",
    ),
    "prompts beyond the window": (
        "params.yaml",
        {"validate": {"max_prompt_tokens": 256}},
        [],
        "validate.max_prompt_tokens",
        "leave nothing of the base's window",
        "at most 128",
    ),
    "LoRA on modules that are not there": (
        "params.yaml",
        {"grpo": {"lora": {"r": 8, "lora_alpha": 16, "target_modules": ["query"]}}},
        [],
        "grpo.lora.target_modules",
        "{'query'} not found in the base model",
        "all-linear, or some of down_proj",
    ),
    "two ways to say the generation batch": (
        "params.yaml",
        {"grpo": {"generation_batch_size": 256, "steps_per_generation": 1}},
        [],
        "grpo.generation_batch_size",
        "can not be both configured",
        "leave it out",
    ),
    "a generation batch of half a batch": (
        "params.yaml",
        {"grpo": {"generation_batch_size": 384}},
        [],
        "grpo.generation_batch_size",
        "multiple of",
        "512",
    ),
    "warm-up beyond the end": (
        "params.yaml",
        {"sft": {"warmup_steps": 2000}},
        [],
        "sft.warmup_steps",
        "2000 reach the last of 1200 steps",
        "at most 1199; 120 is usual",
    ),
    "bf16 on a card without it": (
        "params.yaml",
        {"sft": {"device": "cuda", "bf16": True}},
        ["--gpu", "T4"],
        "sft.bf16",
        "T4 has no bf16 in hardware",
        "bf16: false with fp16: true",
    ),
    "half precision on a CPU": (
        "params.yaml",
        {"sft": {"fp16": True}},
        [],
        "sft.fp16",
        "needs a GPU",
        "false",
    ),
    "vLLM on a CPU": (
        "params.yaml",
        {"grpo": {"use_vllm": True}},
        [],
        "grpo.use_vllm",
        "grpo runs on a CPU",
        "false, or device: cuda",
    ),
    "vLLM's window too small": (
        "params.yaml",
        {"grpo": {**VLLM, "vllm_max_model_length": 32}},
        [],
        "grpo.vllm_max_model_length",
        "32 tokens do not hold prompt and completion (64 + 14 = 78)",
        "78",
    ),
    "vLLM over processes that are not there": (
        "params.yaml",
        {"grpo": {**VLLM, "vllm_tensor_parallel_size": 2}},
        [],
        "grpo.vllm_tensor_parallel_size",
        "2 does not divide 1 process",
        "1",
    ),
    "more than the GPU for vLLM": (
        "params.yaml",
        {"grpo": {**VLLM, "vllm_gpu_memory_utilization": 1.5}},
        [],
        "grpo.vllm_gpu_memory_utilization",
        "leaves room to train",
        "0.3",
    ),
    "no room for vLLM's cache": (
        GEMMA,
        {"grpo": {"vllm_gpu_memory_utilization": 0.035}},
        [],
        "grpo.vllm_gpu_memory_utilization",
        "holds the weights and no cache for one sequence",
        "0.05 or more",
    ),
    "vLLM to evaluate on a CPU": (
        "params.yaml",
        {"evaluate": {"backend": "vllm"}},
        [],
        "evaluate.backend",
        "evaluate runs on a CPU",
        "hf, or device: cuda",
    ),
    "an optimizer of a package that is not here": (
        "params.yaml",
        {"sft": {"optim": "adamw_bnb_8bit"}},
        [],
        "sft.optim",
        "needs bitsandbytes, which is not installed",
        "adamw_torch_fused, or pip install",
    ),
    "sizes that make no model": (
        "params.yaml",
        {
            "base_model": {
                "source": {
                    "kind": "scratch",
                    "license": "MIT",
                    "config": {"num_attention_heads": 0},
                    "tokenizer": {"kind": "characters"},
                }
            }
        },
        [],
        "base_model.source.config",
        "sizes that make a model",
        "Correct it in the profile",
    ),
    "an unknown reward": (
        "params.yaml",
        {"grpo": {"reward_funcs": {"exct_answer": 1.0}}},
        [],
        "grpo.reward_funcs",
        "found exct_answer",
        "Correct the name",
    ),
    "no use of completions": (
        "params.yaml",
        {"grpo": {"num_iterations": 0}},
        [],
        "grpo.num_iterations",
        "must be at least 1; found 0",
        "at least 1",
    ),
    "text for a mapping": (
        "params.yaml",
        {"grpo": {"model_init_kwargs": "auto"}},
        [],
        "grpo.model_init_kwargs",
        "must be a mapping; found 'auto'",
        "leave it out",
    ),
    "layers that are not as many as their types": (
        "params.yaml",
        {
            "base_model": {
                "source": {**SCRATCH, "config": {"num_hidden_layers": 3, "layer_types": []}}
            }
        },
        [],
        "base_model.source.config.num_hidden_layers",
        "(3) must be equal to the number of",
        "Correct it",
    ),
    "heads that do not divide": (
        "params.yaml",
        {
            "base_model": {
                "source": {**SCRATCH, "config": {"hidden_size": 128, "num_attention_heads": 3}}
            }
        },
        [],
        "base_model.source.config",
        "not a multiple of the number of attention heads (3)",
        "Correct it",
    ),
    "text for a size": (
        "params.yaml",
        {"base_model": {"source": {**SCRATCH, "config": {"hidden_size": "big"}}}},
        [],
        "base_model.source.config.hidden_size",
        "expected int, got str",
        "Correct it",
    ),
    "text for a size of a hub's model": (
        "params.yaml",
        {
            "base_model": {
                "source": {**HUB, "config": {"model_type": "gemma3_text", "hidden_size": "big"}}
            }
        },
        [],
        "base_model.source.config.hidden_size",
        "expected int, got str",
        "Correct it",
    ),
    "no words": (
        "params.yaml",
        {
            "base_model": {
                "source": {**HUB, "config": {"model_type": "gemma3_text", "vocab_size": 0}}
            }
        },
        [],
        "base_model.source",
        "expected a causal language model that transformers can build",
        "Correct its",
    ),
    "a misspelled size": (
        "params.yaml",
        {"base_model": {"source": {**SCRATCH, "config": {"hidden_sze": 128}}}},
        [],
        "base_model.source.config.hidden_sze",
        "is no field of transformers' Gemma3TextConfig",
        "hidden_size",
    ),
    "a misspelled key of a kind of source": (
        "params.yaml",
        {"base_model": {"source": {**HUB, "revison": "main"}}},
        [],
        "base_model.source.revison",
        "unknown key",
        "revision",
    ),
    "a kind of source that there is not": (
        "params.yaml",
        {"base_model": {"source": {"kind": "scrath"}}},
        [],
        "base_model.source.kind",
        "found 'scrath'",
        "scratch, local, hub",
    ),
    "a base that is not there": (
        "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "nothere", "license": "MIT"}}},
        [],
        "base_model.source",
        "found nothing there",
        "Copy it to models/raw/nothere, or `dvc pull` if it is tracked",
    ),
    "data that are not there": (
        "params.yaml",
        {"prepare": {"source": {"kind": "local", "train": "no.jsonl", "license": "MIT"}}},
        [],
        "prepare.source",
        "found nothing there",
        "Copy it to data/raw/no.jsonl",
    ),
    "nothing for a number or a word": (
        "params.yaml",
        {"evaluate": {"batch_size": 0}},
        [],
        "evaluate.batch_size",
        "greater than 0 or 'auto'; found 0",
        "300, as in params.yaml",
    ),
    "no rank": (
        "params.yaml",
        {"sft": {"lora": {"lora_alpha": 16}}},
        [],
        "sft.lora.r",
        "is missing",
        "16, as in profiles/gemma-3-1b-pt.yaml",
    ),
    "another library's name for a rank": (
        "params.yaml",
        {"sft": {"lora": {"r": 8, "lora_alpha": 16, "rank": 8}}},
        [],
        "sft.lora.rank",
        "unknown key",
        "one of r, lora_alpha",
    ),
    "a misspelled key of a classifier": (
        "params.yaml",
        {"evaluate": {"classifiers": {"kind": {"path": "here", "postive": ["kind"]}}}},
        [],
        "evaluate.classifiers.kind.postive",
        "unknown key",
        "positive",
    ),
    "no task": (
        "profiles/uk-summarize-detox.yaml",
        {"evaluate": {"tasks": []}},
        [],
        "evaluate.tasks",
        "at least 1 item",
        "[heldout, heldout_sampled",
    ),
    "no reward": (
        "params.yaml",
        {"grpo": {"reward_funcs": {}}},
        [],
        "grpo.reward_funcs",
        "at least 1 item",
        "{exact_answer: 1.0}, as in params.yaml",
    ),
    "no source": (
        "params.yaml",
        {"prepare": {"source": None}},
        [],
        "prepare.source",
        "input should be a mapping; found None",
        "as in params.yaml",
    ),
    "a ceiling without a measure": (
        "params.yaml",
        {"grpo": {"early_stopping": {"kl_ceiling": 1.0}}},
        [],
        "grpo.early_stopping.kl_ceiling",
        "needs `beta` above 0",
        "beta: 0.04",
    ),
    "a number for a key": (
        "params.yaml",
        {"grpo": {1: 2}},
        [],
        "grpo.1",
        "keys should be strings",
        "leave it out",
    ),
    "a misspelled schedule": (
        "params.yaml",
        {"grpo": {"lr_scheduler_type": "cosin"}},
        [],
        "grpo.lr_scheduler_type",
        "cosin is not a valid SchedulerType",
        "cosine",
    ),
    "a misspelled optimizer": (
        "params.yaml",
        {"grpo": {"optim": "adamw_8bitt"}},
        [],
        "grpo.optim",
        "adamw_8bitt is not a valid OptimizerNames",
        "adamw_8bit",
    ),
    "a task that reasoning-gym has not": (
        "params.yaml",
        {"prepare": {"source": {**GYM, "task": "chain_sums"}}},
        [],
        "prepare.source.task",
        "'chain_sums' is no task of reasoning-gym's",
        "chain_sum",
    ),
    "settings that its task has not": (
        "params.yaml",
        {"prepare": {"source": {**GYM, "config": {"min_term": 3}}}},
        [],
        "prepare.source.config",
        "unexpected keyword argument 'min_term'",
        "ChainSumConfig",
    ),
    "more questions than rows": (
        "params.yaml",
        {"prepare": {"eval": 40000}},
        [],
        "prepare.eval",
        "take 40100 questions, and 32000 rows are drawn",
        "less than 31900",
    ),
    "a task to be promoted by that is not asked": (
        "params.yaml",
        {"promote": {"task": "nope"}},
        [],
        "promote.task",
        "found nope",
        "Name one of them",
    ),
    "a probability above one": (
        "params.yaml",
        {"promote": {"alpha": 2}},
        [],
        "promote.alpha",
        "less than 1; found 2",
        "0.05, as in params.yaml",
    ),
    "a reward for answers that there are not": (
        "params.yaml",
        {"prepare": {"verifier": "none"}},
        [],
        "grpo.reward_funcs: exact_answer",
        "found verifier none",
        "Use a reward that needs no gold answer",
    ),
    "nccl on CPUs": (
        "params.yaml",
        {"sft": {"launch": {"processes": 2, "backend": "nccl"}}},
        [],
        "sft.launch.backend",
        "nccl needs GPUs",
        "gloo",
    ),
    "FSDP on CPUs": (
        "params.yaml",
        {"sft": {"launch": {**GLOO, "config": "profiles/launch/fsdp2.yaml"}}},
        [],
        "sft.launch.config",
        "accelerate trains DDP on CPUs where FSDP2 is asked for",
        "launch without config",
    ),
    "a launch configuration that is not there": (
        "params.yaml",
        {"sft": {"launch": {**GLOO, "config": "profiles/launch/none.yaml"}}},
        [],
        "sft.launch.config",
        "found no such file",
        "profiles/launch/fsdp2.yaml",
    ),
    "fewer processes than the profile launches": (
        "params.yaml",
        {"sft": {"launch": {"processes": 4, "backend": "nccl"}}},
        ["--gpus", "2"],
        "sft.launch",
        "starts 4 processes, and --gpus says 2",
        "or --gpus 4",
    ),
    "prompts beyond the server's window": (
        GEMMA,
        {"grpo": {**SERVER, "max_completion_length": 800}},
        [],
        "grpo.max_completion_length",
        "= 1312 tokens) exceed max_model_len of profiles/launch",
        "at most 512",
    ),
    "a GPU too small for vLLM": (
        GEMMA,
        {"sft": {"max_steps": 0}, "evaluate": {"backend": "hf", "batch_size": 1}},
        ["--gpu-memory", "1GiB"],
        "grpo.vllm_gpu_memory_utilization",
        "0.3 of 1 GiB does not hold the weights",
        "a larger GPU",
    ),
    "more than the GPU for evaluate": (
        GEMMA,
        {"evaluate": {"model_args": {"gpu_memory_utilization": 3}}},
        [],
        "evaluate.model_args.gpu_memory_utilization",
        "at most 1; found 3",
        "0.9",
    ),
    "text for evaluate's share of the GPU": (
        GEMMA,
        {"evaluate": {"model_args": {"gpu_memory_utilization": "half"}}},
        [],
        "evaluate.model_args.gpu_memory_utilization",
        "must be a number; found 'half'",
        "0.9",
    ),
    "no number of questions from a source without an evaluation split": (
        "params.yaml",
        {"prepare": {"eval": None}},
        [],
        "prepare.eval",
        "reasoning-gym has no evaluation split",
        "a tenth",
    ),
    "a limit of sft's prompts where prepare cuts nothing": (
        "params.yaml",
        {"sft": {"max_prompt_tokens": 50}},
        [],
        "sft.max_prompt_tokens",
        "expected prepare.max_prompt_tokens beside it",
        "Set both",
    ),
    "processes without a backend": (
        "params.yaml",
        {"sft": {"launch": {"processes": 2}}},
        [],
        "sft.launch.backend",
        "is missing",
        "gloo or nccl",
    ),
    "a misspelled argument of lm-eval's vLLM": (
        GEMMA,
        {"evaluate": {"model_args": {"gpu_memory_utilisation": 0.5}}},
        [],
        "evaluate.model_args.gpu_memory_utilisation",
        "is no argument of lm-eval's vllm",
        "gpu_memory_utilization",
    ),
    "text for yes or no": (
        "params.yaml",
        {"sft": {"packing": "yes"}},
        [],
        "sft.packing",
        "should be a valid boolean; found 'yes'",
        "false (SFTConfig's own)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_profile_is_told_by_key_reason_and_a_value_that_would_do(
    here: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    profile, changes, arguments, key, why, would_do = WRONG[what]
    shutil.copyfile(here / profile, here / "mine.yaml")
    edit_yaml(here / "mine.yaml", changes)
    assert cli.main(["plan", "--profile", "mine.yaml", "--json", *arguments]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "wrong"
    found = [one for one in told["findings"] if one["level"] == "wrong"]
    assert [one["key"] for one in found][:1] == [key], found
    assert why in found[0]["why"]
    assert would_do in found[0]["would_do"]


ALSO_WRONG: dict[str, tuple[Any, str]] = {
    # key below grpo: value, what would do
    "loss_type": ("grppo", "grpo"),
    "scale_rewards": ("grp", "group"),
    "importance_sampling_level": ("tok", "token"),
    "vllm_mode": ("servr", "server"),
    "model_init_kwargs.dtype": ("float8", "leave it out"),
    "model_init_kwargs.attn_implementation": ("sdqa", "sdpa"),
    "model_init_kwargs.attn_implementaton": ("sdpa", "attn_implementation"),
    "generation_kwargs.num_beens": (3, "num_beams"),
    "top_p": (1.5, "leave it out"),
    "weight_decay": (-0.1, "leave it out"),
    "adam_beta2": (1.5, "leave it out"),
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


@pytest.mark.parametrize("section", ["sft", "grpo", "prepare"])
def test_a_section_that_is_none_is_told_as_that(here: Path, section: str) -> None:
    profile = YAML(typ="safe").load((here / "params.yaml").read_text())
    with (here / "mine.yaml").open("w") as f:
        YAML(typ="safe").dump(profile | {section: None}, f)
    found = [
        one for one in command.make(Path("mine.yaml"), HERE)["findings"] if one["level"] == "wrong"
    ]
    assert found == [
        {
            "level": "wrong",
            "key": section,
            "why": "input should be a mapping; found None",
            "would_do": "as in params.yaml",
        }
    ]


@pytest.mark.parametrize(
    ("content", "why", "would_do"),
    [
        ("distributed_type: FSPD", "'FSPD' is not a valid DistributedType", "FSDP"),
        (
            "distributed_type: FSDP\nfsdp_konfig: {}",
            "unknown keys (['fsdp_konfig'])",
            "fsdp_config",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: null",
            "FSDP1 is asked for",
            "launch without config",
        ),
        (
            "distributed_type: MULTI_CPU",
            "accelerate starts one process for MULTI_CPU",
            "launch without config",
        ),
    ],
)
def test_accelerate_judges_its_own_configuration(
    here: Path, content: str, why: str, would_do: str
) -> None:
    rest = "\nmixed_precision: 'no'\nuse_cpu: false\ndebug: false\n"
    (here / "profiles/launch/mine.yaml").write_text(content + rest)
    edit_yaml(
        here / "params.yaml", {"sft": {"launch": {**GLOO, "config": "profiles/launch/mine.yaml"}}}
    )
    (found,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert found["key"] == "sft.launch.config"
    assert why in found["why"]
    assert would_do in found["would_do"]


def test_zero_needs_deepspeed(here: Path) -> None:
    launch = {"processes": 2, "backend": "nccl", "config": "profiles/launch/zero3.yaml"}
    edit_yaml(here / "params.yaml", {"sft": {"device": "cuda", "launch": launch}})
    found = command.make(Path("params.yaml"), HERE)["findings"]
    assert ("sft.launch.config", "ZeRO-3 needs deepspeed, which is not installed") in [
        (one["key"], one["why"]) for one in found if one["level"] == "needed"
    ]


def test_a_vllm_server_is_needed_and_takes_nothing_of_the_trainers_gpu(
    here: Path, gemma: Path
) -> None:
    edit_yaml(gemma, {"grpo": SERVER})
    told = command.make(gemma, HERE)
    assert not [one for one in told["findings"] if one["level"] == "wrong"]
    (needed,) = [one for one in told["findings"] if one["key"] == "grpo.vllm_mode"]
    assert (
        "a vLLM server at 0.0.0.0:8000, on GPUs of its own beside the 1 that train" in needed["why"]
    )
    assert "trl vllm-serve --config profiles/launch/vllm-server.yaml" in needed["would_do"]
    assert not [one for one in told["phases"][:3] if "vLLM" in one["terms"]]


def test_an_installed_vllm_built_for_another_torch_is_told(
    here: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = ["numpy", "torch==1.2.3; python_version > '3'", "torch==0.1; python_version < '3'"]
    real = machine.requires
    monkeypatch.setattr(machine, "requires", lambda name: needs if name == "vllm" else real(name))
    (found,) = [one for one in command.make(gemma, HERE)["findings"] if one["level"] == "wrong"]
    assert found["key"] == "grpo.use_vllm"
    assert found["why"].startswith("the installed vLLM needs torch==1.2.3; found torch ")


def test_the_range_of_vllm_that_would_do_is_said_where_none_is_installed(
    here: Path, gemma: Path
) -> None:
    (found,) = [
        one for one in command.make(gemma, HERE)["findings"] if one["key"] == "grpo.use_vllm"
    ]
    assert f"supports vllm{machine.vllm_range()}" in found["why"]


def save_config(folder: Path, kind: str, **sizes: Any) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=256, **sizes)
    config.architectures = [f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}"]
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("")


UNKNOWN = {
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    "Mamba": {"hidden_size": 64, "num_hidden_layers": 2},
    "Mixtral": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
    },
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_architecture_that_plan_cannot_count_is_unchecked_not_wrong(
    here: Path, kind: str
) -> None:
    save_config(here / "models/raw/mine", kind, **UNKNOWN[kind])
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "mine", "license": "MIT"}}},
    )
    told = command.make(Path("params.yaml"), HERE)
    assert told["verdict"] == "unknown"
    (found,) = [one for one in told["findings"] if one["key"] == "base_model.source"]
    assert found["level"] == "unchecked"
    assert found["why"].startswith(f"plan does not know {kind}")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "Should have a `model_type` key in its config.json"),
        ({"config.json": "{not json"}, "is not a valid JSON file"),
        ({"config.json": '{"model_type": "llama", "hidden_size": "big"}'}, "expected int, got str"),
        (
            {"config.json": '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'},
            "no causal language model",
        ),
    ],
)
def test_a_broken_local_base_is_wrong(here: Path, files: Mapping[str, str], why: str) -> None:
    (here / "models/raw/mine").mkdir()
    for name, content in (
        {"tokenizer.json": "", "model.safetensors": ""} | dict(files) if files else {}
    ).items():
        (here / "models/raw/mine" / name).write_text(content)
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "mine", "license": "MIT"}}},
    )
    (found,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert found["key"] == "base_model.source"
    assert why in found["why"]
    assert not found["why"].endswith(".")


def test_a_folder_for_a_profile_could_not_be_planned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--profile", "profiles"]) == 2
    assert "profiles: expected a YAML file; found a folder" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", ["A40", "RTX 3060", "L40"])
def test_an_unknown_card_asks_for_its_memory(
    here: Path, gemma: Path, capsys: Any, name: str
) -> None:
    assert cli.main(["plan", "--profile", GEMMA, "--gpu", name]) == 2
    said = capsys.readouterr().err
    assert f"found {name}." in said
    assert "A100" in said
    assert cli.main(["plan", "--profile", GEMMA, "--gpu", name, "--gpu-memory", "48GiB"]) == 0
    assert f"no peak arithmetic and bandwidth are known for {name}" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("A100-40GB", 40),
        ("A100 40GiB", 40),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("rtx4090", 24),
        ("L40S", 48),
        ("L4", 24),
    ],
)
def test_a_card_is_known_by_its_whole_name_and_its_memory_by_what_that_says(
    name: str, memory: int
) -> None:
    assert step_time.memory_of(name) == memory


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


def test_classifiers_of_unknown_size_are_said_not_to_be_counted(here: Path) -> None:
    told = command.make(
        Path("profiles/uk-summarize-detox.yaml"), Target("L4", 24 * 2**30, stated=True)
    )
    keys = [one["key"] for one in told["findings"] if "is not counted" in one["why"]]
    names = ("ukr_toxicity", "xlmr_toxicity")
    assert keys == [
        f"{stage}.classifiers.{name}" for stage in ("grpo", "evaluate") for name in names
    ]
    (phase,) = [one for one in told["phases"] if one["phase"] == "evaluate"]
    assert phase["limit"] - phase["total"] > 4 * (
        2.78e8 + 5.6e8
    )  # XLM-R base and large, in float32


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


def test_a_wrong_profile_is_told_in_words_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(
        here / "params.yaml", {"grpo": {"max_completion_length": 300}, "sft": {"max_length": 1000}}
    )
    assert cli.main(["plan"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("params.yaml: wrong: it would fail")
    assert "  - grpo.max_completion_length: prompt and completion" in said
    assert (
        "  - sft.max_length: 1000 tokens exceed the base's window of 256. Would do: at most 256"
        in said
    )


def test_the_default_profile_is_no_example_for_what_is_wrong_in_itself(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"sft": {"learning_rate": "fast"}})
    (wrong,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert wrong["would_do"] == "0.0002, as in profiles/gemma-3-1b-pt.yaml"


def test_a_key_that_is_missing_is_told_with_the_default_profiles_value(here: Path) -> None:
    yaml = YAML()
    profile = yaml.load((here / "params.yaml").read_text())
    del profile["sft"]["max_steps"]
    with (here / "mine.yaml").open("w") as f:
        yaml.dump(profile, f)
    told = command.make(Path("mine.yaml"), HERE)
    assert told["findings"][0] | {"level": "wrong"} == {
        "level": "wrong",
        "key": "sft.max_steps",
        "why": "is missing",
        "would_do": "1200, as in params.yaml",
    }


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


def test_what_does_not_fit_is_said_first_and_names_the_largest_part(
    here: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(gemma, {"grpo": {"vllm_gpu_memory_utilization": 0.45}})
    assert cli.main(["plan", "--profile", GEMMA, "--gpu-memory", "8GiB"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{GEMMA}: does not fit")
    assert "sft does not fit; its largest part is weights." in said
    assert "sft.per_device_train_batch_size: " in said


def test_more_gpus_than_the_profile_launches_are_told(here: Path, gemma: Path) -> None:
    told = command.make(Path(GEMMA), Target("H100", 80 * 2**30, gpus=4, stated=True))
    (finding,) = [one for one in told["findings"] if one["key"] == "sft.launch"]
    assert finding["why"] == "starts 1 process, and --gpus says 4"
    assert finding["would_do"].startswith("launch: {processes: 4, backend: nccl}")
    assert told["target"]["gpus"] == 4
    assert "gradients, DDP's buckets" in told["phases"][0]["terms"]


def test_what_a_gpu_machine_needs_is_no_failure_on_another(here: Path, gemma: Path) -> None:
    found = command.make(Path(GEMMA), HERE)["findings"]
    needed = {one["key"]: one["would_do"] for one in found if one["level"] == "needed"}
    assert needed["grpo.use_vllm"] == "pip install -c constraints.txt -e '.[cuda]'"


def test_what_is_missing_on_the_gpu_machine_itself_is_a_failure(here: Path, gemma: Path) -> None:
    found = command.make(Path(GEMMA), dataclasses.replace(HERE, here=True))["findings"]
    assert {"grpo.use_vllm"} <= {one["key"] for one in found if one["level"] == "wrong"}


@pytest.mark.parametrize("version", ["0.10.0", "0.99.1+cu129"])
def test_a_vllm_outside_of_trls_range_is_refused(
    here: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    real = machine.installed
    monkeypatch.setattr(
        machine, "installed", lambda name: version if name == "vllm" else real(name)
    )
    found = [one for one in command.make(Path(GEMMA), HERE)["findings"] if one["level"] == "wrong"]
    assert [one["key"] for one in found] == ["grpo.use_vllm"]
    assert found[0]["why"].startswith(f"vLLM {version} is installed, and TRL ")
    assert found[0]["would_do"] == f"pip install 'vllm{machine.vllm_range()}'"


def test_the_pinned_vllm_is_held_against_trls_range_where_none_is_installed(
    here: Path, gemma: Path
) -> None:
    text = (here / "constraints.txt").read_text()
    assert "\nvllm==" in text
    (here / "constraints.txt").write_text(text.replace("\nvllm==", "\nvllm==9."))
    found = [one for one in command.make(Path(GEMMA), HERE)["findings"] if one["level"] == "wrong"]
    assert "is pinned in constraints.txt, and TRL" in found[0]["why"]


def test_an_installed_vllm_judges_its_own_arguments(
    here: Path,
    gemma: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    request.addfinalizer(
        lambda: sys.modules.pop("vllm", None)
    )  # or TRL would take the stand-in for vLLM ever after
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/vllm.py").write_text(
        "from typing import Any\nclass EngineArgs:\n    def __init__(self, **given: Any) -> None:\n"
        "        if given['max_model_len'] != 1024:\n            raise ValueError(f'not {given}')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    real = machine.installed
    monkeypatch.setattr(
        machine, "installed", lambda name: "0.30.0" if name == "vllm" else real(name)
    )
    assert not [
        one for one in command.make(Path(GEMMA), HERE)["findings"] if one["level"] == "wrong"
    ]
    edit_yaml(here / GEMMA, {"grpo": {"vllm_max_model_length": 2048}})
    found = [one for one in command.make(Path(GEMMA), HERE)["findings"] if one["level"] == "wrong"]
    assert [one["key"] for one in found] == ["grpo.use_vllm"]


def test_a_gguf_base_without_its_extra_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "models/raw/base.gguf").write_bytes(b"GGUF")
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "gguf", "file": "base.gguf", "license": "MIT"}}},
    )
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name)
    )
    found = command.make(Path("params.yaml"), HERE)["findings"]
    assert ("base_model.source", "pip install -c constraints.txt gguf") in [
        (one["key"], one["would_do"]) for one in found if one["level"] == "wrong"
    ]


def test_a_base_that_is_not_here_leaves_memory_unknown_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"kind": "hub", "repo": "nobody/nothing", "revision": "TODO", "license": "MIT"}
    edit_yaml(here / "params.yaml", {"base_model": {"source": source}})
    assert cli.main(["plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("params.yaml: nothing is wrong; whether it fits is unknown")
    assert "base_model.source.revision: 'TODO' is a placeholder, no commit" in said
    assert "unknown until base_model has run" in said


def test_a_local_base_is_read_from_its_folder(here: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=256,
        max_position_embeddings=70,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(here / "models/raw/mine")
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "mine", "license": "MIT"}}},
    )
    told = command.make(Path("params.yaml"), HERE)
    assert told["base"]["architecture"] == "LlamaForCausalLM"
    assert "grpo.max_completion_length" in [
        one["key"] for one in told["findings"] if one["level"] == "wrong"
    ]


def test_a_made_base_counts_only_where_it_was_made_with_these_parameters(here: Path) -> None:
    from transformers import LlamaConfig

    source = {"kind": "hub", "repo": "nobody/nothing", "revision": "0" * 40, "license": "MIT"}
    edit_yaml(here / "params.yaml", {"base_model": {"seed": 0, "source": source}})
    LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=256,
    ).save_pretrained(here / "models/base")
    (here / "reports/base_model").mkdir(parents=True)
    record = {"parameters": {"params.yaml": {"base_model": {"seed": 0, "source": source}}}}
    (here / model_shape.RECORD).write_text(json.dumps([record]))
    assert command.make(Path("params.yaml"), HERE)["base"]["layers"] == 2
    edit_yaml(here / "params.yaml", {"base_model": {"seed": 1}})
    assert command.make(Path("params.yaml"), HERE)["base"] is None


def test_steps_are_held_against_the_rows_that_prepare_left(here: Path) -> None:
    section = YAML(typ="safe").load((here / "params.yaml").read_text())["prepare"]
    (here / "reports/prepare").mkdir(parents=True)
    (here / "reports/prepare/run.json").write_text(
        json.dumps([{"parameters": {"params.yaml": {"prepare": section}}}])
    )
    (here / "reports/prepare/metrics.json").write_text(
        json.dumps({"sft": {"rows": 1000}, "train": {"rows": 10}})
    )
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (wrong,) = [one for one in found if one["level"] == "wrong"]
    assert wrong["key"] == "grpo.per_device_train_batch_size"
    assert wrong["why"] == "a step needs 16 different prompts, and train has 10"
    assert wrong["would_do"] == "at most 160"


def test_save_points_that_move_are_told(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"grpo": {"save_steps": 30, "logging_steps": 8}})
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (one,) = [one for one in found if one["key"] == "grpo.save_steps"]
    assert one["level"] == "warning"
    assert "checkpoints fall on every 32 steps" in one["why"]
    assert one["would_do"] == "32, or 24"


def test_a_profile_that_is_not_there_could_not_be_planned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--profile", "profiles/none.yaml"]) == 2
    assert "found no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "bytes_"), [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("16", 16 * 2**30)]
)
def test_sizes_are_read_with_their_unit(text: str, bytes_: int) -> None:
    assert findings.size(text) == bytes_


@pytest.mark.parametrize("text", ["much", "-4GiB", "1.2.3GB", "0"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="--gpu-memory"):
        findings.size(text)


def test_a_hub_base_that_is_not_what_its_profile_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "model_type": "llama"}))
    said = {"model_type": "llama", "hidden_size": 128}
    source = base_models.Hub(kind="hub", repo="a/b", revision="0" * 40, license="MIT", config=said)
    with pytest.raises(Refused, match=r"base_model\.source\.config\.hidden_size: .* 64; found 128"):
        source.require_stated(tmp_path)


# --- the memory model against torch itself --------------------------------------------------------

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}


def _config(architecture: str, layers: int) -> Any:
    import transformers

    sizes = {**SIZES, "num_hidden_layers": layers}
    if architecture == "Gemma3Text":
        sizes["layer_types"] = ["full_attention"] * layers  # type: ignore[assignment]
    return getattr(transformers, f"{architecture}Config")(**sizes)


def _kept(
    architecture: str, layers: int, lora: Lora | None, autocast: bool, rows: int, tokens: int
) -> int:
    """Bytes that autograd keeps in a forward of the decoder, parameters aside, by torch's own hooks."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(_config(architecture, layers))
    if lora:
        model = get_peft_model(model, lora.config())
        model.enable_input_require_grads()
    parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept.setdefault(place, tensor.untyped_storage())
        return tensor

    decoder = model.get_base_model().model if lora else model.model
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :3] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model.train()
        _out = decoder(
            input_ids=torch.full((rows, tokens), 5), attention_mask=mask, use_cache=False
        )
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("architecture", "lora", "autocast"),
    [
        ("Llama", None, False),
        ("Llama", None, True),
        ("Llama", Lora(r=8, lora_alpha=16), False),
        ("Llama", Lora(r=8, lora_alpha=16), True),
        ("Llama", Lora(r=8, lora_alpha=16, lora_dropout=0.1), False),
        ("Llama", Lora(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), False),
        ("Gemma3Text", None, False),
        ("Gemma3Text", Lora(r=8, lora_alpha=16), True),
        ("Qwen2", Lora(r=8, lora_alpha=16), True),
        ("Qwen3", None, False),
    ],
)
def test_activations_are_what_torch_keeps_for_the_backward(
    architecture: str, lora: Lora | None, autocast: bool
) -> None:
    rows, tokens = 2, 64
    config = _config(architecture, 2)
    shape = model_shape.read(config)
    adapter = model_shape.adapter(config, lora, "sft.lora") if lora else None
    work = Training(batch=rows, prompt=32, completion=32, autocast=autocast, adapter=adapter)
    kept = (
        _kept(architecture, 4, lora, autocast, rows, tokens)
        - _kept(architecture, 2, lora, autocast, rows, tokens)
    ) / 2
    if autocast:  # torch keeps its copies of the weights too, which are counted for themselves
        kept -= memory.casts(shape, work) / shape.layers + (adapter.parameters if adapter else 0)
    assert memory.activations_per_layer(shape, work) * rows * tokens == pytest.approx(
        kept, rel=0.02
    )


def test_a_sliding_layer_caches_its_window_only() -> None:
    shape = model_shape.read(_config("Llama", 2))
    slid = dataclasses.replace(shape, sliding_window=32, sliding_layers=1)
    assert shape.cached_tokens(100) == 200
    assert slid.cached_tokens(100) == 132
    assert memory.cache_per_sequence(shape, 100, 2) == 2 * 2 * 16 * 2 * 200


def test_memory_follows_what_each_setting_is_known_to_do() -> None:
    shape = model_shape.read(_config("Llama", 2))
    work = Training(batch=4, prompt=32, completion=32)
    full = memory.train_peak(shape, work, CUDA, "sft")
    assert full.terms["weights"] == 4 * shape.parameters
    assert full.terms["optimizer"] == 8 * shape.parameters

    def term(name: str, **changes: Any) -> int:
        return memory.resident(shape, dataclasses.replace(work, **changes))[name]

    adapter = model_shape.adapter(_config("Llama", 2), Lora(r=8, lora_alpha=16), "sft.lora")
    assert model_shape.on_all_linears(shape, 8) == adapter
    assert term("optimizer", optimizer="paged_adamw_8bit") == 2 * shape.parameters
    assert term("optimizer", adapter=adapter) == 8 * adapter.parameters
    assert term("reference model", reference=True) == 4 * shape.parameters
    assert (
        term("reference model", reference=True, adapter=adapter) == 0
    )  # the adapter is switched off instead
    assert term("weights", weight_bytes=2) * 2 == term("weights")
    rest = 4 * (shape.parameters - shape.linear_parameters)  # embedding and norms
    assert term("weights", quantised=memory.QUANTISED_BYTES[8]) == shape.linear_parameters + rest
    assert (
        term("weights", quantised=memory.QUANTISED_BYTES[4.5])
        == round(shape.linear_parameters * 4.127 / 8) + rest
    )
    assert term("adapter", adapter=adapter, quantised=0.5) == 2 * adapter.parameters
    assert term("weights", processes=4, sharded=True) == shape.parameters
    assert term("gradients, DDP's buckets", processes=4) == 4 * shape.parameters
    larger = memory.train_peak(shape, dataclasses.replace(work, batch=8), CPU, "sft").terms[
        "activations"
    ]
    assert larger == 2 * memory.train_peak(shape, work, CPU, "sft").terms["activations"]


def test_changes_come_together_where_none_does_alone_and_none_where_nothing_helps() -> None:
    shape = model_shape.read(_config("Llama", 2))
    train = Training(batch=64, prompt=512, completion=512)
    work = workload.Workload("sft", CUDA, train, None, limit=0)
    (peak,) = work.totals(shape)

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


def test_vllm_sleeps_while_the_policy_trains_only_where_it_is_told_to() -> None:
    shape, room = model_shape.read(_config("Llama", 2)), 10 * 2**30
    work = Training(batch=4, prompt=32, completion=32)
    awake = Generation(4, 32, 32, vllm=0.5)
    training, generating = memory.grpo_phases(shape, work, awake, CUDA, room)
    assert training.terms["vLLM"] == generating.terms["vLLM"] == room // 2
    training, generating = memory.grpo_phases(
        shape, work, dataclasses.replace(awake, sleeps=True), CUDA, room
    )
    assert "vLLM" not in training.terms
    assert generating.terms["vLLM"] == room // 2


def test_a_roofline_says_what_its_sources_say() -> None:
    shape = model_shape.read(_config("Llama", 2))
    roof = step_time.of_card("NVIDIA H100 80GB HBM3", half=True)
    assert roof is not None
    assert (roof.flops, roof.bandwidth) == (989e12, 3.35e12)
    assert step_time.of_card("GeForce 256", half=True) is None
    work = Training(batch=8, prompt=512, completion=512)
    slow = step_time.Roof("slow", 1e9, 1e15, 0.0)  # bound by arithmetic: 6 N D, Kaplan et al. 2020
    weights = (
        shape.parameters - shape.embedding
    )  # looked up, not multiplied; the head is multiplied
    expected = 6 * weights * 8 * 1024 / (1e9 * step_time.TRAINING)
    assert step_time.train_seconds(shape, work, slow) > expected
    assert step_time.train_seconds(
        shape, dataclasses.replace(work, prompt=1, completion=1, batch=4096), slow
    ) == (pytest.approx(expected, rel=0.05))
    narrow = step_time.Roof(
        "narrow", 1e18, 1e6, 0.0
    )  # bound by bandwidth: all weights for each token
    seconds = step_time.generate_seconds(shape, Generation(1, 1, 10), narrow, 4)
    assert seconds == pytest.approx(
        10 * 4 * shape.parameters / (1e6 * step_time.DECODING), rel=0.05
    )


@pytest.mark.slow
def test_predicted_peaks_are_within_a_fifth_of_measured_ones() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/plan_memory.py", "--cases", "sft-full-2,sft-lora-2"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
