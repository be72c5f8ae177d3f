"""How much memory sft, select, grpo and evaluate need at their peaks, from settings alone.

One model for CPU and CUDA; what differs between them are the constants of `Device`. All sizes are
bytes on one device. docs/plan.md derives the terms and compares them with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from regrpo.plan.model_shape import Shape
from regrpo.plan.workload import CPU, Device, Generation, Training, Workload

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
    """The peaks of a stage's phases, without the terms that are nothing.

    A GPU's memory is never fullest while a model is loaded or saved.
    """
    parts = {}
    train, generate = work.train, work.generate
    if train and work.device is CPU:
        parts[f"{work.name}, load"] = loading_terms(shape, work, train)
    if train:
        parts[f"{work.name}, train"] = training_terms(shape, work, train)
    if train and generate:
        parts[f"{work.name}, generate"] = generating_terms(shape, work, train, generate)
    elif generate:
        parts[work.name] = evaluating_terms(shape, work, generate)
    if train and work.device is CPU:
        parts[f"{work.name}, save"] = saving_terms(shape, work, train)
    found = []
    for name, terms in parts.items():
        found.append(Phase(name, {term: size for term, size in terms.items() if size}))
    return found


def loading_terms(shape: Shape, work: Workload, train: Training) -> dict[str, int]:
    """Weights that lie in the type they are trained in are mapped: read at their first use.

    That is so for grpo, since sft saves what it trained. Others are converted at once.
    """
    terms = {}
    if train.weight_bytes != shape.stored_bytes and work.generate is None:
        terms = {"weights": weights(shape, train), "file": shape.parameters * shape.stored_bytes}
    return terms | _overhead(shape, work, train.tokenizers)


def training_terms(shape: Shape, work: Workload, train: Training) -> dict[str, int]:
    """The larger of two moments of a training step.

    The backward of the head, with all activations, and the end of the backward, with all gradients.
    """
    of_a_layer = activations_per_layer(shape, train) * train.batch * train.tokens
    activations, freed = _activations(shape, work, train)
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
    overhead = _overhead(shape, work, train.tokenizers, activations, freed)
    return resident(shape, train) | peak | vllm | overhead


def _activations(shape: Shape, work: Workload, train: Training) -> tuple[int, int]:
    """Bytes that stand at the backward of the head, and bytes that the allocator must part again.

    Under checkpointing that are the layers' inputs and one layer whole. On a CPU every layer's
    freed activations count all the same, as measured (docs/plan.md): glibc's malloc keeps a share
    of them. torch's caching allocator on a GPU gives freed blocks out again.
    """
    tokens = train.batch * train.tokens
    of_a_layer = activations_per_layer(shape, train) * tokens
    states = shape.hidden * 4 * tokens
    outside = 3 * states
    whole = shape.layers * of_a_layer + outside
    kept = whole
    if train.checkpointing:
        kept = shape.layers * states + of_a_layer + outside
    return kept, whole if work.device is CPU else kept


def generating_terms(
    shape: Shape, work: Workload, train: Training, generate: Generation
) -> dict[str, int]:
    """Generation inside grpo: the policy and its optimizer stay, a new cycle has no gradients."""
    processes = train.processes if train.sharded else 1
    there = resident(shape, replace(train, accumulate=1, processes=processes))
    kept = _kept(shape, work, train)
    return there | _generation(shape, work, generate, train.tokenizers, kept)


def saving_terms(shape: Shape, work: Workload, train: Training) -> dict[str, int]:
    """Merging and writing take nothing more: weights change in place and are written from there."""
    there = resident(shape, replace(train, accumulate=1))
    return there | _overhead(shape, work, train.tokenizers, kept=_kept(shape, work, train))


def evaluating_terms(shape: Shape, work: Workload, generate: Generation) -> dict[str, int]:
    """One model at a time (evaluate's, select's), beside the classifiers that judge.

    It is float32 on a CPU, and on CUDA as it was saved (here: as trained, float32).
    """
    own = 0 if generate.vllm is not None else 4 * shape.parameters
    there = {"weights": own, "classifiers": work.judges}
    return there | _generation(shape, work, generate, tokenizers=1)


def _generation(
    shape: Shape, work: Workload, generate: Generation, tokenizers: int, kept: int = 0
) -> dict[str, int]:
    """vLLM's share, or what transformers' `generate` adds to the weights."""
    if generate.vllm is not None:
        return {"vLLM": work.vllm, "context": work.device.context}
    terms = generation_terms(shape, generate)
    # As large blocks, caches go back to the system at once; what prefill frees is kept like
    # activations.
    kept = max(0, kept - sum(terms.values()))
    return terms | _overhead(shape, work, tokenizers, freed=terms["prefill"], kept=kept)


def _kept(shape: Shape, work: Workload, train: Training) -> int:
    """Bytes that a CPU's allocator still holds once a training step is over."""
    if work.device is not CPU:
        return 0
    activations, freed = _activations(shape, work, train)
    return activations + round(work.device.heap * freed)


def _overhead(
    shape: Shape, work: Workload, tokenizers: int, live: int = 0, freed: int = 0, kept: int = 0
) -> dict[str, int]:
    """What the process itself holds, its tokenizers, and what the allocator keeps.

    `live` are blocks for which it uses what loading the tokenizers has left.
    """
    device = work.device
    left = shape.vocabulary * device.loading - live
    return {
        "imports": device.imports,
        "context": device.context,
        "tokenizers": tokenizers * shape.vocabulary * device.tokenizer,
        "allocator": max(round(device.heap * freed), left, kept),
    }


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


def sequences_in_cache(shape: Shape, work: Workload) -> int:
    """Sequences that vLLM's cache holds at once."""
    assert work.generate  # noqa: S101  (tells mypy a type, checks no input)
    tokens = work.generate.prompt + work.generate.completion
    return max(0, work.vllm - vllm_base(shape)) // cache_per_sequence(shape, tokens, 2)


def vllm_does_not_start(shape: Shape, work: Workload) -> bool:
    """Whether vLLM's share has no room for the weights and one sequence's cache."""
    return work.vllm > 0 and sequences_in_cache(shape, work) == 0
