"""Whether a model is spread over processes as the profile asked, and its whole state out of shards.

accelerate was seen to train plain DDP where FSDP was asked for, without a word: hence the check
before the first step.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from regrpo.core import processes
from regrpo.core.errors import Refused
from regrpo.core.settings import Launch
from regrpo.train.launch import asked


def found(model: Any) -> str:
    """How a prepared model is spread, in `asked`'s words; "one process" where it is not."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    for kind, name in (
        (DistributedDataParallel, "DDP"),
        (FSDPModule, "FSDP2"),
        (FullyShardedDataParallel, "FSDP1"),
    ):
        if isinstance(model, kind):
            return name
    stage = getattr(model, "zero_optimization_stage", None)
    return f"ZeRO-{stage()}" if stage else "one process"


class AsAsked(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """Refuses, before the first step, a world, a backend or a sharding that is not what `launch` asks."""

    def __init__(self, trainer: Any, launch: Launch) -> None:
        self.trainer, self.launch = trainer, launch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        import torch.distributed

        backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
        is_there = [args.world_size, backend, found(self.trainer.model_wrapped)]
        wanted = [self.launch.processes, self.launch.backend, asked(self.launch)]
        if is_there != wanted:
            raise Refused(
                "launch",
                expected="{} processes, {}, {}".format(*wanted),
                found="{} processes, {}, {}".format(*is_there),
                remedy=f"Nothing was trained. Correct launch in the profile{self._file()}.",
            )
        if "DDP" in is_there:
            # torch's own argument, which transformers cannot pass on. The buffers are constants
            # (rotary frequencies).
            self.trainer.model_wrapped.forward_sync_buffers = False

    def _file(self) -> str:
        return f", or {self.launch.config}" if self.launch.config else ""


def whole_state(trainer: Any) -> dict[str, Any] | None:
    """The weights gathered out of shards, on rank 0's CPU; None where rank 0 holds them all.

    Each process must call.
    """
    if processes.world_size() == 1 or found(trainer.model_wrapped) == "DDP":
        return None
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state
