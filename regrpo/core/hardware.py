"""Device, threads and seeds for every stage that computes; what the records say of the machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

from regrpo.core.errors import Refused


def find_device(wanted: str, where: str = "device") -> str:
    """The device of a profile's `auto`, `cpu`, `cuda` or `cuda:<number>`; auto is CUDA if there.

    Raises Refused, saying `where` it is asked for, if CUDA is and there is none.
    """
    problem = None if wanted == "cpu" else cuda_problem()
    if wanted == "auto":
        return "cpu" if problem else "cuda"
    if problem:
        raise Refused(
            where,
            expected=f"a CUDA device, as the profile asks for (device: {wanted})",
            found=f"none ({problem})",
            remedy="Set `device: auto` or `cpu`, or run on a machine with CUDA (docs/gpu.md).",
        )
    return wanted


def cuda_problem() -> str | None:
    """Why torch can use no GPU here (no CUDA build, no driver, one too old). None if it can."""
    import torch

    if torch.cuda.is_available():
        return None
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{build} is no CUDA build"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(". ")[0].removesuffix(".")
        return f"{build} for CUDA {torch.version.cuda}: {reason}"
    return f"{build}: no GPU"


def require_nccl(where: str) -> None:
    """Raises Refused if this torch has no NCCL, by which GPUs exchange gradients."""
    import torch

    if not torch.distributed.is_nccl_available():
        raise Refused(
            where,
            expected="NCCL in torch (backend: nccl)",
            found=f"none (torch {torch.__version__})",
            remedy="Install a CUDA build of torch for Linux, or set `backend: gloo`.",
        )


def require_bf16(section: str, wanted: bool, device: str) -> None:
    """Raises Refused for bfloat16 on a GPU that only emulates it; a CPU computes it, if slowly."""
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
    """Raises Refused if vLLM, which is asked for at `where`, cannot run.

    `instead` is what the profile can say otherwise.
    """
    installed = "installed" if importlib.util.find_spec("vllm") else "not installed"
    if device == "cpu" or installed == "not installed":
        raise Refused(
            where,
            expected="a CUDA device and the vllm package",
            found=f"device {device}, vllm {installed}",
            remedy=f"Set `{instead}`; or, on a CUDA machine, "
            "pip install -c constraints.txt -e '.[cuda]'.",
        )


def set_up(seed: int, threads: int, deterministic: bool = False) -> dict[str, Any]:
    """Fix what draws or counts: Python's, NumPy's and torch's generators, and torch's threads.

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
    """Turn on what torch, flash-attention and vLLM offer for the same bits twice on a CUDA device.

    Must run before CUDA and vLLM start, which read these variables once. An operation that has no
    deterministic form then raises RuntimeError instead of drifting. vLLM itself refuses a model for
    which it has no batch-invariant mode. Returns {name: value} of what is on.
    """
    # Not transformers' enable_full_determinism: it also makes every kernel launch wait
    # (CUDA_LAUNCH_BLOCKING), and changes no bit by that.
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    variables = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    has_vllm = importlib.util.find_spec("vllm") is not None
    # Its batch-invariant mode needs compute capability 8.0.
    if has_vllm and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        variables["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(variables)
    return {
        "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.cudnn.deterministic": torch.backends.cudnn.deterministic,
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        **variables,
    }


def cpu_model() -> str:
    """The processor's name with family, model and stepping, or its architecture if unknown.

    Virtual machines give one name to several generations, whose vector units add up in another
    order.
    """
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first, _, _ = info.read_text(errors="replace").partition("\n\n")
    facts = dict(re.findall(r"^(.*?)\s*:[ \t]*(.*?)\s*$", first, re.MULTILINE))
    name = facts.get("model name", platform.machine())
    numbers = [f"{label} {facts[key]}" for key, label in CPU_NUMBERS.items() if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


CPU_NUMBERS = {"cpu family": "family", "model": "model", "stepping": "stepping"}


def accepted_versions() -> list[str]:
    """The `package==version` that REGRPO_ACCEPT_VERSIONS accepts in place of the pinned ones."""
    return sorted(os.environ.get(ACCEPTED_VERSIONS, "").replace(",", " ").split())


ACCEPTED_VERSIONS = "REGRPO_ACCEPT_VERSIONS"


def cuda_devices() -> list[str]:
    """The CUDA devices' names, if torch is loaded in this process (nothing is loaded for it)."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def peak_memory_mb() -> int:
    """Peak resident memory in 10^6 bytes: of this process, or of the largest child that ended."""
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(max(here, children) * unit / 1e6)
