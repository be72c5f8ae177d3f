"""Device, threads and seeds for every stage that computes; what the records say of the machine.

Also what a machine fails of, told in one line: no GPU, full memory, a vLLM that does not start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from regrpo.core.dvc import state_folder
from regrpo.core.errors import (
    CannotCheck,
    Refused,
    RegrpoError,
    class_and_message,
    first_line,
    peak_memory,
)
from regrpo.core.text import Shown, gigabytes


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
    installed = "not installed"
    if importlib.util.find_spec("vllm"):
        installed = "installed"
    if device == "cpu" or installed == "not installed":
        raise Refused(
            where,
            expected="a CUDA device and the vllm package",
            found=f"device {device}, vllm {installed}",
            remedy=f"Set `{instead}`; or, on a CUDA machine, "
            "pip install -c constraints.txt -e '.[cuda]'.",
        )


VLLM_WORDS = (
    ("unexpected keyword argument", "Leave that argument out."),
    ("undefined symbol", "It is of another torch: pip install -c constraints.txt -e '.[cuda]'."),
    ("batch_invariant", "Set `deterministic: false`: it has no batch-invariant mode for this."),
    ("for the cache blocks", "Raise {share}, or lower {length}."),
    ("KV cache memory", "Raise {share}, or lower {length}."),
    ("derived max_model_len", "Lower {length}."),
    ("Free memory on device", "Lower {share}, or end what else holds the GPU (`nvidia-smi`)."),
    ("out of memory", "Lower {share}, or end what else holds the GPU (`nvidia-smi`)."),
)
"""Words of the errors of a vLLM that does not start (0.22 to 0.31), and what mends it."""


@contextlib.contextmanager
def refuse_vllm_failure(section: str, share: str, length: str, instead: str) -> Iterator[None]:
    """Make what vLLM raises when its engine does not start a refusal that names the key to change.

    `share` and `length` name the keys of its part of the GPU's memory and of its longest sequence;
    `instead` is what the profile can say to do without it.
    """
    try:
        yield
    # Its own, torch's, or an assertion: whatever it is, the engine is not there.
    except Exception as error:
        remedy = "Its own words stand above. {share} and {length} say how much memory it takes."
        for words, known in VLLM_WORDS:
            if words in str(error):
                remedy = known
                break
        remedy = remedy.format(share=share, length=length)
        raise Refused(
            section,
            expected="vLLM's engine to start",
            found=class_and_message(error)[:400].rstrip("."),
            remedy=f"{remedy} Or `{instead}`.",
        ) from error


ADDRESS_SPACE = 3_200 * 10**6
"""Bytes of addresses that a pipeline needs: grpo in miniature took 3.0 GB (0.7 GB in memory)."""


def require_address_space() -> None:
    """Raises CannotCheck for a limit of the address space that is below ADDRESS_SPACE.

    With less, OpenBLAS was seen to wait for ever while it is loaded, and allocators of native code
    to abort the process without a word on the cause.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        raise CannotCheck(
            "ulimit -v",
            expected=f"at least {ADDRESS_SPACE / 1e6:,.0f} MB of address space, or no limit",
            found=f"{limit / 1e6:,.0f} MB",
            remedy="Raise it; a limit of memory itself (a cgroup's) counts no addresses.",
        )


@contextlib.contextmanager
def refuse_full_memory(section: str, changes: Sequence[str], stays: str = "") -> Iterator[None]:
    """Make running out of memory one line: the peak, the plan's, and the first two of `changes`.

    `stays` is a sentence on what is not lost. Raises Refused where a GPU is too small for the
    settings; CannotCheck where the host's memory ran out, of which a limit or other processes may
    have left too little.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_of_memory and "DefaultCPUAllocator" not in str(error):
            raise
        peak = f"{peak_memory_mb():,} MB of memory"
        if torch.cuda.is_available():
            peak = f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB of the GPU"
        # torch goes on with its allocator's settings.
        found = first_line(error).partition(" Of the allocated memory")[0].rstrip(".")
        remedy = f"Set {', or '.join(changes[:2])}; `regrpo plan` tells what fits. {stays}"
        kind: type[RegrpoError] = CannotCheck
        if isinstance(error, torch.OutOfMemoryError):
            kind = Refused
        raise kind(
            section,
            expected="the step to fit into memory",
            found=f"{found}; it held {peak} at most, and {planned_memory(section)}",
            remedy=remedy.rstrip(),
        ) from error


def planned_memory(stage: str) -> str:
    """A clause on the peak that `regrpo plan` expects of a stage, in at most a minute.

    It is a process of its own, which a stage's imports do not reach.
    """
    command = [sys.executable, "-m", "regrpo.cli", "plan", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)  # noqa: S603  (no shell, and the command is ours)
        totals = []
        for phase in json.loads(done.stdout)["phases"]:
            if phase["phase"].split(",")[0] == stage:
                totals.append(phase["total"])
        return f"`regrpo plan` expects {gigabytes(max(totals))}"
    except (OSError, ValueError, LookupError, subprocess.SubprocessError):
        return "`regrpo plan` could not be asked what it expects"


NOT_FOR_USERS = (r"`\w*gradient_checkpointing\w*` is deprecated",)
"""How warnings begin that libraries give of one another's calls."""
WARNINGS_LOG = "warnings.log"
"""In .regrpo/."""


