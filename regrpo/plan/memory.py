"""How much memory sft, grpo and evaluate need at their peaks, from shapes and settings alone (docs/plan.md).

One model for CPU and CUDA; what differs between them are the constants of `Device`. All sizes are bytes on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from regrpo.plan.model_shape import Adapter, Shape, on_all_linears

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""TRL 1.16 computes log-probabilities in tiles of so many tokens and words.

Trl/kernels/chunked_logprob.py.
"""
OPTIMIZER_BYTES = {
    "adamw": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_8bit": 2.0,
    "adamw_bnb_8bit": 2.0,
    "paged_adamw": 8.0,
    "paged_adamw_8bit": 2.0,
    "adamw_torch_8bit": 2.0,
    "adamw_torch_4bit": 1.0,
    "lion_32bit": 4.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "paged_lion_32bit": 4.0,
    "adafactor": 0.1,
    "sgd": 0.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
}
"""Bytes of state per trainable parameter: Adam's two moments in float32 are 8 (Rajbhandari et al.

2020, arXiv:1910.02054, section 3.1), in 8 bits 2 (Dettmers et al. 2022, arXiv:2110.02861).
"""
QUANTISED_BYTES = {8: 1.0, 4: 0.5 + 0.5 / 8, 4.5: 0.5 + 0.127 / 8}
"""Of a weight in 8 bits, in 4, and in 4 with double quantisation (4.5).

The constants of each block of 64 weigh 0.5 bits, doubly quantised 0.127 (Dettmers et al. 2023,
arXiv:2305.14314, section 3).
"""


@dataclass(frozen=True)
class Device:
    """What differs between devices.

    `heap` is what the allocator keeps of freed activations, as a share of them; `imports` what the
    process holds before it loads anything.
    """

    kind: Literal["cpu", "cuda"]
    imports: int
    context: int
    heap: float
    tiles: float
    every_position: bool


CPU = Device(
    "cpu", imports=600 * 10**6, context=50 * 10**6, heap=0.5, tiles=8.25, every_position=True
)
"""Measured (benchmarks/plan_memory.py).

Libraries loaded on the way, and what glibc's malloc holds back of freed blocks under 32 MB. Without
Triton a tile of logits has 8.25 copies at once in the backward, and prompts are scored too.
"""
CUDA = Device("cuda", imports=0, context=1_000_000_000, heap=0.1, tiles=1.0, every_position=False)
"""Assumed, not measured.

CUDA's context and cuBLAS' workspaces, fragmentation of torch's caching allocator. Triton works in
place in the tile, on completions only (trl/kernels/chunked_logprob.py).
"""


@dataclass(frozen=True)
class Training:
    """The work of sft or grpo on one device in plain numbers.

    Sequences, tokens, bytes a weight, how it is trained.
    """

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
    """Other models that stay loaded: classifiers that reward."""
    shortest: int = 32
    """Tokens that a sequence must have room for: sft's longest prompt."""

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Generation:
    """Completions generated at once on one device: `grpo`'s, or an evaluation batch."""

    sequences: int
    prompt: int
    completion: int
    cache_bytes: int = 4
    vllm: float | None = None
    """vLLM's share of the device's memory where it lies on the same device; None without it."""
    sleeps: bool = False
    group: int = 1
    """How many completions at once make whole groups."""
    stated: str | None = None
    """The key that says how many completions are generated at once.

    None where the effective batch does.
    """


@dataclass(frozen=True)
class Phase:
    """The peak of a phase: bytes by term, the terms that stand at the same moment."""

    name: str
    terms: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.terms.values())


