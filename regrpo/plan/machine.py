"""What a profile asks of the machine that trains: the card, processes, packages, a vLLM server."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from regrpo.core.errors import RegrpoError
from regrpo.core.profiles import read_yaml
from regrpo.core.settings import LAUNCH_CONFIGS, nearest
from regrpo.plan import step_time
from regrpo.plan.findings import (
    EXTRA,
    Finding,
    Target,
    needed,
    one_line,
    unchecked,
    warning,
    world,
    wrong,
)
from regrpo.train import launch


def hardware_findings(
    sections: Mapping[str, Any], configs: Mapping[str, Any], target: Target
) -> Iterator[Finding]:
    """bf16 against the hardware, vLLM against the device."""
    for stage, config in configs.items():
        device = target.device(sections[stage].device)
        if config.bf16 and device == "cuda" and not _has_bf16(target):
            yield wrong(
                f"{stage}.bf16",
                f"{target.gpu} has no bf16 in hardware (compute capability below 8.0)",
                "bf16: false with fp16: true",
            )
        if config.bf16 and device == "cpu":
            why = (
                "TRL turns bf16 on by itself"
                if sections[stage].passed_through.get("bf16") is None
                else "bf16"
            )
            yield warning(f"{stage}.bf16", f"{why} and it is slower than float32 on a CPU", "false")
        if config.fp16 and device == "cpu":
            yield wrong(f"{stage}.fp16", "half precision with loss scaling needs a GPU", "false")
        if getattr(config, "use_vllm", False) and device == "cpu":
            yield wrong(
                "grpo.use_vllm",
                "vLLM is asked for, and grpo runs on a CPU",
                "false, or device: cuda",
            )
    evaluate = sections.get("evaluate")
    if evaluate and evaluate.backend == "vllm" and target.device(evaluate.device) == "cpu":
        yield wrong(
            "evaluate.backend",
            "vllm is asked for, and evaluate runs on a CPU",
            "hf, or device: cuda",
        )
    grpo = configs.get("grpo")
    if grpo is not None and grpo.use_vllm:
        yield from _vllm_findings(grpo, world(sections["grpo"], target))


def _vllm_findings(grpo: Any, processes: int) -> Iterator[Finding]:
    if not 0 < grpo.vllm_gpu_memory_utilization < 1:
        yield wrong(
            "grpo.vllm_gpu_memory_utilization",
            f"{grpo.vllm_gpu_memory_utilization} is no share of the GPU's memory that leaves room to train",
            "0.3 (TRL's own)",
        )
    if grpo.vllm_mode == "colocate" and processes % max(1, grpo.vllm_tensor_parallel_size):
        yield wrong(
            "grpo.vllm_tensor_parallel_size",
            f"{grpo.vllm_tensor_parallel_size} does not divide {processes} process{'es' * (processes > 1)}",
            "1",
        )


SERVER = LAUNCH_CONFIGS / "vllm-server.yaml"
"""The server's configuration that docs/scale.md starts it with."""


def server(sections: Mapping[str, Any], grpo: Any, target: Target) -> Iterator[Finding]:
    """TRL's vLLM server, which no stage starts.

    Its window where the shipped configuration is the server's.
    """
    if not grpo.use_vllm or grpo.vllm_mode != "server":
        return
    where = grpo.vllm_server_base_url or f"{grpo.vllm_server_host}:{grpo.vllm_server_port}"
    yield needed(
        "grpo.vllm_mode",
        f"a vLLM server at {where}, on GPUs of its own beside the {world(sections['grpo'], target)} that train",
        f"CUDA_VISIBLE_DEVICES=… trl vllm-serve --config {SERVER}, once sft has run",
    )
    said = read_yaml(SERVER) if SERVER.exists() else {}
    window, port = (
        said.get(name) if isinstance(said, dict) else None for name in ("max_model_len", "port")
    )
    if (
        window
        and "validate" in sections
        and port == grpo.vllm_server_port
        and not grpo.vllm_server_base_url
    ):
        prompt, completion = sections["validate"].max_prompt_tokens, grpo.max_completion_length
        if prompt + completion > window:
            yield wrong(
                "grpo.max_completion_length",
                f"prompt and completion ({prompt} + {completion} = {prompt + completion} tokens) exceed "
                f"max_model_len of {SERVER}, {window}",
                f"at most {window - prompt}, or max_model_len: {prompt + completion} there",
            )


