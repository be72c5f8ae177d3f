"""How much memory sft, grpo and evaluate need at their peaks, from shapes and settings alone.

One model for CPU and CUDA; what differs between them are the constants of `Device`. All sizes are
bytes on one device. docs/plan.md derives the terms and compares them with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from regrpo.plan.model_shape import Adapter, Shape

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""TRL 1.16 computes log-probabilities in tiles of so many tokens and words
(trl/kernels/chunked_logprob.py)."""
OPTIMIZER_BYTES = {
    "adamw_8bit": 2.0,
    "adamw_4bit": 1.0,
    "lion": 4.0,
    "lion_8bit": 1.0,
    "adafactor": 0.1,
    "sgd": 0.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
}
"""Bytes of state per trainable parameter; any other optimizer counts as Adam in float32.

Adam's two moments are 8 bytes in float32, 2 in 8 bits (Rajbhandari et al. 2020, arXiv:1910.02054,
section 3.1; Dettmers et al. 2022, arXiv:2110.02861).
"""
ADAM_BYTES = 8.0
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
    tiles: float
    """Copies of a tile of logits at once."""
    every_position: bool
    """Whether prompts are scored too."""


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

    def vllm_does_not_start(self, shape: Shape) -> bool:
        """Whether vLLM's share has no room for the weights and one sequence's cache."""
        return bool(self.vllm) and not self.sequences_in_cache(shape)

    def sequences_in_cache(self, shape: Shape) -> int:
        """Sequences that vLLM's cache holds at once."""
        assert self.generate
        tokens = self.generate.prompt + self.generate.completion
        return max(0, self.vllm - vllm_base(shape)) // cache_per_sequence(shape, tokens, 2)


@dataclass(frozen=True)
class Phase:
    """The peak of a phase: bytes by term, the terms that stand at the same moment."""

    name: str
    terms: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.terms.values())

    @property
    def largest(self) -> str:
        return max(self.terms, key=lambda name: self.terms[name])


# --- the phases -----------------------------------------------------------------------------------


def phases(shape: Shape, work: Workload) -> list[Phase]:
    """The peaks of a stage's phases, without the terms that are nothing."""
    parts = {}
    if work.train:
        parts[f"{work.name}, train"] = training_terms(shape, work, work.train)
    if work.train and work.generate:
        parts[f"{work.name}, generate"] = generating_terms(shape, work, work.train, work.generate)
    elif work.generate:
        parts[work.name] = evaluating_terms(shape, work, work.generate)
    found = []
    for name, terms in parts.items():
        found.append(Phase(name, {term: size for term, size in terms.items() if size}))
    return found


def training_terms(shape: Shape, work: Workload, train: Training) -> dict[str, int]:
    """The larger of two moments of a training step.

    The backward of the head, with all activations, and the end of the backward, with all gradients.
    """
    tokens = train.batch * train.tokens
    of_a_layer = activations_per_layer(shape, train) * tokens
    states = shape.hidden * 4 * tokens
    activations = shape.layers * of_a_layer
    if train.checkpointing:  # the layers' inputs, and one layer whole
        activations = shape.layers * states + of_a_layer
    activations += 3 * states  # outside of the layers
    layer = shape.linear_parameters // shape.layers
    gathered = 2 * layer * train.weight_bytes if train.sharded else 0
    head = {
        "activations": activations,
        "log-probabilities": _head(shape, train, work.device),
        "casts to bf16": casts(shape, train),
        "gathered layers": gathered,
    }
    gradients = 0 if train.accumulate > 1 else _gradients(shape, train)
    if not train.adapter:
        gradients += shape.embedding * 4
    end = {
        "gradients": gradients // train.parts,
        "activations": of_a_layer,
        "gathered layers": gathered,
    }
    peak = max(head, end, key=lambda terms: sum(terms.values()))
    asleep = work.generate and work.generate.sleeps
    vllm = {"vLLM": 0 if asleep else work.vllm}
    return resident(shape, train) | peak | vllm | _overhead(work.device, activations)


