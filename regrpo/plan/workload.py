"""What a stage will do on one device, in plain numbers, from its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.core.hub import RAW_MODELS
from regrpo.inputs import base_models
from regrpo.plan import memory
from regrpo.plan.findings import Target, Trained
from regrpo.plan.memory import Generation, Phase, Training
from regrpo.plan.model_shape import Adapter, Shape

NEVER_FITS = 10**18
AUTOMATIC_BATCH = 64
"""What lm-eval's `batch_size: auto` counts as."""


@dataclass(frozen=True)
class Workload:
    """A stage's work on one device, ready to be estimated."""

    name: str
    device: memory.Device
    train: Training | None
    generate: Generation | None
    limit: int
    """Bytes that the stage may take."""
    judges: int = 0
    """Bytes of evaluate's classifiers."""

    def phases(self, shape: Shape) -> list[Phase]:
        """The peaks of its phases."""
        if self.generate is None:
            assert self.train
            return [memory.train_peak(shape, self.train, self.device, self.name)]
        if self.train is None:
            limit, judges = self.limit, self.judges
            return [memory.evaluate_peak(shape, self.generate, self.device, limit, judges)]
        return memory.grpo_phases(shape, self.train, self.generate, self.device, self.limit)

    def totals(self, shape: Shape) -> list[int]:
        """Bytes of its phases, the largest first."""
        work = self.generate
        if work and work.vllm and not memory.sequences_in_cache(shape, work, self.limit):
            return [NEVER_FITS]  # vLLM itself would not start
        return sorted((phase.total for phase in self.phases(shape)), reverse=True)


def of_training(
    stage: Trained, sections: Mapping[str, Any], target: Target, adapter: Adapter | None
) -> Workload:
    """The work of sft or grpo, with sequences as long as the settings allow."""
    section, config = stage.section, stage.config
    dtype = stage.model_arguments.get("dtype", stage.model_arguments.get("torch_dtype"))
    half = str(dtype) in ("bfloat16", "float16")
    prompt = getattr(section, "max_prompt_tokens", None) or _longest_prompt(sections)
    shortest = 32
    if stage.name == "grpo":
        completion = config.max_completion_length
    else:
        shortest = prompt + 1
        tokens = config.max_length or 2 * prompt
        prompt = min(prompt, tokens // 2)
        completion = tokens - prompt
    train = Training(
        batch=config.per_device_train_batch_size,
        prompt=prompt,
        completion=completion,
        accumulate=config.gradient_accumulation_steps,
        checkpointing=bool(config.activation_checkpointing),
        autocast=bool(config.bf16 or config.fp16),
        weight_bytes=2 if half else 4,
        quantised=_quantised(section.quantization),
        eager=stage.model_arguments.get("attn_implementation") == "eager",
        optimizer=stage.optimizer,
        adapter=adapter,
        reference=getattr(config, "beta", 0.0) != 0,
        processes=stage.processes,
        sharded=_is_sharded(stage),
        extra=_classifier_bytes(section, stage.device),
        shortest=shortest,
    )
    generate = _generation(stage, train) if stage.name == "grpo" else None
    return Workload(
        stage.name, _device(stage.device), train, generate, _limit(stage.device, target)
    )


def _generation(stage: Trained, train: Training) -> Generation:
    section, config = stage.section, stage.config
    passed = section.passed_through
    keys = [key for key in ("generation_batch_size", "steps_per_generation") if passed.get(key)]
    sequences = train.batch * (passed.get("steps_per_generation") or train.accumulate)
    if passed.get("generation_batch_size"):
        sequences = passed["generation_batch_size"] // stage.processes
    vllm = None
    if config.use_vllm:  # a server has GPUs of its own
        vllm = config.vllm_gpu_memory_utilization if config.vllm_mode == "colocate" else 0.0
    return Generation(
        sequences=sequences,
        prompt=train.prompt,
        completion=train.completion,
        cache_bytes=2 if config.use_vllm else train.half,
        vllm=vllm,
        sleeps=bool(config.vllm_enable_sleep_mode),
        group=section.num_generations // math.gcd(section.num_generations, stage.processes),
        stated=keys[0] if keys else None,
    )


def of_evaluation(section: Any, sections: Mapping[str, Any], target: Target) -> Workload:
    """The work of evaluate: one model at a time."""
    kind = target.device(section.device)
    batch = AUTOMATIC_BATCH if section.batch_size == "auto" else section.batch_size
    share = None
    if section.backend == "vllm":
        share = section.model_args.get("gpu_memory_utilization", 0.9)
    generate = Generation(
        sequences=batch,
        prompt=_longest_prompt(sections),
        completion=section.max_gen_toks,
        cache_bytes=4 if kind == "cpu" else 2,
        vllm=share,
    )
    judges = _classifier_bytes(section, kind)
    return Workload("evaluate", _device(kind), None, generate, _limit(kind, target), judges)


def _device(kind: str) -> memory.Device:
    return memory.CUDA if kind == "cuda" else memory.CPU


def _limit(kind: str, target: Target) -> int:
    """Bytes that a stage may take: the GPU's memory, or what this machine has free."""
    import psutil

    return target.memory if kind == "cuda" else int(psutil.virtual_memory().available)


def _longest_prompt(sections: Mapping[str, Any]) -> int:
    return sections["validate"].max_prompt_tokens if "validate" in sections else 512


def _quantised(settings: Any) -> float | None:
    """Bytes of a quantised weight, by bitsandbytes' settings. Returns None without them."""
    if settings is None:
        return None
    if settings.load_in_8bit:
        return memory.QUANTISED_BYTES[8]
    return memory.QUANTISED_BYTES[4.5 if settings.bnb_4bit_use_double_quant else 4]


def _is_sharded(stage: Trained) -> bool:
    """FSDP or ZeRO-3 by the trainer's own keys, or by the file that `launch` names."""
    if stage.config.fsdp_plugin_args or stage.section.passed_through.get("deepspeed"):
        return True
    return stage.spread.startswith("FSDP") or stage.spread == "ZeRO-3"


def _classifier_bytes(section: Any, kind: str) -> int:
    """What a section's classifiers weigh on a device: float32, however they were saved."""
    from safetensors import SafetensorError

    parameters = 0
    for one in getattr(section, "classifiers", {}).values():
        folder = classifier_folder(one)
        if folder is None or one.device not in ("auto", kind, f"{kind}:0"):
            continue
        try:
            parameters += base_models.count_parameters(folder)
        except SafetensorError:  # the stage refuses the file; here it weighs nothing
            continue
    return 4 * parameters


def classifier_folder(one: Any) -> Path | None:
    """Where a classifier's weights lie. Returns None while they are not here."""
    from huggingface_hub import try_to_load_from_cache

    folder = RAW_MODELS / str(one.path) if one.path else None
    if one.repo:
        cached = try_to_load_from_cache(one.repo, "config.json", revision=one.revision)
        folder = Path(cached).parent if isinstance(cached, str) else None
    return folder if folder and list(folder.glob("*.safetensors")) else None