def launched(stage: str, section: Any, target: Target) -> Iterator[Finding]:
    """How a stage's processes are started: the backend, the sharding, accelerate's file."""
    if section.processes == 1:
        return
    on_cpu = target.device(section.device) == "cpu"
    if on_cpu and section.launch.backend == "nccl":
        why = f"nccl needs GPUs, and {stage} is planned for this CPU"
        yield wrong(
            f"{stage}.launch.backend", why, "gloo; for another machine device: cuda, or --gpu"
        )
    how, problems = spread(section.launch, f"{stage}.launch.config")
    yield from problems
    if on_cpu and how.startswith("FSDP"):
        yield wrong(
            f"{stage}.launch.config",
            f"accelerate trains DDP on CPUs where {how} is asked for, and the stage refuses that",
            "launch without config, or device: cuda",
        )


def spread(asked: Any, key: str = "launch.config") -> tuple[str, list[Finding]]:
    """How `launch` spreads the model, with accelerate's own refusal of the file that it names (then: DDP)."""
    if asked is None or asked.config is None:
        return "DDP", []
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file  # type: ignore[import-untyped]
    from accelerate.utils import DistributedType  # type: ignore[import-untyped]

    shipped = "a file as profiles/launch/fsdp2.yaml (`accelerate config` writes one)"
    try:
        launch.accelerate_config(asked)
        told = load_config_from_file(asked.config)
        if told.distributed_type == DistributedType.MULTI_CPU:
            why = f"{asked.config}: accelerate starts one process for MULTI_CPU, and the stage refuses that"
            return "DDP", [wrong(key, why, "launch without config")]
        return launch.asked(asked), []
    except RegrpoError as error:
        return "DDP", [
            wrong(key, f"{asked.config}: expected {error.expected}; found {error.found}", shipped)
        ]
    except (
        Exception
    ) as error:  # accelerate looks at nothing twice: whatever a strange file makes it raise
        word = re.search(r"'(\w+)'", text := one_line(error))
        known = [*(one.value for one in DistributedType), *ClusterConfig.__dataclass_fields__]
        near = nearest(word[1], known) if word else None
        return "DDP", [
            wrong(key, text if asked.config in text else f"{asked.config}: {text}", near or shipped)
        ]


def _has_bf16(target: Target) -> bool:
    if known := step_time.card(target.gpu):
        return step_time.CARDS[known][2]
    if target.here:
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def vllm_range() -> tuple[str, str]:
    """The versions of vLLM that the installed TRL says it supports, from its own source."""
    from trl import import_utils

    source = inspect.getsource(import_utils.is_vllm_available)
    low, high = re.findall(r'Version\("([\d.]+)"\)', source)[:2]
    return low, high


