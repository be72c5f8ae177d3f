"""How a model is spread over processes: as asked, as it is, and its state out of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regrpo.core import processes
from regrpo.core.errors import Refused
from regrpo.core.profiles import read_yaml
from regrpo.core.settings import LAUNCH_CONFIGS, Launch


def requested(launch: Launch) -> str:
    """What `launch` asks for: DDP (a whole copy a process), FSDP1, FSDP2 or ZeRO-<stage>.

    Raises as `accelerate_config` does.
    """
    config = accelerate_config(launch)
    kind = config.get("distributed_type")
    if kind == "FSDP":
        version = (config.get("fsdp_config") or {}).get("fsdp_version", 1)
        return f"FSDP{version}"
    if kind == "DEEPSPEED":
        stage = (config.get("deepspeed_config") or {}).get("zero_stage", 2)
        return f"ZeRO-{stage}"
    return "DDP"


def accelerate_config(launch: Launch) -> dict[str, Any]:
    """The accelerate configuration that `launch.config` names; empty if it names none.

    Raises CannotCheck if there is no such file, Refused if it is no accelerate configuration.
    """
    if launch.config is None:
        return {}
    config = read_yaml(Path(launch.config))
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise Refused(
            launch.config,
            expected="an accelerate configuration (`accelerate config` writes one)",
            found="no `distributed_type`",
            remedy=f"Start from a copy of one in {LAUNCH_CONFIGS}/.",
        )
    return config


def actual(model: Any) -> str:
    """What accelerate made of a model, in `requested`'s words; "one process" if nothing."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        return "DDP"
    if isinstance(model, FSDPModule):
        return "FSDP2"
    if isinstance(model, FullyShardedDataParallel):
        return "FSDP1"
    # DeepSpeed's engine: the package need not be installed, so no isinstance.
    if hasattr(model, "zero_optimization_stage"):
        return f"ZeRO-{model.zero_optimization_stage()}"
    return "one process"


def whole_state(trainer: Any) -> dict[str, Any] | None:
    """The weights gathered out of shards, on rank 0's CPU; None if rank 0 holds them all anyway.

    Every process must call it.
    """
    if processes.world_size() == 1 or actual(trainer.model_wrapped) == "DDP":
        return None
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state
