"""Device, threads, seeds: said once, for every stage that computes."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

from regrpo.errors import Refused


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


def set_up(seed: int, threads: int) -> None:
    """Fix everything that draws or counts: Python, NumPy and torch generators, and torch's thread count.

    Must run before a model or trainer is built: LoRA's initial weights are drawn then.
    """
    import warnings

    import torch
    from transformers import set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()  # stages print their own, one line at a time
    # TRL 1.16 reads transformers 5's old name at every generation.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    torch.set_num_threads(threads)
    set_seed(seed)


def cpu_model() -> str:
    """The processor's name with family, model and stepping, or its architecture where the system does not tell.

    Virtual machines give one name to several generations, whose vector units add up in another order.
    """
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(errors="replace").partition("\n\n")[0].splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    numbers = [f"{key} {facts[name]}" for key, name in _CPU_NUMBERS.items() if name in facts]
    return " ".join([facts.get("model name", platform.machine()), *([f"({', '.join(numbers)})"] if numbers else [])])


_CPU_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}


def cuda_devices() -> list[str]:
    """The CUDA devices' names, where torch is loaded in this process and sees any (nothing is loaded to find out)."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, in MB (10^6 bytes)."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)
