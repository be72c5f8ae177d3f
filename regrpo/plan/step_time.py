"""Step times from a roofline: the larger of arithmetic and traffic.

Williams et al. 2009, doi:10.1145/1498765.1498785. An estimate of the right order, to tell an hour
from a day; every assumption is in `ASSUMPTIONS` and printed.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any, NamedTuple

from regrpo.plan.findings import Target
from regrpo.plan.memory import cache_per_sequence, optimizer_bytes, sequences_in_cache, weights
from regrpo.plan.model_shape import Shape
from regrpo.plan.workload import Generation, Training, Workload

TRAINING, DECODING = 0.35, 0.6
ON_CPU = 0.7
LAUNCH = 0.3e-3
ASSUMPTIONS = (
    f"on a GPU training reaches {TRAINING:.0%} of the peak arithmetic and decoding {DECODING:.0%} "
    "of the bandwidth (data sheets); a CPU 70 % of what a matrix product and a copy reach here at "
    "once",
    "every sequence is as long as the settings allow; a forward costs 2 FLOPs per parameter and "
    "token, a backward twice that (once where only an adapter is trained), recomputing one forward "
    "more",
    "decoding reads all weights and the cache once per token; transformers' generate starts "
    f"kernels for {LAUNCH * 1e3:.1f} ms per layer and token on a GPU, vLLM's graphs for none",
    "loading, rewards, dev accuracy, checkpoints and communication between GPUs are not counted",
)


class Card(NamedTuple):
    """A GPU by NVIDIA's data sheet."""

    memory: int
    """GiB."""
    bandwidth: float
    """Bytes per second."""
    bf16: bool = True
    """In hardware: compute capability 8.0 on."""


