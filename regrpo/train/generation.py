"""vLLM as TRL's GRPOTrainer starts it in a training process: seeded by the section, or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regrpo.core import hardware, processes
from regrpo.core.errors import CannotCheck
from regrpo.core.settings import Training
from regrpo.train import checkpoints

SERVER_DRAWS = (
    "grpo: the vLLM server draws by the seed that it was started with; grpo.seed does not reach it "
    "(docs/scale.md)"
)


def engine_seed(seed: int, step: int, engine: int) -> int:
    """32 bits that differ by the section's seed, the step gone on from, and the engine's number.

    NumPy's SeedSequence mixes them, so that neighbouring seeds share no engine's draws.
    """
    import numpy as np

    return int(np.random.SeedSequence((seed, step, engine)).generate_state(1)[0])


@contextlib.contextmanager
def seeded(params: Training, checkpoint: Path | None) -> Iterator[None]:
    """While the trainer is made: give a colocated engine its seed, and its failure one line.

    TRL 1.16 gives it `process_index // tensor_parallel_size`, which is the engine's number: alike
    in the processes that share an engine. A seed of the requests would make a group's answers
    alike. A run that goes on from a checkpoint draws on from its step, where the engine keeps a
    generator of its own. Raises Refused if the engine does not start, CannotCheck if TRL started
    none here.
    """
    passed = params.passed_through
    if not passed.get("use_vllm"):
        yield
        return
    if passed.get("vllm_mode", "colocate") == "server":
        if processes.is_main():
            print(SERVER_DRAWS, flush=True)
        yield
        return
    from trl.generation import vllm_generation

    start = vllm_generation.LLM
    seeds: list[int] = []

    def start_seeded(**arguments: Any) -> Any:
        step = checkpoints.step_of(checkpoint)
        seeds.append(engine_seed(params.seed, step, arguments["seed"]))
        share = f"grpo.vllm_gpu_memory_utilization ({arguments['gpu_memory_utilization']})"
        length = "grpo.vllm_max_model_length"
        with hardware.refuse_vllm_failure("grpo.use_vllm", share, length, "use_vllm: false"):
            return start(**arguments | {"seed": seeds[-1]})

    vllm_generation.LLM = start_seeded
    try:
        yield
    finally:
        vllm_generation.LLM = start
    if not seeds:
        raise CannotCheck(
            "grpo.use_vllm",
            expected="TRL to start vLLM's engine in this process, where it is seeded",
            found="none started",
            remedy="Use the TRL of constraints.txt, or set `use_vllm: false`.",
        )
