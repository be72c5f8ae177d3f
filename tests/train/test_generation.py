"""What reaches vLLM, through TRL's own classes, from a section: seeds above all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrpo.core import files, hardware, profiles
from regrpo.core.errors import CannotCheck, Refused
from regrpo.evaluate import harness
from regrpo.train import generation, saving, trainers
from stages import evaluate, grpo, sft
from tests.support import vllm as stand_in
from tests.support.projects import ROOT
from tests.support.trainings import run_for, section


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(hardware, "require_vllm", lambda *_: None)
    # TRL sets the variables of several processes for the engine; accelerate then asks for this one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with stand_in.installed(tmp_path) as package:
        yield package


def colocated(**changes: Any) -> Any:
    return section(grpo.Params, "grpo", use_vllm=True, vllm_max_model_length=64, **changes)


def train(vllm: Any, **changes: Any) -> Any:
    """Two steps of grpo; the engine that it started."""
    values = colocated(**{"max_steps": 2, "dev_every": 0} | changes)
    grpo.train(run_for(values, "grpo"))
    return vllm.ENGINES[-1]


def test_a_run_draws_by_its_seed_and_a_resumed_run_draws_on(
    folder: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = train(vllm), train(vllm, seed=1)
    assert first.answers != other.answers
    assert first.arguments["seed"] == generation.engine_seed(0, 0, 0)
    assert len({tuple(answer) for answer in first.answers}) == len(first.answers)
    assert [asked.get("seed") for asked in first.asked] == [None, None], "the engine's alone"
    assert train(vllm).answers == first.answers

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train(vllm, save_steps=1)
    resumed = train(vllm, save_steps=1, max_steps=3)
    assert resumed.arguments["seed"] == generation.engine_seed(0, 2, 0)
    assert resumed.answers[0] not in first.answers, "nothing is drawn again"


def test_what_vllm_and_trainer_disagree_in_reaches_the_doctor(folder: Path, vllm: Any) -> None:
    train(vllm)
    rules = {one["rule"]: one for one in files.read_json(Path("reports/grpo/health.json"))["rules"]}
    assert rules["sampler_difference"]["verdict"] == "fired", "the stand-in draws at random"
    assert rules["importance_weight"]["verdict"] == "fired"


def test_processes_of_one_engine_share_its_seed_and_engines_do_not(
    vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from trl.generation.vllm_generation import VLLMGeneration

    monkeypatch.setattr(
        torch.distributed, "new_subgroups_by_enumeration", lambda ranks: (None, ranks)
    )
    model = SimpleNamespace(name_or_path="models/sft", named_modules=lambda: [])
    for rank in range(4):
        accelerator = SimpleNamespace(
            num_processes=4,
            process_index=rank,
            local_process_index=rank,
            state=SimpleNamespace(deepspeed_plugin=None),
            wait_for_everyone=lambda: None,
        )
        with generation.seeded(colocated(), None):
            VLLMGeneration(model, accelerator, None, tensor_parallel_size=2)
    seeds = [engine.arguments["seed"] for engine in vllm.ENGINES]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_no_two_runs_engines_or_steps_share_a_seed() -> None:
    seeds = {
        generation.engine_seed(seed, step, engine)
        for seed in range(5)
        for step in (0, 100)
        for engine in range(8)
    }
    assert len(seeds) == 80
    assert all(0 <= seed < 2**32 for seed in seeds), "what NumPy's generator takes"


def test_an_engine_that_does_not_start_is_one_line(
    folder: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.generation import vllm_generation

    def fails(**arguments: Any) -> None:
        raise ValueError("No available memory for the cache blocks. Try increasing …\npages")

    monkeypatch.setattr(vllm_generation, "LLM", fails)
    words = (
        r"^grpo\.use_vllm: expected vLLM's engine to start; found ValueError: No available .*"
        r"Raise grpo\.vllm_gpu_memory_utilization \(0\.3\), or lower grpo\.vllm_max_model_length\."
    )
    with pytest.raises(Refused, match=words):
        train(vllm)
    assert vllm_generation.LLM is fails, "TRL is as it was"


def test_a_trl_that_starts_no_engine_here_is_not_taken_for_seeded(vllm: Any) -> None:
    with (
        pytest.raises(CannotCheck, match="expected TRL to start vLLM's engine in this process"),
        generation.seeded(colocated(), None),
    ):
        pass


def test_a_servers_seed_is_its_own_and_the_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with generation.seeded(colocated(vllm_mode="server"), None):
        pass
    assert "grpo.seed does not reach it" in capsys.readouterr().out
    with generation.seeded(section(grpo.Params, "grpo"), None):
        pass
    assert not capsys.readouterr().out


def test_a_seed_of_the_requests_is_refused() -> None:
    with pytest.raises(Refused, match=r"`generation_kwargs\.seed`: makes the answers of a group"):
        colocated(generation_kwargs={"seed": 3})


GEMMA, UKRAINIAN, SMOLLM = (
    profiles.read_profile(ROOT / f"profiles/{name}.yaml")
    for name in ("gemma-3-1b-pt", "uk-summarize-detox", "smollm2-135m")
)
ON_POLICY = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "num_iterations": 1,
    "beta": 0.0,
    "epsilon": 0.2,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "importance_sampling_level": "token",
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "report_to": [],
    "save_strategy": "steps",
}
CHECKPOINTED_BF16 = {
    "bf16": True,
    "fp16": False,
    "mixed_precision": "bf16",
    "activation_checkpointing": True,
}
OF_GRPO: list[tuple[Any, dict[str, Any]]] = [
    (
        GEMMA,
        CHECKPOINTED_BF16
        | {
            "seed": 0,
            "max_steps": 500,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 20,
            "optim": "adamw_torch_fused",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 8,
            "steps_per_generation": 8,
            "generation_batch_size": 128,
            "num_generations": 8,
            "max_completion_length": 320,
            "reward_weights": [1.0, 0.1],
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.3,
            "vllm_max_model_length": 1024,
            "vllm_tensor_parallel_size": 1,
            "vllm_enable_sleep_mode": False,
            "logging_steps": 1,
            "save_steps": 100,
        },
    ),
    (
        UKRAINIAN,
        CHECKPOINTED_BF16
        | {
            "seed": 42,
            "max_steps": 250,
            "learning_rate": 5e-5,
            "lr_scheduler_type": "linear",
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "generation_batch_size": 8,
            "num_generations": 2,
            "temperature": 0.8,
            "max_completion_length": 128,
            "reward_weights": [1.0, 1.0],
            "use_vllm": False,
            "save_steps": 50,
        },
    ),
    (
        SMOLLM,
        {
            "seed": 0,
            "max_steps": 40,
            "learning_rate": 2e-5,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "generation_batch_size": 32,
            "num_generations": 8,
            "max_completion_length": 24,
            "bf16": False,
            "mixed_precision": "no",
            "activation_checkpointing": False,
            "use_vllm": False,
            "save_steps": 20,
        },
    ),
]
OF_SFT: list[tuple[Any, dict[str, Any]]] = [
    (
        GEMMA,
        CHECKPOINTED_BF16
        | {
            "seed": 0,
            "max_steps": 400,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 20,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "max_length": 768,
            "loss_type": "nll",
            "train_sampling_strategy": "random",
            "save_steps": 100,
        },
    ),
    (
        UKRAINIAN,
        CHECKPOINTED_BF16
        | {
            "seed": 42,
            "max_steps": -1,
            "num_train_epochs": 3,
            "optim": "paged_adamw_8bit",
            "learning_rate": 5e-5,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 8,
            "max_length": 1536,
            "train_sampling_strategy": "random",
            "save_steps": 200,
        },
    ),
    (
        SMOLLM,
        {
            "max_steps": 80,
            "per_device_train_batch_size": 16,
            "max_length": 96,
            "train_sampling_strategy": "sequential",
            "bf16": False,
            "save_steps": 40,
        },
    ),
]


def config(library: Any, values: Any) -> Any:
    """The library's own configuration of a section for CUDA, made without a GPU."""
    settings = values.trainer_settings("cuda")
    assert settings["use_cpu"] is False
    assert settings["dataloader_pin_memory"] is True
    return library(output_dir="unused", **settings | {"use_cpu": True})


