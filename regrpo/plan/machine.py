"""What a profile asks of the machine that trains: the card, processes, packages, a vLLM server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from regrpo.core import hardware, text
from regrpo.core.errors import Refused, RegrpoError
from regrpo.core.settings import LAUNCH_CONFIGS
from regrpo.plan import step_time
from regrpo.plan.findings import (
    EXTRA,
    GIB,
    Finding,
    Findings,
    Sections,
    Target,
    Trained,
    needed,
    of_error,
    short_message,
    warning,
    wrong,
)
from regrpo.train import sharding

SERVER = LAUNCH_CONFIGS / "vllm-server.yaml"
"""The server's configuration that docs/gpu.md starts it with."""

# --- the card -------------------------------------------------------------------------------------


def precision(stage: Trained, target: Target) -> Findings:
    """bf16 and fp16 against the hardware."""
    config, name = stage.config, stage.name
    if config.bf16 and stage.device == "cuda" and not _has_bf16(target):
        why = f"{target.gpu} has no bf16 in hardware (compute capability below 8.0)"
        yield wrong(f"{name}.bf16", why, "bf16: false with fp16: true")
    if stage.device == "cuda":
        return
    if config.bf16:
        by_itself = stage.section.passed_through.get("bf16") is None
        who = "TRL turns bf16 on by itself" if by_itself else "bf16"
        yield warning(f"{name}.bf16", f"{who} and it is slower than float32 on a CPU", "false")
    if config.fp16:
        yield wrong(f"{name}.fp16", "half precision with loss scaling needs a GPU", "false")


def _has_bf16(target: Target) -> bool:
    if known := step_time.card(target.gpu):
        return step_time.CARDS[known].bf16
    if target.here:
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def evaluation(section: Any, target: Target) -> Findings:
    """evaluate's backend against its device."""
    if section.backend == "vllm" and target.device(section) == "cpu":
        why = "vllm is asked for, and evaluate runs on a CPU"
        yield wrong("evaluate.backend", why, "hf, or device: cuda")


# --- processes ------------------------------------------------------------------------------------


def launched(stage: str, section: Any, target: Target, how: str) -> Findings:
    """How a stage's processes are started: the backend, and the sharding."""
    if section.processes == 1:
        return
    if section.launch.backend == "nccl" and target.here:
        try:
            hardware.require_nccl(f"{stage}.launch.backend")
        except Refused as error:
            yield of_error(error)
    on_cpu = target.device(section) == "cpu"
    if on_cpu and section.launch.backend == "nccl":
        why = f"nccl needs GPUs, and {stage} is planned for this CPU"
        would_do = "gloo; for another machine device: cuda, or --gpu"
        yield wrong(f"{stage}.launch.backend", why, would_do)
    if on_cpu and how.startswith("FSDP"):
        why = f"accelerate trains DDP on CPUs where {how} is asked for, and the stage refuses that"
        yield wrong(f"{stage}.launch.config", why, "launch without config, or device: cuda")


def spread(launch: Any, key: str) -> tuple[str, list[Finding]]:
    """How `launch` spreads the model, or DDP and accelerate's own refusal of the file it names."""
    if launch is None or launch.config is None:
        return "DDP", []
    from accelerate.commands.config.config_args import load_config_from_file  # type: ignore[import-untyped]
    from accelerate.utils import DistributedType  # type: ignore[import-untyped]

    would_do = "a file as profiles/launch/fsdp2.yaml (`accelerate config` writes one)"
    try:
        how = sharding.requested(launch)
        if load_config_from_file(launch.config).distributed_type != DistributedType.MULTI_CPU:
            return how, []
        why = "accelerate starts one process for MULTI_CPU, and the stage refuses that"
        would_do = "launch without config"
    except RegrpoError as error:
        why = f"expected {error.expected}; found {error.found}"
    except Exception as error:  # whatever a strange file makes accelerate raise
        why = short_message(error)
    return "DDP", [wrong(key, f"{launch.config}: {why}", would_do)]


# --- packages -------------------------------------------------------------------------------------


