"""regrpo plan: it accepts what is right, and names key, reason and a value that would do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.commands import plan as command
from regrpo.plan.findings import Target
from tests.support.plans import GEMMA, GLOO, GYM, HERE, HUB, SCRATCH, VLLM
from tests.support.projects import ROOT, edit_yaml


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
        "sft, train",
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
        "base_model.source.path",
        "found nothing there",
        "Copy it to models/raw/nothere, or `dvc pull` if it is tracked",
    ),
    "data that are not there": (
        "params.yaml",
        {"prepare": {"source": {"kind": "local", "train": "no.jsonl", "license": "MIT"}}},
        [],
        "prepare.source.train",
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
        "prepare.source.size",
        "take 40100 questions, and 32000 rows are drawn",
        "more than 40100",
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
        "must be a number above 0 and at most 1; found 'half'",
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
        "add it",
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


def test_a_warm_up_beyond_the_end_is_warned_of(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / "params.yaml", {"sft": {"warmup_steps": 2000, "max_steps": 1000}})
    cli.main(["plan", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = (one for one in findings if one["key"] == "sft.warmup_steps")
    assert found["level"] == "warning"
    assert "2000 reach the last of 1000 steps" in found["why"]
    assert "at most 999; 100 is usual" in found["would_do"]


def test_a_second_tokenizer_is_counted_where_prompts_are_cut(here: Path) -> None:
    loaded = []
    for limit in (None, 60):
        edit_yaml(here / "params.yaml", {"prepare": {"max_prompt_tokens": limit}})
        phases = command.make(Path("params.yaml"), HERE)["phases"]
        terms = {one["phase"]: one["terms"]["tokenizers"] for one in phases}
        loaded.append([terms[phase] for phase in ("sft, train", "grpo, save", "evaluate")])
    (sft, grpo, evaluate), cut = loaded
    assert cut == [2 * sft, 2 * grpo, evaluate]


def test_a_folder_for_a_profile_could_not_be_planned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--profile", "profiles"]) == 2
    assert "profiles: expected a YAML file; found a folder" in capsys.readouterr().err


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


def test_what_does_not_fit_is_said_first_and_names_the_largest_part(
    here: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(gemma, {"grpo": {"vllm_gpu_memory_utilization": 0.45}})
    assert cli.main(["plan", "--profile", GEMMA, "--gpu-memory", "8GiB"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{GEMMA}: does not fit")
    assert "sft, train does not fit; its largest part is weights." in said
    assert "sft.per_device_train_batch_size: " in said


def test_a_profile_that_is_not_there_could_not_be_planned(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--profile", "profiles/none.yaml"]) == 2
    assert "found no such file" in capsys.readouterr().err