def activations_per_layer(shape: Shape, work: Training) -> int:
    """Bytes that autograd keeps of one decoder layer per token: what its backward reads.

    Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) count a GPT's layer in half precision;
    this is the same count for gated MLPs, RMSNorm in float32, rotary embeddings, grouped queries
    and memory-efficient attention (which keeps its inputs, its output and the mask's row, but no
    scores), in float32 or under autocast, full or LoRA.
    """
    half = 2 if work.autocast or work.weight_bytes == 2 else 4
    heads, cached, hidden = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.hidden,
    )
    tuned = work.adapter is None
    norms = shape.wide_norms * (4 * hidden * (2 if tuned else 1) + 4)
    if shape.head_norms:
        norms += (heads + cached) * 4 * (2 if tuned else 1) + 4 * (shape.heads + shape.kv_heads)
    attention = 4 * heads * half + 4 * shape.heads + work.tokens * half
    # scores and their softmax in float32, then the cast: Korthikanti's 5 a s² b term, without
    # dropout
    if work.eager:
        attention += shape.heads * work.tokens * (4 + 2 * half)
    return norms + attention + 3 * shape.intermediate * half + _linear_inputs(shape, work, half)


def _linear_inputs(shape: Shape, work: Training, half: int) -> int:
    """Bytes per token of what the linear modules keep.

    The inputs of those whose weights, or adapters, are trained.
    """
    targets = (
        frozenset(shape.linears)
        if work.adapter is None
        else work.adapter.targets & frozenset(shape.linears)
    )
    inputs = {name: shape.linears[name][0] for name in targets}
    of_layer = [
        name for name, width in inputs.items() if width == shape.hidden and not _is_output(name)
    ]
    others = [name for name in inputs if name not in of_layer]
    adapters = 0 if work.adapter is None else len(inputs) * work.adapter.r * half
    if work.adapter and work.adapter.dropout:  # each has an input of its own, and a mask
        return adapters + sum(inputs.values()) * (half + (4 if half == 4 else 1))
    if half == 2:  # autocast casts the norm's output once for each module that reads it
        shared = len(of_layer) * shape.hidden * half
    else:
        shared = len({_is_mlp(name) for name in of_layer}) * shape.hidden * half
    own = (
        sum(inputs[name] for name in others if _is_mlp(name)) * half
    )  # attention's output is kept anyway …
    if work.adapter and half == 2:  # … but PEFT casts it once more
        own += sum(inputs[name] for name in others if not _is_mlp(name)) * half
    return adapters + shared + own


def _is_output(name: str) -> bool:
    return name in ("o_proj", "down_proj", "out_proj", "c_proj", "dense", "fc2")


def _is_mlp(name: str) -> bool:
    return any(part in name for part in ("gate", "up", "down", "fc", "mlp", "w1", "w2", "w3"))


def weights(shape: Shape, work: Training) -> int:
    """Bytes of the policy's own weights.

    The layers' linear modules are quantised, embedding and norms are not.
    """
    if work.quantised:
        rest = shape.parameters - shape.linear_parameters
        return round(shape.linear_parameters * work.quantised) + rest * work.weight_bytes
    return shape.parameters * work.weight_bytes


def optimizer_bytes(name: str) -> float:
    """Bytes of state per trainable parameter; an unknown optimizer counts as Adam in float32."""
    for known in (name, name.removesuffix("_fused").removesuffix("_torch")):
        if known in OPTIMIZER_BYTES:
            return OPTIMIZER_BYTES[known]
    return 8.0


def adapter_bytes(work: Training) -> int:
    """Of a trained parameter.

    PEFT keeps adapters in float32, TRL casts those on quantised weights to bfloat16.
    """
    return 2 if work.adapter and work.quantised else 4 if work.adapter else work.weight_bytes


def resident(shape: Shape, work: Training) -> dict[str, int]:
    """What is there all the time.

    Weights, adapter, optimizer states, reference model, gradients that accumulate.
    """
    parts = work.processes if work.sharded else 1
    trained = work.adapter.parameters if work.adapter else shape.parameters
    gradient = trained * adapter_bytes(work)
    return {
        "weights": weights(shape, work) // parts,
        "adapter": adapter_bytes(work) * work.adapter.parameters if work.adapter else 0,
        "optimizer": round(trained * optimizer_bytes(work.optimizer)) // parts,
        "reference model": weights(shape, work) // parts
        if work.reference and not work.adapter
        else 0,
        "gradients, accumulated": gradient // parts if work.accumulate > 1 else 0,
        "gradients, DDP's buckets": gradient if work.processes > 1 and not work.sharded else 0,
        "reward classifiers": work.extra,
    }