def installed(distribution: str) -> str | None:
    """The version of an installed distribution. Returns None if there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def wanted_version(distribution: str, package: str) -> str:
    """What an installed distribution wants of a package, as `<=0.31.0,>=0.22.0`, or ""."""
    from packaging.requirements import Requirement

    try:
        requirements = map(Requirement, metadata.requires(distribution) or [])
    except metadata.PackageNotFoundError:
        return ""
    for one in requirements:
        # An extra is named like the package that it adds.
        if one.name == package and (not one.marker or one.marker.evaluate({"extra": package})):
            return str(one.specifier)
    return ""


class Need(NamedTuple):
    """A package beyond the usual ones that the profile asks for."""

    package: str
    key: str
    purpose: str
    without: str


def _needs(stage: Trained) -> Iterator[Need]:
    name, config, arguments = stage.name, stage.config, stage.model_arguments
    optimizer = stage.optimizer
    if any(part in optimizer for part in ("8bit", "4bit", "paged", "bnb")):
        purpose = f"the optimizer {optimizer}"
        yield Need("bitsandbytes", f"{name}.optim", purpose, "adamw_torch_fused")
    if stage.section.quantization:
        yield Need("bitsandbytes", f"{name}.quantization", "quantised weights", "null")
    if config.use_liger_kernel:
        without = "false (TRL's loss is chunked anyway)"
        yield Need("liger-kernel", f"{name}.use_liger_kernel", "its kernels", without)
    if stage.section.passed_through.get("deepspeed"):
        yield Need("deepspeed", f"{name}.deepspeed", "ZeRO", "leave it out")
    elif stage.spread.startswith("ZeRO"):
        yield Need("deepspeed", f"{name}.launch.config", stage.spread, "launch without config")
    key = f"{name}.model_init_kwargs"
    if "flash_attention_2" in str(arguments.get("attn_implementation")):
        yield Need("flash-attn", f"{key}.attn_implementation", "flash_attention_2", "sdpa")
    if arguments.get("use_kernels"):
        yield Need("kernels", f"{key}.use_kernels", "the hub's kernels", "false")
    if stage.uses_vllm:
        yield Need("vllm", "grpo.use_vllm", "generation", "use_vllm: false")


def needs(stages: Iterable[Trained], evaluate: Any | None) -> Iterator[Need]:
    """Packages beyond the usual, each with the first key that asks for it."""
    found: dict[str, Need] = {}
    for stage in stages:
        for need in _needs(stage):
            found.setdefault(need.package, need)
    if evaluate is not None and evaluate.backend == "vllm":
        found.setdefault("vllm", Need("vllm", "evaluate.backend", "evaluation", "hf"))
    yield from found.values()


def versions(stages: Iterable[Trained], sections: Sections, target: Target) -> Findings:
    """Installed packages against what the profile, TRL and vLLM ask for."""
    for need in needs(stages, sections.get("evaluate")):
        stage = need.key.partition(".")[0]
        on_gpu = target.device(sections[stage]) == "cuda"
        if installed(need.package) is None:
            yield _missing(need, elsewhere=on_gpu and not target.here)
    yield from versions_of_vllm(sections)
    if target.is_used_by(sections.values()):
        yield from _torch_findings(target)


def _missing(need: Need, elsewhere: bool) -> Finding:
    name = need.package
    in_extra = name in ("vllm", "bitsandbytes", "liger-kernel", "deepspeed")
    line = EXTRA if in_extra else f"pip install {name}"
    supported = f" ({_supported()})" if name == "vllm" else ""
    why = f"{need.purpose} needs {name}{supported}, which is not installed"
    if elsewhere:
        return needed(need.key, why, line)
    return wrong(need.key, why, f"{need.without}, or {line}")


def _supported() -> str:
    return f"TRL {installed('trl')} supports vllm{wanted_version('trl', 'vllm')}"


def versions_of_vllm(sections: Sections) -> Findings:
    """The installed vLLM, or else the pinned one, against what TRL supports and its own torch."""
    key = ""
    if "evaluate" in sections and sections["evaluate"].backend == "vllm":
        key = "evaluate.backend"
    if "grpo" in sections and sections["grpo"].passed_through.get("use_vllm"):
        key = "grpo.use_vllm"
    found = installed("vllm")
    version = found or _pinned("vllm")
    if not key or not version:
        return
    what = "installed" if found else "pinned in constraints.txt"
    supported = wanted_version("trl", "vllm")
    if not _holds(version, supported):
        why = f"vLLM {version} is {what}, and {_supported()}"
        yield wrong(key, why, f"pip install 'vllm{supported}'")
    torch, built_for = installed("torch"), wanted_version("vllm", "torch")
    if torch and not _holds(torch, built_for):
        why = f"vLLM {version} is built for torch{built_for}, and torch {torch} is installed"
        yield wrong(key, why, EXTRA)


def _holds(version: str, specifier: str) -> bool:
    """Whether a version, whatever its build, is one of a specifier's."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    return Version(version).base_version in SpecifierSet(specifier)