def differences(found: Any, expected: dict[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(found, name)
        for name, value in expected.items()
        if getattr(found, name) != value
    }


@pytest.mark.parametrize(("profile", "expected"), OF_GRPO)
def test_the_settings_of_grpo_that_reach_trl(profile: Any, expected: dict[str, Any]) -> None:
    from trl import GRPOConfig

    values = profiles.parse_section(grpo.Params, profile["grpo"], "grpo")
    assert not differences(config(GRPOConfig, values), ON_POLICY | expected)


@pytest.mark.parametrize(("profile", "expected"), OF_SFT)
def test_the_settings_of_sft_that_reach_trl(profile: Any, expected: dict[str, Any]) -> None:
    from trl import SFTConfig

    values = profiles.parse_section(sft.Params, profile["sft"], "sft")
    always = {"completion_only_loss": True, "packing": False, "report_to": []}
    assert not differences(config(SFTConfig, values), always | expected)


def test_the_settings_of_lora_and_of_four_bits_that_reach_peft_and_transformers() -> None:
    four = profiles.parse_section(grpo.Params, UKRAINIAN["grpo"], "grpo").quantization
    assert four.model_dump() == {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    lora = profiles.parse_section(sft.Params, UKRAINIAN["sft"], "sft").lora.config()
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.bias) == (16, 32, 0.05, "none")
    assert lora.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert lora.task_type == "CAUSAL_LM"


def test_the_settings_of_grpo_that_reach_accelerate_and_vllm(folder: Path, vllm: Any) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    values = profiles.parse_section(grpo.Params, GEMMA["grpo"], "grpo")
    with generation.seeded(values, None):
        trainer = GRPOTrainer(
            args=config(GRPOConfig, values),
            reward_funcs=[lambda completions, **_: [0.0] * len(completions)] * 2,
            train_dataset=Dataset.from_list(files.read_rows(grpo.TRAIN)),
            **trainers.model_arguments("grpo", values, grpo.SFT),
        )
    assert trainer.accelerator.mixed_precision == "bf16"
    assert trainer.accelerator.gradient_accumulation_steps == 1, "the trainer counts them itself"
    engine = vllm.ENGINES[-1]
    assert engine.arguments == {
        "model": "models/sft",
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.3,
        "max_model_len": 1024,
        "max_num_seqs": 128,
        "enable_sleep_mode": False,
        "model_impl": "vllm",
        "distributed_executor_backend": "external_launcher",
        "seed": generation.engine_seed(0, 0, 0),
        "max_num_batched_tokens": 4096,
        "logprobs_mode": "processed_logprobs",
        "quantization": None,
        "trust_remote_code": False,
    }
    trainer.vllm_generation.generate([[5, 6]], None, 8)
    expected = {
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 320,
        "logprobs": 0,
    }
    assert expected.items() <= engine.asked[-1].items()
    assert "seed" not in engine.asked[-1]


def test_the_settings_of_evaluate_that_reach_vllm_through_lm_eval(folder: Path, vllm: Any) -> None:
    for profile, share in ((GEMMA, None), (UKRAINIAN, 0.6)):
        values = profiles.parse_section(evaluate.Params, profile["evaluate"], "evaluate")
        harness.load_model(
            Path("models/sft"),
            backend=values.backend,
            device="cuda",
            batch_size=values.batch_size,
            seed=values.seed,
            model_args=values.model_args,
            stops=[1],
        )
        arguments = vllm.ENGINES[-1].arguments
        assert arguments.get("gpu_memory_utilization") == share
        expected = {"model": "models/sft", "dtype": "auto", "seed": values.seed}
        expected |= {"max_model_len": None, "max_num_seqs": None, "trust_remote_code": False}
        assert expected.items() <= arguments.items()
    sys.modules.pop("lm_eval.models.vllm_causallms")