def train_peak(shape: Shape, work: Training, device: Device, name: str) -> Phase:
    """The larger of two moments.

    The head's backward (all activations), the end of the backward (all gradients).
    """
    there = resident(shape, work)
    trained = work.adapter.parameters if work.adapter else shape.parameters
    parts = work.processes if work.sharded else 1
    per_layer = activations_per_layer(shape, work) * work.batch * work.tokens
    outside = 3 * shape.hidden * 4 * work.batch * work.tokens
    kept = (
        work.batch * work.tokens * shape.hidden * 4 * shape.layers + per_layer
        if work.checkpointing
        else 0
    )
    activations = (kept or shape.layers * per_layer) + outside
    copied = _casts(shape, work)
    gathered = (
        shape.linear_parameters // shape.layers * work.weight_bytes * 2 if work.sharded else 0
    )
    head = {
        "activations": activations,
        "log-probabilities": _head(shape, work, device),
        "casts to bf16": copied,
        "gathered layers": gathered,
    }
    gradients = trained * adapter_bytes(work) // parts
    embedding = shape.embedding * 4 // parts if work.adapter is None else 0
    end = {
        "gradients": (0 if work.accumulate > 1 else gradients) + embedding,
        "activations": per_layer,
        "gathered layers": gathered,
    }
    peak = max(head, end, key=lambda terms: sum(terms.values()))
    return Phase(name, _shown(there | peak | _overhead(device, activations)))


def _casts(shape: Shape, work: Training) -> int:
    """Autocast's bf16 copies of float32 weights, read by the backward.

    With checkpointing a LoRA keeps one layer's.
    """
    if work.quantised:  # one layer at a time is there unpacked
        return 2 * shape.linear_parameters // shape.layers
    if not work.autocast or work.weight_bytes == 2:
        return 0
    layers = 1 if work.checkpointing and work.adapter else shape.layers
    return 2 * shape.linear_parameters // shape.layers * layers


def _head(shape: Shape, work: Training, device: Device) -> int:
    """TRL's chunked log-probabilities.

    Tiles of logits, and float32 gradients of hidden states and head.
    """
    positions = work.batch * ((work.tokens - 1) if device.every_position else work.completion)
    rows = min(positions, TILE_TOKENS)
    columns = min(shape.vocabulary, TILE_VOCABULARY) if device.every_position else TILE_VOCABULARY
    half = 2 if work.autocast or work.weight_bytes == 2 else 4
    tiles = rows * columns * (half + 4 * (device.tiles - 1))
    cast = columns * shape.hidden * 2 if half == 2 else 0
    head_gradient = shape.embedding * 4 if work.adapter is None else 0
    return round(tiles) + cast + head_gradient + positions * shape.hidden * 8


def _overhead(device: Device, activations: int) -> dict[str, int]:
    heap = round(device.heap * activations)
    return {"imports": device.imports, "context": device.context, "allocator": heap}


def _shown(terms: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in terms.items() if size}


def cache_per_sequence(shape: Shape, tokens: int, cache_bytes: int) -> int:
    """Key-value cache of one sequence.

    Two tensors of kv heads × head size per cached token and layer.
    """
    return 2 * shape.kv_heads * shape.head_dim * cache_bytes * shape.cached_tokens(tokens)


