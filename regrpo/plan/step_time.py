"""Step times from a roofline: the larger of arithmetic and traffic.

Williams et al. 2009, doi:10.1145/1498765.1498785. An estimate of the right order, to tell an hour
from a day; every assumption is in `ASSUMPTIONS` and printed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from regrpo.plan.memory import Generation, Training, cache_per_sequence, optimizer_bytes, weights
from regrpo.plan.model_shape import Shape

TRAINING, DECODING = 0.35, 0.6
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
    bf16: bool
    """In hardware: compute capability 8.0 on."""


CARDS = {
    "B200": Card(180, 8.0e12, True),
    "H200": Card(141, 4.8e12, True),
    "H100": Card(80, 3.35e12, True),
    "A100": Card(80, 2.0e12, True),
    "RTX PRO 6000": Card(96, 1.79e12, True),
    "L40S": Card(48, 0.864e12, True),
    "A6000": Card(48, 0.768e12, True),
    "A10G": Card(24, 0.6e12, True),
    "A10": Card(24, 0.6e12, True),
    "L4": Card(24, 0.3e12, True),
    "RTX 4090": Card(24, 1.008e12, True),
    "RTX 3090": Card(24, 0.936e12, True),
    "T4": Card(16, 0.32e12, False),
    "V100": Card(32, 0.9e12, False),
}
FLOPS = {"RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12}
"""Dense half-precision FLOP/s of those that trl.trainer.utils.get_peak_flops leaves out."""
WITHOUT_TF32 = 16
"""Float32 counts as this part of the half-precision peak (A100: 19.5 of 312 TFLOP/s)."""


@dataclass(frozen=True)
class Roof:
    """A device: dense FLOP/s in the type it trains in, bytes and kernel launches per second."""

    name: str
    flops: float
    bandwidth: float
    launch: float
    """Seconds to launch a layer's kernels."""
    training: float = TRAINING
    """The share of `flops` that is reached."""
    decoding: float = DECODING
    """The share of `bandwidth` that is reached."""

    def compute(self, flops: float) -> float:
        """Seconds of arithmetic."""
        return flops / (self.flops * self.training)

    def read(self, size: float) -> float:
        """Seconds to move so many bytes."""
        return size / (self.bandwidth * self.decoding)


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
    return Roof(known, flops, CARDS[known].bandwidth, LAUNCH)


def of_this_cpu(threads: int) -> Roof:
    """This CPU's roof. One thread is measured: several would wait for each other."""
    flops, bandwidth = _one_thread()
    name = f"this CPU, {threads} × one thread, measured"
    return Roof(name, threads * flops, bandwidth, 0.0, training=0.7, decoding=0.7)


@cache
def _one_thread() -> tuple[float, float]:
    """FLOP/s and bytes per second, measured in a fifth of a second."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, source = torch.rand(256, 256), torch.rand(4_000_000)
        return 2 * 256**3 / _seconds(lambda: a @ a), 2 * source.nbytes / _seconds(source.clone)
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    """The quickest of the runs in a tenth of a second: the least disturbed by other work."""
    work()  # to warm up
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.1:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def flops_of_tokens(shape: Shape, tokens: int, context: int, passes: float) -> float:
    """FLOPs of `passes` forwards over `tokens`, each seeing half of `context` (a causal mask)."""
    scores = shape.layers * 2 * 2 * shape.heads * shape.head_dim * context / 2
    return passes * tokens * (shape.flops_per_token / 3 + scores)


def train_seconds(shape: Shape, work: Training, roof: Roof, extra_forwards: int = 0) -> float:
    """One optimizer step on one device.

    `extra_forwards` score old and reference log-probabilities.
    """
    tokens = work.batch * work.accumulate * work.tokens
    backward = 1 if work.adapter else 2
    passes = 1 + backward + int(work.checkpointing) + extra_forwards
    arithmetic = roof.compute(flops_of_tokens(shape, tokens, work.tokens, passes))
    updated = work.trained(shape) * (3 * 4 + 2 * optimizer_bytes(work.optimizer))
    traffic = roof.read(work.accumulate * passes * weights(shape, work) + updated)
    return float(max(arithmetic, traffic))


def generate_seconds(
    shape: Shape, work: Generation, roof: Roof, weight_bytes: float, at_once: int | None = None
) -> float:
    """Completions of one batch on one device: prefill, then token by token.

    `at_once` is how many the cache holds; more take several waves.
    """
    together = min(work.sequences, at_once or work.sequences)
    waves = -(-work.sequences // together)
    middle = work.prompt + work.completion // 2
    prefill = roof.compute(flops_of_tokens(shape, together * work.prompt, work.prompt, 1))
    cache = together * cache_per_sequence(shape, middle, work.cache_bytes)
    of_a_token = max(
        roof.read(shape.parameters * weight_bytes + cache),
        roof.compute(flops_of_tokens(shape, together, middle, 1)),
    )
    if work.vllm is None:
        of_a_token = max(of_a_token, roof.launch * shape.layers)
    return float(waves * (prefill + work.completion * of_a_token))