CARDS = {
    "B200": Card(180, 8.0e12),
    "H200": Card(141, 4.8e12),
    "H100": Card(80, 3.35e12),
    "A100": Card(80, 2.0e12),
    "RTX PRO 6000": Card(96, 1.79e12),
    "L40S": Card(48, 0.864e12),
    "A6000": Card(48, 0.768e12),
    "A10G": Card(24, 0.6e12),
    "A10": Card(24, 0.6e12),
    "L4": Card(24, 0.3e12),
    "RTX 4090": Card(24, 1.008e12),
    "RTX 3090": Card(24, 0.936e12),
    "T4": Card(16, 0.32e12, bf16=False),
    "V100": Card(32, 0.9e12, bf16=False),
}
FLOPS = {"RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12}
"""Dense half-precision FLOP/s of those that trl.trainer.utils.get_peak_flops leaves out."""
WITHOUT_TF32 = 16
"""Float32 counts as this part of the half-precision peak (A100: 19.5 of 312 TFLOP/s)."""


class Roof(NamedTuple):
    """What a device reaches: FLOP/s in the type it trains in, and bytes per second."""

    flops: float
    bandwidth: float
    launch: float = 0.0
    """Seconds to launch a layer's kernels."""


def card(name: str) -> str | None:
    """The key of `CARDS` that a GPU's name holds as whole words (an L40 is no L4), or None."""
    for known in CARDS:
        words = re.escape(known).replace(r"\ ", "[ -]*")
        if re.search(rf"(?<![a-z0-9]){words}(?![a-z0-9])", name, re.IGNORECASE):
            return known
    return None


def memory_of(name: str) -> int | None:
    """GiB of a GPU: what its name says (A100-40GB), else its data sheet. None if it is unknown."""
    known = card(name)
    if known is None:
        return None
    said = re.search(r"(\d+) ?G(?:i?B)?\b", name, re.IGNORECASE)
    return int(said[1]) if said else CARDS[known].memory


def of_card(name: str, half: bool) -> Roof | None:
    """A GPU's roof in half precision, or in float32 without TF32. None if the card is unknown."""
    from trl.trainer.utils import get_peak_flops

    known = card(name)
    if known is None:
        return None
    peak = get_peak_flops(known, "bfloat16") or get_peak_flops(known, "float16") or FLOPS[known]
    flops = peak if half else peak / WITHOUT_TF32
    return Roof(flops * TRAINING, CARDS[known].bandwidth * DECODING, LAUNCH)


def of_this_cpu(threads: int) -> Roof:
    """This CPU's roof. One thread is measured: several would wait for each other."""
    flops, bandwidth = _one_thread()
    return Roof(threads * flops * ON_CPU, bandwidth * ON_CPU)


@cache
def _one_thread() -> tuple[float, float]:
    """FLOP/s and bytes per second, the best of the runs in a fifth of a second."""
    import torch
    from torch.utils.benchmark import Timer  # it runs in one thread

    def best(statement: str, **names: Any) -> float:
        return float(min(Timer(statement, globals=names).blocked_autorange(min_run_time=0.1).times))

    source = torch.rand(4_000_000)
    product = best("a @ a", a=torch.rand(256, 256))
    return 2 * 256**3 / product, 2 * source.nbytes / best("source.clone()", source=source)


def seconds(
    shape: Shape, work: Workload, train: Training, target: Target, threads: int
) -> dict[str, float]:
    """Seconds of an optimizer step by phase, or {} for a card that is not known."""
    if work.device.kind == "cpu":
        roof: Roof | None = of_this_cpu(min(threads, os.cpu_count() or 1))
    else:
        roof = of_card(target.gpu, half=train.half == 2)
    if roof is None:
        return {}
    generate = work.generate
    if generate is None:
        return {f"{work.name}, train": train_seconds(shape, train, roof)}
    scored, weight_bytes, at_once = 0, train.weight_bytes, None
    if generate.vllm is not None:  # TRL scores its completions again
        scored, weight_bytes = 1, shape.stored_bytes
    if generate.vllm:
        at_once = max(1, sequences_in_cache(shape, work))
    cycle = generate_seconds(shape, generate, roof, weight_bytes, at_once)
    return {
        f"{work.name}, train": train_seconds(shape, train, roof, scored + int(train.reference)),
        f"{work.name}, generate": cycle * train.batch * train.accumulate / generate.sequences,
    }


def flops_of_tokens(shape: Shape, tokens: int, context: int) -> float:
    """FLOPs of a forward over `tokens`, each seeing half of `context` (a causal mask)."""
    scores = shape.layers * 2 * 2 * shape.heads * shape.head_dim * context / 2
    return tokens * (shape.flops_per_token / 3 + scores)


def train_seconds(shape: Shape, work: Training, roof: Roof, extra_forwards: int = 0) -> float:
    """One optimizer step on one device.

    `extra_forwards` score old and reference log-probabilities.
    """
    tokens = work.batch * work.accumulate * work.tokens
    forwards_and_backward = 2 if work.adapter else 3
    passes = forwards_and_backward + int(work.checkpointing) + extra_forwards
    arithmetic = passes * flops_of_tokens(shape, tokens, work.tokens) / roof.flops
    updated = work.trained(shape) * (3 * 4 + 2 * optimizer_bytes(work.optimizer))
    traffic = work.accumulate * passes * weights(shape, work) + updated
    return max(arithmetic, traffic / roof.bandwidth)


def generate_seconds(
    shape: Shape, work: Generation, roof: Roof, weight_bytes: float, at_once: int | None = None
) -> float:
    """Completions of one batch on one device: prefill, then token by token.

    `at_once` is how many the cache holds; more take several waves.
    """
    together = min(work.sequences, at_once or work.sequences)
    waves = -(-work.sequences // together)
    middle = work.prompt + work.completion // 2
    prefill = flops_of_tokens(shape, together * work.prompt, work.prompt) / roof.flops
    cache = together * cache_per_sequence(shape, middle, work.cache_bytes)
    of_a_token = max(
        (shape.parameters * weight_bytes + cache) / roof.bandwidth,
        flops_of_tokens(shape, together, middle) / roof.flops,
        roof.launch * shape.layers if work.vllm is None else 0.0,
    )
    return waves * (prefill + work.completion * of_a_token)