def generating_terms(
    shape: Shape, work: Workload, train: Training, generate: Generation
) -> dict[str, int]:
    """Generation inside grpo: the policy and its optimizer stay, a new cycle has no gradients."""
    processes = train.processes if train.sharded else 1
    there = resident(shape, replace(train, accumulate=1, processes=processes))
    return there | _generation(shape, work, generate)


def evaluating_terms(shape: Shape, work: Workload, generate: Generation) -> dict[str, int]:
    """One model at a time behind lm-eval, beside the classifiers that judge.

    It is float32 on a CPU, and on CUDA as it was saved (here: as trained, float32).
    """
    weights = 0 if work.vllm else 4 * shape.parameters
    there = {"weights": weights, "classifiers": work.judges}
    return there | _generation(shape, work, generate)


def _generation(shape: Shape, work: Workload, generate: Generation) -> dict[str, int]:
    """vLLM's share, or what transformers' `generate` adds to the weights."""
    if generate.vllm is not None:
        return {"vLLM": work.vllm, "context": work.device.context}
    terms = generation_terms(shape, generate)
    # As large blocks, caches go back to the system at once; what prefill frees is kept like
    # activations.
    return terms | _overhead(work.device, terms["prefill"])


def _overhead(device: Device, activations: int) -> dict[str, int]:
    heap = round(device.heap * activations)
    return {"imports": device.imports, "context": device.context, "allocator": heap}


# --- what is there all the time -------------------------------------------------------------------


def resident(shape: Shape, work: Training) -> dict[str, int]:
    """Weights, adapter, optimizer states, reference model, and gradients that accumulate."""
    own = weights(shape, work) // work.parts
    gradients = _gradients(shape, work)
    # A policy with an adapter is its own reference without it.
    whole_reference = work.reference and work.adapter is None
    in_buckets = work.processes > 1 and not work.sharded
    return {
        "weights": own,
        "adapter": gradients if work.adapter else 0,  # as many bytes as its gradients have
        "optimizer": round(work.trained(shape) * optimizer_bytes(work.optimizer)) // work.parts,
        "reference model": own if whole_reference else 0,
        "gradients, accumulated": gradients // work.parts if work.accumulate > 1 else 0,
        "gradients, DDP's buckets": gradients if in_buckets else 0,
        "reward classifiers": work.extra,
    }


def weights(shape: Shape, work: Training) -> int:
    """Bytes of the policy's own weights; embedding and norms are not quantised."""
    if work.quantised:
        rest = shape.parameters - shape.linear_parameters
        return round(shape.linear_parameters * work.quantised) + rest * work.weight_bytes
    return shape.parameters * work.weight_bytes


def optimizer_bytes(name: str) -> float:
    """Bytes of state per trainable parameter, by transformers' name of the optimizer."""
    for variant in ("paged_", "_torch", "_bnb", "_fused", "_32bit"):
        name = name.replace(variant, "")
    return OPTIMIZER_BYTES.get(name, ADAM_BYTES)


def _gradients(shape: Shape, work: Training) -> int:
    """Bytes of the gradients of all trained parameters.

    PEFT keeps adapters in float32, TRL casts those on quantised weights to bfloat16.
    """
    each = work.weight_bytes
    if work.adapter:
        each = 2 if work.quantised else 4
    return work.trained(shape) * each


# --- a training step ------------------------------------------------------------------------------


def activations_per_layer(shape: Shape, work: Training) -> int:
    """Bytes that autograd keeps of one decoder layer per token: what its backward reads.

    Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) count a GPT's layer in half precision;
    this is the same count for gated MLPs, RMSNorm in float32, rotary embeddings, grouped queries
    and memory-efficient attention (which keeps its inputs, its output and the mask's row, but no
    scores), in float32 or under autocast, full or LoRA.
    """
    half = work.half
    heads = shape.heads * shape.head_dim
    cached = shape.kv_heads * shape.head_dim
    copies = 2 if work.adapter is None else 1  # a trained norm keeps its input too
    norms = shape.wide_norms * (4 * shape.hidden * copies + 4)
    if shape.head_norms:
        norms += (heads + cached) * 4 * copies + 4 * (shape.heads + shape.kv_heads)
    attention = 4 * heads * half + 4 * shape.heads + work.tokens * half
    # scores and their softmax in float32, then the cast: Korthikanti's 5 a s² b term, without
    # dropout
    if work.eager:
        attention += shape.heads * work.tokens * (4 + 2 * half)
    return norms + attention + 3 * shape.intermediate * half + _linear_inputs(shape, work)


