"""Completions by transformers; and vLLM as TRL's GRPOTrainer starts it, seeded or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from regrpo.core import conversation, hardware, processes, rendering
from regrpo.core.errors import CannotCheck
from regrpo.core.settings import Section, Training
from regrpo.train import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Sampling(Section):
    """How completions are drawn: GRPOConfig's names and defaults."""

    max_completion_length: int = Field(gt=0)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    generation_kwargs: dict[str, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Those of transformers' `generate`, as GRPOTrainer makes them (TRL 1.16)."""
        settings = self.model_dump(include=set(Sampling.model_fields))
        length, further = settings.pop("max_completion_length"), settings.pop("generation_kwargs")
        return {"max_new_tokens": length, "do_sample": True} | settings | (further or {})


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[conversation.Prompt],
    at_once: int,
    **settings: Any,
) -> Iterator[list[str]]:
    """Completions of plain or chat prompts, of so many prompts at once; `settings` are generate's.

    They end where the model's generation_config says, as those that are trained on.
    """
    is_chat = bool(prompts) and not isinstance(prompts[0], str)
    texts = conversation.render(prompts, rendering.in_process(tokenizer, "the model"))
    for start in range(0, len(texts), at_once):
        batch = tokenizer(
            texts[start : start + at_once],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            # A chat template writes its own.
            add_special_tokens=not is_chat,
            return_token_type_ids=False,
        ).to(model.device)
        # generate itself computes no gradients.
        ids = model.generate(
            **batch, **settings, pad_token_id=tokenizer.pad_token_id, disable_compile=True
        )
        yield conversation.decode(tokenizer, ids[:, batch["input_ids"].shape[1] :])


# --- vLLM -----------------------------------------------------------------------------------------

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