def log_what_no_user_can_mend() -> None:
    """Send what libraries warn of and no user can mend to a log instead of the terminal.

    That is what NOT_FOR_USERS names, and bitsandbytes' warnings: whoever has it installed loads it
    with transformers, wanted or not. Its errors are shown.
    """
    path = state_folder() / WARNINGS_LOG
    for beginning in NOT_FOR_USERS:
        warnings.filterwarnings("default", message=beginning)
    warnings.showwarning = _show_or_log
    logger = logging.getLogger("bitsandbytes")
    if not logger.handlers:
        shown = logging.StreamHandler()
        shown.setLevel(logging.ERROR)
        logger.handlers = [logging.FileHandler(path, delay=True), shown]


def _show_or_log(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    if not any(re.match(beginning, str(message)) for beginning in NOT_FOR_USERS):
        (file or sys.stderr).write(text)
        return
    with (state_folder() / WARNINGS_LOG).open("a", encoding="utf-8") as log:
        Shown(log).write(text)


# --- seeds, threads, determinism ------------------------------------------------------------------


def set_up(seed: int, threads: int, deterministic: bool = False) -> None:
    """Fix what draws or counts: Python's, NumPy's and torch's generators, and torch's threads.

    Must run before a model or trainer is built: LoRA's initial weights are drawn then.
    `deterministic` is for CUDA; a CPU needs none of it.
    """
    import torch
    from transformers import set_seed
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # stages print their own, one line at a time
    torch.set_num_threads(threads)
    set_seed(seed)
    if deterministic:
        turn_on_determinism()


def turn_on_determinism() -> None:
    """Turn on what torch, NCCL, flash-attention and vLLM offer for the same bits twice on CUDA.

    Must run before CUDA, NCCL and vLLM start, which read these variables once; processes that are
    started later inherit them. An operation that has no deterministic form then raises RuntimeError
    instead of drifting. What verl's guide turns on besides, and why not here: docs/decisions.md.
    """
    # Not transformers' enable_full_determinism: it also makes every kernel launch wait
    # (CUDA_LAUNCH_BLOCKING), and changes no bit by that.
    import torch

    # Not with warn_only: torch's attention is then left as it is, with a warning.
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    variables = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "FLASH_ATTENTION_DETERMINISTIC": "1",
        # The order of a ring's sums is that of the machine's links.
        "NCCL_ALGO": "Ring",
    }
    if importlib.util.find_spec("vllm") is not None:
        # The engine in this process: what is scheduled together no longer depends on the clock.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Its batch-invariant mode needs compute capability 8.0.
        if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
            variables["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(variables)
    SWITCHES.update(variables)


SWITCHES: dict[str, str] = {}
"""The variables that `turn_on_determinism` has set in this process."""


def switches_on() -> list[str]:
    """What of the deterministic mode is on in this process, read back, as `name=value`.

    Empty if it was not turned on. vLLM sets cuBLAS's workspace anew when it starts.
    """
    if not SWITCHES:
        return []
    import torch

    cudnn = torch.backends.cudnn
    return [
        f"torch.use_deterministic_algorithms={torch.are_deterministic_algorithms_enabled()}",
        f"torch.backends.cudnn.deterministic={cudnn.deterministic}",
        f"torch.backends.cudnn.benchmark={cudnn.benchmark}",
        *[f"{name}={os.environ.get(name, '')}" for name in SWITCHES],
    ]


def cpu_model() -> str:
    """The processor's name with family, model and stepping, or its architecture if unknown.

    Virtual machines give one name to several generations, whose vector units add up in another
    order. VECTOR_UNITS that are set stand behind it.
    """
    limits = [f"{name}={os.environ[name]}" for name in VECTOR_UNITS if name in os.environ]
    return ", ".join([_cpu_name(), *limits])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first, _, _ = info.read_text(errors="replace").partition("\n\n")
    facts = dict(re.findall(r"^(.*?)\s*:[ \t]*(.*?)\s*$", first, re.MULTILINE))
    name = facts.get("model name", platform.machine())
    numbers = [f"{label} {facts[key]}" for key, label in CPU_NUMBERS.items() if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


VECTOR_UNITS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
"""Variables by which torch and its libraries use other vector units than the processor has."""
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
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return round(max(peak_memory(), children) / 1e6)
