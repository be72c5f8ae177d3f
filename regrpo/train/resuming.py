"""What a trainer needs to go on to the same bits.

Our own state in its checkpoints, and a manifest written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from regrpo.core import files, processes
from regrpo.core.settings import Launch
from regrpo.train import sharding
from regrpo.train.checkpoints import KEPT, MANIFEST, STATE, by_step, digests, newest_complete


class Stateful(Protocol):
    """Something of ours that a resumed run must find as it was (JSON values only)."""

    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


class TokenCount:
    """SFTTrainer's running count of tokens, which its checkpoints leave out (TRL 1.16)."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state(self) -> int:
        return int(getattr(self.trainer, "_total_train_tokens", 0))

    def restore(self, state: int) -> None:
        self.trainer._total_train_tokens = state


class Manifests(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """Completes each checkpoint that the trainer saves: our own state, then the manifest.

    Keeps the newest two.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = parts

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.barrier()  # each process writes its random states
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files.write_json(folder / STATE, {name: part.state() for name, part in self.parts.items()})
        files.write_json(folder / MANIFEST, digests(folder))
        for old in by_step(Path(args.output_dir))[KEPT:]:
            shutil.rmtree(old)


def fit(
    trainer: Any, folder: Path, parts: Mapping[str, Stateful], launch: Launch | None = None
) -> None:
    """Train to the end, from the newest complete checkpoint in `folder` where there is one.

    Raises Refused where processes or sharding are not what `launch` asks.
    """
    if launch and launch.processes > 1:
        trainer.add_callback(sharding.AsAsked(trainer, launch))
    parts = {"tokens": TokenCount(trainer), **parts}
    trainer.add_callback(Manifests(parts))
    checkpoint = newest_complete(folder)
    if checkpoint:
        print(f"resuming from {checkpoint.name}", flush=True)
        for name, state in files.read_json(checkpoint / STATE).items():
            parts[name].restore(state)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
