"""What a stage will do on one device, in plain numbers, from its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from regrpo.core.errors import RegrpoError
from regrpo.core.hub import RAW_MODELS
from regrpo.inputs import model_folders
from regrpo.plan.findings import Sections, Target, Trained
from regrpo.plan.model_shape import Adapter, Shape

AUTOMATIC_BATCH = 64
"""What lm-eval's `batch_size: auto` counts as."""
QUANTISED_BYTES = {8: 1.0, 4: 0.5 + 0.5 / 8, 4.5: 0.5 + 0.127 / 8}
"""Of a weight in 8 bits, in 4, and in 4 with double quantisation (4.5).

The constants of each block of 64 weigh 0.5 bits, doubly quantised 0.127 (Dettmers et al. 2023,
arXiv:2305.14314, section 3).
"""


@dataclass(frozen=True)
class Device:
    """What differs between devices."""

    kind: Literal["cpu", "cuda"]
    imports: int
    """What the process holds before it loads anything."""
    context: int
    heap: float
    """What the allocator keeps of freed activations, as a share of them."""
    tokenizer: int
    """Bytes a word of the vocabulary of a tokenizer that is loaded."""
    loading: int
    """Bytes a word that loading a tokenizer takes besides, and the allocator keeps."""
    tiles: float
    """Copies of a tile of logits at once."""
    every_position: bool
    """Whether prompts are scored too."""


CPU = Device(
    "cpu",
    imports=600 * 10**6,
    context=50 * 10**6,
    heap=0.5,
    tokenizer=400,
    loading=1300,
    tiles=8.25,
    every_position=True,
)
"""Measured (benchmarks/plan_memory.py, docs/plan.md).

Libraries loaded on the way, and what glibc's malloc holds back of freed blocks under 32 MB. Without
Triton a tile of logits has 8.25 copies at once in the backward, and prompts are scored too.
"""
CUDA = Device(
    "cuda",
    imports=0,
    context=10**9,
    heap=0.1,
    tokenizer=0,
    loading=0,
    tiles=1.0,
    every_position=False,
)
"""Assumed, not measured.

CUDA's context and cuBLAS' workspaces, fragmentation of torch's caching allocator. Triton works in
place in the tile, on completions only (trl/kernels/chunked_logprob.py).
"""


@dataclass(frozen=True)
class Training:
    """The work of sft or grpo on one device: sequences, bytes a weight, how it is trained."""

    batch: int
    prompt: int
    completion: int
    accumulate: int = 1
    checkpointing: bool = False
    autocast: bool = False
    weight_bytes: int = 4
    quantised: float | None = None
    """Bytes of a weight in the layers' linear modules, where bitsandbytes quantises them."""
    eager: bool = False
    optimizer: str = "adamw_torch_fused"
    adapter: Adapter | None = None
    reference: bool = False
    processes: int = 1
    sharded: bool = False
    extra: int = 0
    """Bytes of other models that stay loaded: classifiers that reward."""
    tokenizers: int = 1
    """How many are loaded: the trainer's, and one that cuts prompts."""
    shortest: int = 32
    """Tokens that a sequence must have room for: sft's longest prompt."""

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion

    @property
    def half(self) -> int:
        """Bytes of an activation that is not float32 by necessity."""
        return 2 if self.autocast or self.weight_bytes == 2 else 4

    @property
    def parts(self) -> int:
        """Into how many shards weights, gradients and optimizer states are cut."""
        return self.processes if self.sharded else 1

    def trained(self, shape: Shape) -> int:
        """Parameters that are trained."""
        return self.adapter.parameters if self.adapter else shape.parameters


@dataclass(frozen=True)
class Generation:
    """Completions generated at once on one device: grpo's, or an evaluation batch."""

    sequences: int
    prompt: int
    completion: int
    cache_bytes: int = 4
    vllm: float | None = None
    """vLLM's share of this device's memory; 0 if it lies on another, None without vLLM."""
    sleeps: bool = False
    group: int = 1
    """How many completions at once make whole groups."""
    stated: str | None = None
    """The key that says how many are generated at once. None: the effective batch does."""