def _torch_findings(target: Target) -> Findings:
    import torch

    pinned = _pinned("torch")
    if torch.version.cuda is None:
        why = f"cuda needs a CUDA build of torch; torch {torch.__version__} here is none"
        yield (wrong if target.here else needed)("device", why, EXTRA)
    elif problem := hardware.cuda_problem():
        yield needed("device", problem, "a GPU with a driver for this CUDA, or device: cpu")
    elif target.here and pinned and pinned != torch.__version__.partition("+")[0]:
        found = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        yield warning("device", f"{found} is not the pinned {pinned}", "make install")
    if target.here and target.taken:
        why = f"other processes hold {target.taken / GIB:.1f} GiB of the {target.gpu}'s memory"
        yield warning("device", why, "end them (nvidia-smi lists them), or CUDA_VISIBLE_DEVICES=…")


def _pinned(name: str) -> str | None:
    """The version in constraints.txt. Returns None if there is none."""
    file = Path("constraints.txt")
    match = re.search(rf"(?m)^{name}==(\S+)$", file.read_text()) if file.exists() else None
    return match[1] if match else None


# --- vLLM in grpo ---------------------------------------------------------------------------------


def vllm(stage: Trained) -> Findings:
    """Generation by vLLM: on the trainer's GPU, or by a server that no stage starts."""
    config = stage.config
    if stage.device == "cpu":
        why = "vLLM is asked for, and grpo runs on a CPU"
        yield wrong("grpo.use_vllm", why, "false, or device: cuda")
    share = config.vllm_gpu_memory_utilization
    if not 0 < share < 1:
        why = f"{share} is no share of the GPU's memory that leaves room to train"
        yield wrong("grpo.vllm_gpu_memory_utilization", why, "0.3 (TRL's own)")
    if config.vllm_mode == "server":
        yield _server(stage)
    elif stage.processes % config.vllm_tensor_parallel_size:
        processes = text.count(stage.processes, "process", "processes")
        why = f"{config.vllm_tensor_parallel_size} does not divide {processes}"
        yield wrong("grpo.vllm_tensor_parallel_size", why, "1")
    if config.vllm_importance_sampling_correction:
        yield from _biased(config)


UNBIASED = {"top_p": (1, None), "top_k": (0, -1), "min_p": (0, None), "repetition_penalty": (1,)}
"""What leaves a token's probability as the model gives it."""


def _biased(config: Any) -> Findings:
    """Sampling settings that bias TRL's correction of the mismatch between trainer and vLLM.

    TRL 1.16 asks vLLM for `processed_logprobs` (trl/generation/vllm_generation.py): after all of
    these, and normalised over the tokens that are left. The trainer's own are over the whole
    vocabulary, only divided by the temperature. The ratio of both then carries the share of
    probability that was kept: a mean of 0.90 for top_p 0.8, 0.97 for top_k 20 (measured in
    github.com/huggingface/trl/pull/7269, closed; the issue is 6789, open on 2026-11-27).
    """
    given = {key: getattr(config, key) for key in UNBIASED} | (config.generation_kwargs or {})
    for key, harmless in UNBIASED.items():
        if given[key] not in harmless:
            why = (
                f"with {given[key]} vLLM's log-probabilities are those of other distributions than "
                "the trainer's, and TRL's importance-sampling correction is biased"
            )
            would_do = f"{harmless[0]}, or vllm_importance_sampling_correction: false"
            yield warning(f"grpo.{key}", why, would_do)


def _server(stage: Trained) -> Finding:
    """TRL's vLLM server, which no stage starts."""
    config = stage.config
    address = f"{config.vllm_server_host}:{config.vllm_server_port}"
    return needed(
        "grpo.vllm_mode",
        f"a vLLM server at {config.vllm_server_base_url or address}, on GPUs of its own beside "
        f"the {stage.processes} that train",
        f"CUDA_VISIBLE_DEVICES=… trl vllm-serve --config {SERVER}, once sft has run",
    )
