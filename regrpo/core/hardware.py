"""Device, threads, seeds: said once, for every stage that computes."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any, Literal

from regrpo.core.errors import Refused


def find_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """ "cuda" where it is asked for or there, else "cpu". Raises Refused where CUDA is asked for and there is none."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise Refused(
            "device",
            expected="a CUDA device, as the profile asks for (device: cuda)",
            found=f"none (torch {torch.__version__})",
            remedy="Set `device: auto` or `cpu`, or run on a machine with CUDA (README: CUDA).",
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def require_bf16(section: str, wanted: bool, device: str) -> None:
    """Refused where bfloat16 is asked for on a GPU without it; a CPU computes it, if slowly."""
    import torch

    if wanted and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        major, minor = torch.cuda.get_device_capability()
        raise Refused(
            f"{section}.bf16",
            expected="a GPU that computes in bfloat16 (compute capability 8.0 or more)",
            found=f"{torch.cuda.get_device_name()} (capability {major}.{minor})",
            remedy="Set `bf16: false` and `fp16: true`.",
        )


def require_vllm(where: str, instead: str, device: str) -> None:
    """Refused where vLLM is asked for (`where`) and cannot run.

    `instead` is what the profile can say otherwise.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if device == "cpu" or not installed:
        raise Refused(
            where,
            expected="a CUDA device and the vllm package",
            found=f"device {device}, vllm {'installed' if installed else 'not installed'}",
            remedy=f"Set `{instead}`; or, on a CUDA machine, pip install -c constraints.txt -e '.[cuda]'.",
        )


def set_up(seed: int, threads: int, deterministic: bool = False) -> dict[str, Any]:
    """Fix everything that draws or counts.

    Python, NumPy and torch generators, and torch's thread count.

    Must run before a model or trainer is built: LoRA's initial weights are drawn then. Returns what
    `deterministic` turned on (nothing without it); a CPU needs none of it.
    """
    import warnings

    import torch
    from transformers import set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()  # stages print their own, one line at a time
    # TRL 1.16 reads transformers 5's old name at every generation.
    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
    )
    torch.set_num_threads(threads)
    set_seed(seed)
    return turn_on_determinism() if deterministic else {}


def turn_on_determinism() -> dict[str, Any]:
    """Turn on what torch, flash-attention and vLLM offer for the same bits twice on one CUDA device.

    Must run before CUDA and vLLM start: they read these variables once. Not transformers' enable_full_determinism,
    which also makes every kernel launch wait (CUDA_LAUNCH_BLOCKING) and changes no bit by that. An operation that has
    no deterministic form then raises RuntimeError instead of drifting. vLLM's batch-invariant mode needs compute
    capability 8.0, and vLLM itself refuses a model that has no such mode. Returns {name: value} of what is on.
    """
    import os

    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    variables = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    if (
        importlib.util.find_spec("vllm")
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 0)
    ):
        variables["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(variables)
    return {
        "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.cudnn.deterministic": torch.backends.cudnn.deterministic,
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        **variables,
    }


def cpu_model() -> str:
    """The processor's name with family, model and stepping, or its architecture where the system does not tell.

    Virtual machines give one name to several generations, whose vector units add up in another order.
    """
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(errors="replace").partition("\n\n")[0].splitlines()
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)
    }
    numbers = [f"{key} {facts[name]}" for key, name in _CPU_NUMBERS.items() if name in facts]
    return " ".join(
        [
            facts.get("model name", platform.machine()),
            *([f"({', '.join(numbers)})"] if numbers else []),
        ]
    )


_CPU_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}


def cuda_devices() -> list[str]:
    """The CUDA devices' names, where torch is loaded in this process and sees any (nothing is loaded to find out)."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, or of the largest that it started and that ended, in 10^6 bytes."""
    import resource
    import sys

    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)
