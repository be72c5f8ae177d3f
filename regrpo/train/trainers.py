"""TRL's trainers as sft and grpo use them: what both set, and training that can be resumed.

A resumed run ends in the bits of one that was never killed: checkpoints get our own state beside
the trainer's, and a manifest written last (regrpo.train.checkpoints).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PrinterCallback, TrainerCallback

from regrpo.core import conversation, files, hardware, processes, rendering, tokenizers
from regrpo.core.errors import Refused
from regrpo.core.settings import Launch, Training
from regrpo.train import checkpoints
from regrpo.train.callbacks import RequireRequestedSharding

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def set_up(stage: str, params: Training) -> str:
    """Fix everything that draws or counts, hence before a model is made; returns the device.

    Raises Refused for a device that is not there or does not compute in bfloat16 as the section
    wants.
    """
    device = hardware.find_device(params.device, f"{stage}.device")
    hardware.require_bf16(stage, params.wants_bf16, device)
    hardware.set_up(params.seed, params.threads, params.deterministic and device == "cuda")
    return device


def model_arguments(stage: str, params: Training, start: Path) -> dict[str, Any]:
    """What both trainers take of the model folder to start from, of LoRA and of quantization."""
    arguments = {
        "model": str(start),
        "processing_class": conversation.load_tokenizer(start),
    }
    if params.lora:
        arguments["peft_config"] = params.lora.config()
    if params.quantization:
        arguments["quantization_config"] = params.quantization.config(stage)
    return arguments


def require_room(
    source: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[conversation.Prompt],
    completion: int,
    key: str,
) -> None:
    """Refuse a prompt whose completion of so many tokens goes beyond the base's window."""
    renderer = rendering.in_process(tokenizer, "the model")
    longest = max(conversation.count_tokens(tokenizer, prompts, renderer), default=0)
    tokenizers.require_window(source, longest + completion, key)


@contextlib.contextmanager
def refuse_on(kind: type[Exception], stage: str) -> Iterator[None]:
    """Make what TRL, PEFT or transformers raise about a setting a refusal of the stage's section.

    ImportError, of a package that a setting needs, only while the trainer is made: a later one is a
    fault of ours, or of a custom reward.
    """
    try:
        yield
    except kind as error:
        raise Refused(
            stage,
            expected="settings that the trainer accepts",
            found=" ".join(str(error).split())[:400],
            remedy="Correct them in the profile; a package that is missing may be in an extra "
            "(pyproject.toml).",
        ) from error


LENGTHS = {"sft": "max_length", "grpo": "max_completion_length"}
"""Each training's key of the longest sequence, in tokens."""


def memory_changes(stage: str, params: Training) -> list[str]:
    """What in a section lowers a training's peak, with values that would do, the mildest first.

    The order is that of the plan's advice: what costs time before what changes the training.
    """
    section = params.model_dump()
    changes = []
    is_colocated = section.get("use_vllm") and section.get("vllm_mode") != "server"
    if is_colocated and not section.get("vllm_enable_sleep_mode"):
        changes.append("vllm_enable_sleep_mode: true")
    batch, steps = params.per_device_train_batch_size, params.gradient_accumulation_steps
    if batch % 2 == 0:
        changes.append(
            f"per_device_train_batch_size: {batch // 2} with gradient_accumulation_steps: "
            f"{2 * steps} (the same batch a step)"
        )
    # TRL's default, under its older name.
    old_name = section.get("gradient_checkpointing", True)
    if not section.get("activation_checkpointing", old_name):
        changes.append("activation_checkpointing: true")
    changes.append(f"a lower {LENGTHS[stage]}")
    changes.append("lora: {r: 16, lora_alpha: 32}")
    return changes


@contextlib.contextmanager
def resumable(stage: str, params: Training, folder: Path) -> Iterator[Path | None]:
    """Hold the section's checkpoints in `folder` while it trains; gives the one to go on from.

    What the libraries refuse, and memory that runs out, become refusals of the section.
    """
    changes = memory_changes(stage, params)
    stays = "Checkpoints stay: with the same settings `dvc repro` goes on from the newest."
    with (
        checkpoints.held(folder),
        refuse_on(ValueError, stage),
        hardware.refuse_full_memory(stage, changes, stays),
    ):
        yield checkpoints.newest_complete(folder)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder of this process's own beside the checkpoints that it holds; gone at the end.

    What a killed run left there goes first.
    """
    own = folder / f"rows-{processes.rank()}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def mapped(file: Path, batches: Iterable[list[dict[str, Any]]], schema: pa.Schema) -> Dataset:
    """The rows, written to `file` and mapped into memory from there: it holds a batch of them.

    `schema` has their columns. What a trainer makes of them, datasets writes beside the file, and
    maps it likewise.
    """
    import pyarrow as pa
    from datasets import Dataset, Features

    schema = Features.from_arrow_schema(schema).arrow_schema
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for rows in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
    return Dataset.from_file(str(file))


class Stateful(Protocol):
    """Something of ours that a resumed run must find as it was (JSON values only)."""

    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


def fit(
    trainer: Any,
    checkpoint: Path | None,
    parts: Mapping[str, Stateful],
    launch: Launch | None = None,
) -> None:
    """Train to the end, from a complete checkpoint if there is one.

    Raises Refused if processes or sharding are not what `launch` asks.
    """
    # History shows progress.
    trainer.remove_callback(PrinterCallback)
    if launch and launch.processes > 1:
        trainer.add_callback(RequireRequestedSharding(trainer, launch))
    parts = {"tokens": TokenCount(trainer), **parts}
    trainer.add_callback(CompleteCheckpoints(parts))
    if checkpoint is None:
        trainer.train()
        return
    print(f"resuming from {checkpoint.name}", flush=True)
    for name, state in files.read_json(checkpoint / checkpoints.STATE).items():
        parts[name].restore(state)
    trainer.train(resume_from_checkpoint=str(checkpoint))


def require_steps(stage: str, state: Any, stopped: bool = False) -> None:
    """Refuse a training that ended before its last step, unless it was `stopped` on purpose.

    transformers only logs a warning where the data yield no batch.
    """
    if state.global_step < state.max_steps and not stopped:
        raise Refused(
            f"{stage}.max_steps",
            expected=f"{state.max_steps} steps",
            found=f"{state.global_step}, as the data yield no further batch",
            remedy="Bring more rows, lower per_device_train_batch_size, or set "
            "dataloader_drop_last: false.",
        )


@dataclass
class TokenCount:
    """SFTTrainer's running count of tokens, which its checkpoints leave out (TRL 1.16)."""

    trainer: Any

    def state(self) -> int:
        return int(getattr(self.trainer, "_total_train_tokens", 0))

    def restore(self, state: int) -> None:
        self.trainer._total_train_tokens = state


@dataclass(eq=False)
class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """Completes each checkpoint that the trainer saves: our own state, then the manifest.

    Keeps the newest two.
    """

    parts: Mapping[str, Stateful]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Each process writes its random states, and the manifest must name them.
        processes.barrier()
        if not state.is_world_process_zero:
            return
        output = Path(args.output_dir)
        folder = output / f"checkpoint-{state.global_step}"
        ours = {name: part.state() for name, part in self.parts.items()}
        files.write_json(folder / checkpoints.STATE, ours)
        files.write_json(folder / checkpoints.MANIFEST, checkpoints.digests(folder))
        for old in checkpoints.by_step(output)[checkpoints.KEPT :]:
            shutil.rmtree(old)
