"""Step times from a roofline (Williams et al. 2009, doi:10.1145/1498765.1498785).

The larger of arithmetic and traffic.

An estimate of the right order, to tell an hour from a day; every assumption is in `ASSUMPTIONS` and
printed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from regrpo.plan.memory import Generation, Training, cache_per_sequence, optimizer_bytes, weights
from regrpo.plan.model_shape import Shape

TRAINING, DECODING = 0.35, 0.6
LAUNCH = 0.3e-3
ASSUMPTIONS = (
    f"on a GPU training reaches {TRAINING:.0%} of the peak arithmetic and decoding {DECODING:.0%} of the bandwidth "
    "(data sheets); a CPU 70 % of what a matrix product and a copy reach here at once",
    "every sequence is as long as the settings allow; a forward costs 2 FLOPs per parameter and token, a backward "
    "twice that (once where only an adapter is trained), recomputing one forward more",
    "decoding reads all weights and the cache once per token; transformers' generate starts kernels for "
    f"{LAUNCH * 1e3:.1f} ms per layer and token on a GPU, vLLM's graphs for none",
    "loading, rewards, dev accuracy, checkpoints and communication between GPUs are not counted",
)
CARDS = {
    "B200": (180, 8.0e12, True),
    "H200": (141, 4.8e12, True),
    "H100": (80, 3.35e12, True),
    "A100": (80, 2.0e12, True),
    "RTX PRO 6000": (96, 1.79e12, True),
    "L40S": (48, 0.864e12, True),
    "A6000": (48, 0.768e12, True),
    "A10G": (24, 0.6e12, True),
    "A10": (24, 0.6e12, True),
    "L4": (24, 0.3e12, True),
    "RTX 4090": (24, 1.008e12, True),
    "RTX 3090": (24, 0.936e12, True),
    "T4": (16, 0.32e12, False),
    "V100": (32, 0.9e12, False),
}
"""GPU → GiB of memory, bytes per second, bf16 in hardware (compute capability 8.0 on), by NVIDIA's data sheets."""
FLOPS = {"RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12}
"""Dense half-precision FLOP/s of those that TRL's own table (trl.trainer.utils.get_peak_flops) leaves out."""


@dataclass(frozen=True)
class Roof:
    """A device.

    Dense FLOP/s in the type it trains in, bytes per second, seconds to launch a layer's kernels.
    """

    name: str
    flops: float
    bandwidth: float
    launch: float
    efficiency: tuple[float, float] = (TRAINING, DECODING)


def card(name: str) -> str | None:
    """The key of `CARDS` that a GPU's name holds as whole words (an L40 is no L4).

    None for one that is not there.
    """
    words = {known: re.escape(known).replace(r"\ ", "[ -]*") for known in CARDS}
    return next(
        (
            known
            for known in CARDS
            if re.search(rf"(?<![a-z0-9]){words[known]}(?![a-z0-9])", name, re.I)
        ),
        None,
    )


def memory_of(name: str) -> int | None:
    """GiB of a GPU: what its name says (A100-40GB), else what its data sheet does.

    None for an unknown one.
    """
    known = card(name)
    said = re.search(r"(\d+) ?G(?:i?B)?\b", name, re.IGNORECASE)
    return None if known is None else int(said[1]) if said else CARDS[known][0]


def of_card(name: str, half: bool) -> Roof | None:
    """A GPU's roof; float32 without TF32 counts as a sixteenth (A100: 19.5 of 312 TFLOP/s).

    None where unknown.
    """
    from trl.trainer.utils import get_peak_flops

    known = card(name)
    if known is None:
        return None
    peak = get_peak_flops(known, "bfloat16") or get_peak_flops(known, "float16") or FLOPS[known]
    return Roof(known, peak if half else peak / 16, CARDS[known][1], LAUNCH)


def of_this_cpu(threads: int) -> Roof:
    """Measured with one thread, arithmetic times `threads`.

    Several wait for each other where other work runs.
    """
    flops, bandwidth = _one_thread()
    return Roof(
        f"this CPU, {threads} × one thread, measured", threads * flops, bandwidth, 0.0, (0.7, 0.7)
    )


@cache
def _one_thread() -> tuple[float, float]:
    """FLOP/s and bytes per second in a fifth of a second.

    Float32 matrices of 256 multiplied, 16 MB copied.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, source = torch.rand(256, 256), torch.rand(4_000_000)
        return 2 * 256**3 / _seconds(lambda: a @ a), 2 * source.nbytes / _seconds(source.clone)
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    """The quickest of the runs in a tenth of a second, after one to warm up.

    Beside other work, the least disturbed.
    """
    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.1:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def flops_of_tokens(shape: Shape, tokens: int, context: int, passes: float) -> float:
    """FLOPs of `passes` forwards over `tokens`, each seeing half of `context`.

    TRL's count with a causal mask.
    """
    scores = shape.layers * 2 * 2 * shape.heads * shape.head_dim * context / 2
    return passes * tokens * (shape.flops_per_token / 3 + scores)


def train_seconds(shape: Shape, work: Training, roof: Roof, extra_forwards: int = 0) -> float:
    """One optimizer step on one device.

    `extra_forwards` score old and reference log-probabilities.
    """
    tokens = work.batch * work.accumulate * work.tokens
    passes = 1 + (1 if work.adapter else 2) + work.checkpointing + extra_forwards
    arithmetic = flops_of_tokens(shape, tokens, work.tokens, passes) / (
        roof.flops * roof.efficiency[0]
    )
    trained = work.adapter.parameters if work.adapter else shape.parameters
    traffic = work.accumulate * passes * weights(shape, work) + trained * (
        3 * 4 + 2 * optimizer_bytes(work.optimizer)
    )
    return float(max(arithmetic, traffic / (roof.bandwidth * roof.efficiency[1])))


def generate_seconds(
    shape: Shape, work: Generation, roof: Roof, weight_bytes: float, at_once: int | None = None
) -> float:
    """Completions of one batch on one device.

    Prefill, then token by token, in as many waves as the cache asks for.
    """
    together = min(work.sequences, at_once or work.sequences)
    waves = -(-work.sequences // together)
    middle = work.prompt + work.completion // 2
    prefill = flops_of_tokens(shape, together * work.prompt, work.prompt, 1) / (
        roof.flops * roof.efficiency[0]
    )
    traffic = shape.parameters * weight_bytes + together * cache_per_sequence(
        shape, middle, work.cache_bytes
    )
    arithmetic = flops_of_tokens(shape, together, middle, 1) / (roof.flops * roof.efficiency[0])
    a_token = max(traffic / (roof.bandwidth * roof.efficiency[1]), arithmetic)
    if work.vllm is None:
        a_token = max(a_token, roof.launch * shape.layers)
    return float(waves * (prefill + work.completion * a_token))