def _linear_inputs(shape: Shape, work: Training) -> int:
    """Bytes per token of the inputs that linear modules keep whose weights, or adapters, train."""
    half = work.half
    targets = frozenset(shape.linears)
    if work.adapter:
        targets &= work.adapter.targets
    inputs = {name: shape.linears[name][0] for name in targets}
    adapters = len(inputs) * work.adapter.r * half if work.adapter else 0
    if work.adapter and work.adapter.dropout:  # each has an input of its own, and a mask
        return adapters + sum(inputs.values()) * (half + (4 if half == 4 else 1))
    shared = {
        name for name, width in inputs.items() if width == shape.hidden and not _is_output(name)
    }
    # autocast casts the norm's output once for each module that reads it; float32 shares it
    readers = len(shared) if half == 2 else len({_is_mlp(name) for name in shared})
    own = 0
    for name in inputs.keys() - shared:
        # attention's output is kept anyway, but PEFT casts it once more
        if _is_mlp(name) or (work.adapter and half == 2):
            own += inputs[name]
    return adapters + (readers * shape.hidden + own) * half


def _is_output(name: str) -> bool:
    return name in ("o_proj", "down_proj", "out_proj", "c_proj", "dense", "fc2")


def _is_mlp(name: str) -> bool:
    return any(part in name for part in ("gate", "up", "down", "fc", "mlp", "w1", "w2", "w3"))


def casts(shape: Shape, work: Training) -> int:
    """Bytes of half-precision copies of the weights, which the backward reads."""
    of_a_layer = 2 * shape.linear_parameters // shape.layers
    if work.quantised:  # one layer at a time is there unpacked
        return of_a_layer
    if not work.autocast or work.weight_bytes == 2:
        return 0
    if work.checkpointing and work.adapter:
        return of_a_layer
    return of_a_layer * shape.layers


def _head(shape: Shape, work: Training, device: Device) -> int:
    """TRL's chunked log-probabilities: tiles of logits, float32 gradients of states and head."""
    scored = work.tokens - 1 if device.every_position else work.completion
    positions = work.batch * scored
    columns = TILE_VOCABULARY
    if device.every_position:
        columns = min(shape.vocabulary, columns)
    tiles = min(positions, TILE_TOKENS) * columns * (work.half + 4 * (device.tiles - 1))
    cast = columns * shape.hidden * 2 if work.half == 2 else 0
    head_gradient = 0 if work.adapter else shape.embedding * 4
    return round(tiles) + cast + head_gradient + positions * shape.hidden * 8


# --- generation -----------------------------------------------------------------------------------


def generation_terms(shape: Shape, work: Generation) -> dict[str, int]:
    """What transformers' `generate` adds to the weights."""
    of_one = cache_per_sequence(shape, work.prompt + work.completion, work.cache_bytes)
    cache = work.sequences * of_one
    widest = 2 * shape.hidden + 3 * shape.intermediate
    return {
        "key-value cache": cache + cache // shape.layers,  # a layer's twice while it grows
        "logits": 3 * 4 * work.sequences * shape.vocabulary,
        "prefill": work.sequences * work.prompt * widest * work.cache_bytes,
    }


def cache_per_sequence(shape: Shape, tokens: int, cache_bytes: int) -> int:
    """Key-value cache of one sequence: two tensors of kv heads × head size per token and layer."""
    return 2 * shape.kv_heads * shape.head_dim * cache_bytes * shape.cached_tokens(tokens)


VLLM_ACTIVATIONS = 10**9
"""Bytes of vLLM's share that are neither weights nor cache."""


def vllm_base(shape: Shape) -> int:
    """Bytes that vLLM needs before the first cached token: weights and activations."""
    return shape.parameters * shape.stored_bytes + VLLM_ACTIVATIONS