@dataclass(frozen=True)
class Workload:
    """A stage's work on one device, ready to be estimated."""

    name: str
    device: Device
    train: Training | None
    generate: Generation | None
    limit: int
    """Bytes that the stage may take."""
    judges: int = 0
    """Bytes of evaluate's classifiers."""

    @property
    def vllm(self) -> int:
        """Bytes of vLLM's share of the device."""
        share = self.generate.vllm if self.generate else None
        return round((share or 0) * self.limit)


# --- from a profile's sections --------------------------------------------------------------------


def of_training(
    stage: Trained, sections: Sections, target: Target, adapter: Adapter | None
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
        tokenizers=1 + _cuts_prompts(section, sections),
        shortest=shortest,
    )
    generate = _generation(stage, train) if stage.name == "grpo" else None
    return _workload(stage.name, stage.device, target, train, generate)


def _generation(stage: Trained, train: Training) -> Generation:
    section, config = stage.section, stage.config
    keys = ("generation_batch_size", "steps_per_generation")
    stated = next((key for key in keys if section.passed_through.get(key)), None)
    # TRL's configuration was built in one process: what it derives is one device's.
    sequences = config.generation_batch_size
    if stated == "generation_batch_size":
        sequences //= stage.processes
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
        stated=stated,
    )


def of_selection(section: Any, sections: Sections, target: Target) -> Workload:
    """The work of select, where it samples answers: one model, by transformers."""
    kind = target.device(section)
    generate = Generation(
        sequences=section.batch_size * section.samples,
        prompt=_longest_prompt(sections),
        completion=section.max_completion_length,
        cache_bytes=4 if kind == "cpu" else 2,
        group=section.samples,
    )
    return _workload("select", kind, target, None, generate)


def of_evaluation(section: Any, sections: Sections, target: Target) -> Workload:
    """The work of evaluate: one model at a time."""
    kind = target.device(section)
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
    work = _workload("evaluate", kind, target, None, generate)
    return replace(work, judges=_classifier_bytes(section, kind))


def _workload(
    name: str, kind: str, target: Target, train: Training | None, generate: Generation | None
) -> Workload:
    """On a GPU a stage may take its memory, on the CPU what this machine has free."""
    import psutil

    if kind == "cuda":
        return Workload(name, CUDA, train, generate, target.memory)
    return Workload(name, CPU, train, generate, psutil.virtual_memory().available)


def _longest_prompt(sections: Sections) -> int:
    return sections["validate"].max_prompt_tokens if "validate" in sections else 512


def _cuts_prompts(section: Any, sections: Sections) -> bool:
    """Whether prompts are cut, by a tokenizer of its own (regrpo.core.prompts.Cutter)."""
    own = getattr(section, "max_prompt_tokens", None)
    return bool(own or ("prepare" in sections and sections["prepare"].max_prompt_tokens))


def _quantised(settings: Any) -> float | None:
    """Bytes of a quantised weight, by bitsandbytes' settings. Returns None without them."""
    if settings is None:
        return None
    if settings.load_in_8bit:
        return QUANTISED_BYTES[8]
    return QUANTISED_BYTES[4.5 if settings.bnb_4bit_use_double_quant else 4]


def _is_sharded(stage: Trained) -> bool:
    """FSDP or ZeRO-3 by the trainer's own keys, or by the file that `launch` names."""
    if stage.config.fsdp_plugin_args or stage.section.passed_through.get("deepspeed"):
        return True
    return stage.spread.startswith("FSDP") or stage.spread == "ZeRO-3"


def _classifier_bytes(section: Any, kind: str) -> int:
    """What a section's classifiers weigh on a device: float32, however they were saved."""
    parameters = 0
    for one in getattr(section, "classifiers", {}).values():
        folder = classifier_folder(one)
        if folder is None or one.device not in ("auto", kind, f"{kind}:0"):
            continue
        try:
            parameters += model_folders.count_weights(folder)
        except RegrpoError:  # the stage refuses the file; here it weighs nothing
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