def installed(distribution: str) -> str | None:
    """The version of an installed distribution; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requires(distribution: str) -> list[str]:
    """What an installed distribution says that it needs; nothing where there is none."""
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def needs(
    sections: Mapping[str, Any], configs: Mapping[str, Any]
) -> dict[str, tuple[str, str, str]]:
    """Packages beyond the usual that the profile asks for.

    Distribution → (key, what for, how to do without).
    """
    wanted: dict[str, tuple[str, str, str]] = {}
    for stage, config in configs.items():
        optimizer = str(getattr(config.optim, "value", config.optim))
        if any(part in optimizer for part in ("8bit", "4bit", "paged", "bnb")):
            wanted.setdefault(
                "bitsandbytes",
                (f"{stage}.optim", f"the optimizer {optimizer}", "adamw_torch_fused"),
            )
        if getattr(sections[stage], "quantization", None):
            wanted.setdefault(
                "bitsandbytes", (f"{stage}.quantization", "quantised weights", "null")
            )
        if config.use_liger_kernel:
            wanted["liger-kernel"] = (
                f"{stage}.use_liger_kernel",
                "its kernels",
                "false (TRL's loss is chunked anyway)",
            )
        if sections[stage].passed_through.get("deepspeed"):
            wanted["deepspeed"] = (f"{stage}.deepspeed", "ZeRO", "leave it out")
        elif (how := spread(sections[stage].launch)[0]).startswith("ZeRO"):
            wanted["deepspeed"] = (f"{stage}.launch.config", how, "launch without config")
        settings = config.model_init_kwargs or {}
        if "flash_attention_2" in str(settings.get("attn_implementation")):
            wanted["flash-attn"] = (
                f"{stage}.model_init_kwargs.attn_implementation",
                "flash_attention_2",
                "sdpa",
            )
        if settings.get("use_kernels"):
            wanted["kernels"] = (
                f"{stage}.model_init_kwargs.use_kernels",
                "the hub's kernels",
                "false",
            )
    if getattr(configs.get("grpo"), "use_vllm", False):
        wanted["vllm"] = ("grpo.use_vllm", "generation", "use_vllm: false")
    elif getattr(sections.get("evaluate"), "backend", "") == "vllm":
        wanted["vllm"] = ("evaluate.backend", "evaluation", "hf")
    return wanted


def versions(
    sections: Mapping[str, Any], configs: Mapping[str, Any], target: Target
) -> Iterator[Finding]:
    """Installed versions against each other, and what would be needed where the target is another machine."""
    from packaging.version import Version

    low, high = vllm_range()
    supported = f"TRL {installed('trl')} supports {low} to {high}"
    for name, (key, purpose, without) in needs(sections, configs).items():
        found = installed(name)
        if found is None:
            line = (
                EXTRA
                if name in ("vllm", "bitsandbytes", "liger-kernel", "deepspeed")
                else f"pip install {name}"
            )
            on_gpu = target.device(sections[key.partition(".")[0]].device) == "cuda"
            elsewhere = on_gpu and not target.here
            yield Finding(
                "needed" if elsewhere else "wrong",
                key,
                f"{purpose} needs {name}{f' ({supported})' * (name == 'vllm')}, which is not installed",
                line if elsewhere else f"{without}, or {line}",
            )
        if name == "vllm":
            version = found or _pinned("vllm")
            if version and not Version(low) <= Version(Version(version).base_version) <= Version(
                high
            ):
                what = "installed" if found else "pinned in constraints.txt"
                yield wrong(
                    key,
                    f"vLLM {version} is {what}, and {supported}",
                    f"pip install 'vllm>={low},<={high}'",
                )
            yield from _torch_of_vllm(key)
    if any(
        target.device(one.device) == "cuda" for one in sections.values() if hasattr(one, "device")
    ):
        yield from _torch_findings(target)


def _torch_of_vllm(key: str) -> Iterator[Finding]:
    """The torch that an installed vLLM was built for against the installed one."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    found = installed("torch") or "0"
    for asked in map(Requirement, requires("vllm")):
        applies = asked.name == "torch" and (asked.marker is None or asked.marker.evaluate())
        if applies and not asked.specifier.contains(Version(found).base_version, prereleases=True):
            yield wrong(
                key,
                f"the installed vLLM needs {asked.name}{asked.specifier}; found torch {found}",
                EXTRA,
            )


def _torch_findings(target: Target) -> Iterator[Finding]:
    import torch

    if torch.version.cuda is None:
        yield Finding(
            "wrong" if target.here else "needed",
            "device",
            f"cuda needs a CUDA build of torch; torch {torch.__version__} here is none",
            EXTRA,
        )
    elif target.here and (_pinned("torch") or "") not in ("", torch.__version__.partition("+")[0]):
        yield warning(
            "device",
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) is not the pinned {_pinned('torch')}",
            "make install",
        )


def _pinned(name: str) -> str | None:
    file = Path("constraints.txt")
    match = re.search(rf"(?m)^{name}==(\S+)$", file.read_text()) if file.exists() else None
    return match[1] if match else None


def vllm_configuration(section: Any, folder: str) -> list[Finding]:
    """Where vLLM is installed, its own EngineArgs with what TRL passes on.

    Its refusals as findings.
    """
    if importlib.util.find_spec("vllm") is None:
        return []
    try:
        engine = importlib.import_module("vllm").EngineArgs
    # its compiled parts fail in their own ways on a machine that they were not built for
    except Exception as error:
        return [
            unchecked(
                "grpo.use_vllm",
                f"vLLM cannot be imported: {one_line(error)}",
                "plan on the machine itself",
            )
        ]
    passed = section.passed_through
    try:
        engine(
            model=folder,
            gpu_memory_utilization=passed.get("vllm_gpu_memory_utilization", 0.3),
            tensor_parallel_size=passed.get("vllm_tensor_parallel_size", 1),
            max_model_len=passed.get("vllm_max_model_length"),
            enable_sleep_mode=passed.get("vllm_enable_sleep_mode", False),
            model_impl=passed.get("vllm_model_impl", "auto"),
            max_num_batched_tokens=4096,
            logprobs_mode="processed_logprobs",
        )
    except (ValueError, TypeError) as error:
        return [wrong("grpo.use_vllm", one_line(error), "correct the vllm_… keys")]
    return []