def generation_terms(shape: Shape, work: Generation) -> dict[str, int]:
    """What transformers' `generate` adds to the weights.

    Cache (a layer twice while it grows), logits, prefill.
    """
    cache = work.sequences * cache_per_sequence(
        shape, work.prompt + work.completion, work.cache_bytes
    )
    widest = 2 * shape.hidden + 3 * shape.intermediate
    return {
        "key-value cache": cache + cache // shape.layers,
        "logits": 3 * 4 * work.sequences * shape.vocabulary,
        "prefill": work.sequences * work.prompt * widest * work.cache_bytes,
    }


def generate_peak(
    shape: Shape, train: Training, work: Generation, device: Device, memory: int | None, name: str
) -> Phase:
    """Generation inside grpo: the policy and its optimizer stay.

    Gradients are gone (a new cycle begins).
    """
    there = resident(
        shape, replace(train, accumulate=1, processes=1 if not train.sharded else train.processes)
    )
    if work.vllm is not None:
        return Phase(
            name,
            _shown(there | {"vLLM": round(work.vllm * (memory or 0)), "context": device.context}),
        )
    terms = generation_terms(shape, work)
    # As large blocks, caches go back to the system at once; what prefill frees is kept like
    # activations.
    return Phase(name, _shown(there | terms | _overhead(device, terms["prefill"])))


def sequences_in_cache(shape: Shape, work: Generation, memory: int) -> int:
    """Sequences that vLLM's cache holds at once.

    Its share less weights and a gigabyte of activations.
    """
    room = (work.vllm or 0) * memory - shape.parameters * shape.stored_bytes - 10**9
    return max(0, int(room // cache_per_sequence(shape, work.prompt + work.completion, 2)))


def grpo_phases(
    shape: Shape, train: Training, work: Generation, device: Device, memory: int | None
) -> list[Phase]:
    """Training and generation.

    VLLM's share stands beside both unless it sleeps while the policy trains.
    """
    training = train_peak(shape, train, device, "grpo, train")
    if work.vllm is not None and not work.sleeps:
        training = Phase(
            training.name, _shown(training.terms | {"vLLM": round(work.vllm * (memory or 0))})
        )
    return [training, generate_peak(shape, train, work, device, memory, "grpo, generate")]


def evaluate_peak(
    shape: Shape, work: Generation, device: Device, memory: int | None, judges: int = 0
) -> Phase:
    """One model at a time behind lm-eval, beside the classifiers that judge.

    Float32 on a CPU, as it was saved on CUDA (here: as trained, float32).
    """
    there = {"classifiers": judges, "context": device.context}
    if work.vllm is not None:
        return Phase("evaluate", _shown({"vLLM": round(work.vllm * (memory or 0))} | there))
    terms = generation_terms(shape, work)
    overhead = _overhead(device, terms["prefill"])
    return Phase("evaluate", _shown({"weights": 4 * shape.parameters} | terms | there | overhead))


def evaluate_changes(
    shape: Shape, work: Generation, device: Device, memory: int, judges: int = 0
) -> list[dict[str, Any]]:
    """The largest share for vLLM, or else the largest batch, with which evaluate fits."""
    if work.vllm is not None:
        key, options = (
            "model_args.gpu_memory_utilization",
            [(s / 20, replace(work, vllm=s / 20)) for s in SHARES],
        )
    else:
        key = "batch_size"
        options = [(n, replace(work, sequences=n)) for n in range(work.sequences - 1, 0, -1)]
    for value, one in options:
        total = evaluate_peak(shape, one, device, memory, judges).total
        if total <= memory and (one.vllm is None or sequences_in_cache(shape, one, memory)):
            return [{"keys": {f"evaluate.{key}": value}, "total": total}]
    return []


Peaks = Callable[[Training, Generation | None], list[int]]
"""The totals of a stage's phases, the largest first."""


def changes(
    shape: Shape, train: Training, work: Generation | None, peaks: Peaks, memory: int, stage: str
) -> list[dict[str, Any]]:
    """What makes a stage fit: single changes that do, or else as many together as it takes.

    Found by trying each.

    Each is {keys: {key: value}, total: bytes}. The effective batch (batch × accumulation) stays
    what it is.
    """
    fitting = [
        {"keys": keys, "total": total}
        for keys, one, generation in _candidates(shape, train, work, stage)
        if (total := peaks(one, generation)[0]) <= memory
    ]
    if fitting:
        return fitting
    keys: dict[str, Any] = {}
    for name in ORDER:  # together, in the order of how little they cost
        options = [
            (peaks(one, generation), changed, one, generation)
            for changed, one, generation in _candidates(shape, train, work, stage)
            if any(key.rpartition(".")[2] == name for key in changed)
        ]
        best = next(
            (one for one in options if one[0][0] <= memory),
            min(options, key=lambda one: one[0], default=None),
        )
        if best and best[0] < peaks(
            train, work
        ):  # the largest phase, or where that stays the next one
            keys, train, work = keys | best[1], best[2], best[3]
        if (total := peaks(train, work)[0]) <= memory:
            return [{"keys": keys, "total": total}]
    return []


SHARES = range(18, 1, -1)
"""Of a GPU's memory for vLLM, in twentieths."""
ORDER = (
    "per_device_train_batch_size",
    "steps_per_generation",
    "generation_batch_size",
    "activation_checkpointing",
    "vllm_enable_sleep_mode",
    "lora",
    "optim",
    "max_completion_length",
    "max_length",
    "vllm_gpu_memory_utilization",
)


def _candidates(
    shape: Shape, train: Training, work: Generation | None, stage: str
) -> Iterator[tuple[dict[str, Any], Training, Generation | None]]:
    whole = train.batch * train.accumulate
    for batch in (b for b in range(train.batch - 1, 0, -1) if whole % b == 0):
        keys = {
            f"{stage}.per_device_train_batch_size": batch,
            f"{stage}.gradient_accumulation_steps": whole // batch,
        }
        if work and work.stated:  # what is generated at once stays what it is too
            if work.sequences % batch:
                continue
            keys |= (
                {f"{stage}.{work.stated}": work.sequences // batch}
                if "steps" in work.stated
                else {}
            )
        yield keys, replace(train, batch=batch, accumulate=whole // batch), work
    if work and work.vllm is None:
        for steps in range(work.sequences // train.batch - 1, 0, -1):
            if (at_once := steps * train.batch) % work.group == 0:
                key = work.stated or "steps_per_generation"
                value = steps if "steps" in key else at_once * train.processes
                yield {f"{stage}.{key}": value}, train, replace(work, sequences=at_once, stated=key)
    if not train.checkpointing:
        yield {f"{stage}.activation_checkpointing": True}, replace(train, checkpointing=True), work
    if train.adapter is None:
        adapter = on_all_linears(shape, 16)
        yield {f"{stage}.lora": "{r: 16, lora_alpha: 32}"}, replace(train, adapter=adapter), work
    if optimizer_bytes(train.optimizer) > 2:
        yield {f"{stage}.optim": "adamw_bnb_8bit"}, replace(train, optimizer="adamw_bnb_8bit"), work
    if work and work.vllm:
        if not work.sleeps:
            yield {f"{stage}.vllm_enable_sleep_mode": True}, train, replace(work, sleeps=True)
        for share in (s / 20 for s in SHARES if s / 20 < work.vllm):
            yield {f"{stage}.vllm_gpu_memory_utilization": share}, train, replace(work, vllm=share)
    longest = train.completion if work else train.tokens
    for length in (n for n in range(longest // 32 * 32, train.shortest, -32) if n < longest):
        if work:
            keys = {f"{stage}.max_completion_length": length}
            yield keys, replace(train, completion=length), replace(work, completion=length)
        else:
            prompt = min(train.prompt, length // 2)
            yield (
                {f"{stage}.max_length": length},
                replace(train, prompt=prompt, completion=length - prompt),
                None,
            )
