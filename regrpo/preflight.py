"""What is wrong with a profile, told before anything runs: each finding names a key, why, and a value that would do.

The configurations are TRL's own, made from the stages' own settings (Params.trainer_settings); nothing needs a GPU.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from regrpo import files, roofline, shapes
from regrpo.brought import is_commit
from regrpo.errors import Refused
from regrpo.params import PassThrough, read_yaml

GIB = 2**30
TRAINED = ("sft", "grpo")
EXTRA = "pip install -c constraints.txt -e '.[cuda]'"


@dataclass(frozen=True)
class Finding:
    """`level`: wrong (it will fail), warning, needed (on the target machine), unchecked (could not be known here)."""

    level: Literal["wrong", "warning", "needed", "unchecked"]
    key: str
    why: str
    would_do: str


wrong = partial(Finding, "wrong")
warning = partial(Finding, "warning")
needed = partial(Finding, "needed")
unchecked = partial(Finding, "unchecked")


@dataclass(frozen=True)
class Target:
    """Where it is to run: the card's name, bytes of memory of one, how many (None: as many as the profile launches)."""

    gpu: str
    memory: int
    gpus: int | None = None
    stated: bool = False
    """Whether the command line names a GPU: `device: auto` then means it."""
    here: bool = False
    """Whether this machine has it, so that what is missing is missing now."""

    def device(self, wanted: str) -> Literal["cpu", "cuda"]:
        return "cuda" if wanted == "cuda" or (wanted == "auto" and (self.stated or self.here)) else "cpu"


def size(text: str) -> int:
    """Bytes of "80GiB", "24 GB" or "80" (GiB). Raises Refused otherwise."""
    match = re.fullmatch(r"\s*([\d.]+)\s*(GiB|GB|G|MiB|MB)?\s*", text, re.IGNORECASE)
    units = {"gib": GIB, "g": GIB, "gb": 10**9, "mib": 2**20, "mb": 10**6}
    try:
        value = float(match[1]) * units[(match[2] or "GiB").lower()] if match else 0
    except ValueError:
        value = 0
    if value <= 0:
        raise Refused("--gpu-memory", expected="a size as 80GiB", found=text, remedy="Write a number and GiB or GB.")
    return int(value)


# --- sections that do not parse -------------------------------------------------------------------------------------


def explain(stage: str, model: type[BaseModel], values: Any, error: ValidationError) -> list[Finding]:
    """Each wrong key of a section, why, and a value that would do: the limit, the nearest name, or a default."""
    found: dict[str, Finding] = {}
    for one in error.errors():
        key = ".".join(str(part) for part in one["loc"])
        text = one["msg"].removeprefix("Value error, ")
        if key or not issubclass(model, PassThrough):
            found[key] = wrong(f"{stage}.{key}", _reason(one, text), _instead(stage, model, key, one))
            continue
        for part in re.split(r"; (?=`)", text):  # validators of whole sections name their keys in backticks
            name = (re.match(r"`([\w.]+)`", part) or ["", ""])[1]
            found[name] = wrong(f"{stage}.{name}", _plain(part), _whole(stage, model, name, part, values))
    if issubclass(model, PassThrough) and isinstance(values, dict):  # not looked at where a field of ours is wrong
        for key, value in values.items():
            problem = model._problem(key, value) if key not in model.model_fields else None
            if problem and key not in found:
                found[key] = wrong(f"{stage}.{key}", _plain(problem), _whole(stage, model, key, problem, values))
    return list(found.values())


WORDS = {"bool": "true or false", "int": "a whole number", "number": "a number", "float": "a number", "string": "text"}


def _in_words(kind: str) -> str | None:
    """What a type error of pydantic's asks for: "input should be a valid boolean", or its code "float_type"."""
    return next((words for name, words in WORDS.items() if re.search(rf"(valid |\b){name}", kind)), None)


def _plain(text: str) -> str:
    return re.sub(r"^`[\w.]+`:? ?", "", text).removesuffix("?)").partition(" (did you mean")[0]


def _reason(one: Any, text: str) -> str:
    if one["type"] == "missing":
        return "is missing"
    given = one.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) else f"; found {given!r}"
    return f"{text[0].lower()}{text[1:]}{shown}"


def _instead(stage: str, model: type[BaseModel], key: str, one: Any) -> str:
    context = one.get("ctx") or {}
    limits = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    limit = next((f"{words} {context[name]}" for name, words in limits.items() if name in context), None)
    if one["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key.rpartition(".")[2], list(model.model_fields), n=1)
        return near[0] if near else "leave it out"
    if "expected" in context:
        return str(context["expected"])
    if "expected_tags" in context:
        return str(context["expected_tags"])
    limit = limit or _in_words(one["type"]) or _in_words(one["msg"])
    return ", ".join(filter(None, [limit, _shipped(stage, key, one.get("input"))])) or "leave it out"


def _whole(stage: str, model: type[BaseModel], key: str, text: str, values: Any) -> str:
    """A value for a key that a validator of the whole section refuses."""
    if near := re.search(r"did you mean `(\w+)`", text):
        return near[1]
    if completions := re.search(r"generated at once, (\d+)", text):
        return groups(int(completions[1]), int(re.findall(r"\d+", text)[0]))
    if multiple := re.search(r"\((\d+)\) must be a multiple of (\d+)", text):
        return str(-(-int(multiple[1]) // int(multiple[2])) * int(multiple[2]))
    if "set by regrpo" in text or "refused" in text or "neither ours" in text:
        return "leave it out"
    if (shipped := _shipped(stage, key, values.get(key) if isinstance(values, dict) else None)) is not None:
        return shipped
    default = _library_default(model, key)
    if default is None:
        return _in_words(text) or "leave it out"
    return f"{default} ({getattr(model, 'library', '').rpartition(':')[2]}'s own)"


def _shipped(stage: str, key: str, given: Any) -> str | None:
    """The default profile's value for a key, unless that is the one given."""
    value = read_yaml(Path("params.yaml")).get(stage, {}) if Path("params.yaml").exists() else {}
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value in (None, given) or isinstance(value, dict | list) else f"{value}, as in params.yaml"


def _library_default(model: type[BaseModel], key: str) -> Any:
    library = getattr(model, "library", None)
    if library is None:
        return None
    for field in dataclasses.fields(_config_class(library)):
        if field.name == key and field.default is not dataclasses.MISSING:
            return field.default
    return None


def _config_class(library: str) -> Any:
    module, _, name = library.partition(":")
    return getattr(importlib.import_module(module), name)


def groups(at_once: int, near: int) -> str:
    """The group sizes next to what was asked for that divide the completions generated at once."""
    divisors = [n for n in range(2, at_once + 1) if at_once % n == 0]
    next_to = [
        max((n for n in divisors if n < near), default=None),
        min((n for n in divisors if n > near), default=None),
    ]
    return " or ".join(str(n) for n in next_to if n) or f"none divides {at_once}: raise per_device_train_batch_size"


# --- the configurations that the stages will use ----------------------------------------------------------------


def build(stage: str, section: Any, device: str) -> tuple[Any | None, list[Finding]]:
    """TRL's own configuration, from the stage's own settings, made as on a CPU so that no GPU is asked for.

    bf16 on a GPU is judged by `hardware_findings`; tf32 asks for the GPU, a backend for the other processes.
    """
    settings = section.trainer_settings(device) | {"use_cpu": True}
    settings = {name: value for name, value in settings.items() if name not in ("tf32", "ddp_backend")}
    kind = _config_class(section.library)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            config = kind(output_dir=f"models/{stage}", **settings)
    except (ValueError, TypeError, ImportError) as error:
        text = " ".join(str(error).split())[:300]
        names = [field.name for field in dataclasses.fields(kind)]
        given = [name for name in names if re.search(rf"\b{name}\b", text) and name in section.passed_through]
        named = given or [name for name in names if re.search(rf"\b{name}\b", text)]
        key = named[0] if named else kind.__name__
        default = _library_default(type(section), key)
        would = "leave it out" + (f" ({kind.__name__}'s default is {default})" if default is not None else "")
        return None, [wrong(f"{stage}.{key}", text, would)]
    return config, [
        warning(stage, " ".join(str(one.message).split())[:200], "see the library's own words")
        for one in told
        if issubclass(one.category, FutureWarning) and "deprecated" in str(one.message)
    ]


def vllm_configuration(section: Any, folder: str) -> list[Finding]:
    """Where vLLM is installed, its own EngineArgs with what TRL passes on; its refusals as findings."""
    if importlib.util.find_spec("vllm") is None:
        return []
    engine = importlib.import_module("vllm").EngineArgs

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
        return [wrong("grpo.use_vllm", " ".join(str(error).split())[:200], "correct the vllm_… keys")]
    return []


# --- arithmetic ---------------------------------------------------------------------------------------------------


def world(section: Any, target: Target) -> int:
    """Processes that train together: what the profile launches, or what --gpus says."""
    return target.gpus or int(getattr(section, "processes", 1))


def arithmetic(stage: str, section: Any, target: Target) -> Iterator[Finding]:
    """Batches, groups, the generation cycle, save points, schedules."""
    processes = world(section, target)
    launched = int(getattr(section, "processes", 1))
    if processes != launched and target.device(section.device) == "cuda":
        yield Finding(
            "wrong" if launched > 1 else "warning",
            f"{stage}.launch",
            f"starts {launched} process{'es' * (launched > 1)}, and --gpus says {processes}",
            f"launch: {{processes: {processes}, backend: nccl}}, or --gpus {launched}",
        )
    if stage == "grpo":
        yield from _generation_arithmetic(section, processes)
    steps = section.save_steps
    boundary = math.lcm(section.cycle, section.logging_steps)
    if steps % boundary:
        kept = -(-steps // boundary) * boundary
        yield warning(
            f"{stage}.save_steps",
            f"{steps} is no multiple of {boundary} (generation cycle {section.cycle}, logging "
            f"{section.logging_steps}): checkpoints fall on every {kept} steps",
            f"{kept}, or {max(boundary, steps // boundary * boundary)}",
        )
    warmup = section.passed_through.get("warmup_steps", 0)
    if 0 < section.max_steps <= warmup:
        yield wrong(
            f"{stage}.warmup_steps",
            f"{warmup} reach the last of {section.max_steps} steps: the learning rate never comes to "
            "what `learning_rate` says",
            f"at most {section.max_steps - 1}; {max(1, section.max_steps // 10)} is usual",
        )
    if section.threads > (os.cpu_count() or 1) and target.device(section.device) == "cpu":
        yield warning(f"{stage}.threads", f"{section.threads} threads on {os.cpu_count()} cores", f"{os.cpu_count()}")


def _generation_arithmetic(section: Any, processes: int) -> Iterator[Finding]:
    passed, batch = section.passed_through, section.per_device_train_batch_size
    stated = passed.get("generation_batch_size")
    if stated and stated % (batch * processes):
        up = -(-stated // (batch * processes)) * batch * processes
        yield wrong(
            "grpo.generation_batch_size",
            f"{stated} is no multiple of per_device_train_batch_size × processes ({batch} × {processes})",
            f"{up}",
        )
        return
    steps = passed.get("steps_per_generation") or section.gradient_accumulation_steps
    at_once = stated or batch * steps * processes
    if at_once % section.num_generations:
        yield wrong(
            "grpo.num_generations",
            f"{section.num_generations} does not divide the {at_once} completions generated at once "
            f"({batch} × {steps} × {processes} process{'es' * (processes > 1)})",
            groups(at_once, section.num_generations),
        )
    uses = (stated // (batch * processes) if stated else steps) * passed.get("num_iterations", 1)
    left = section.max_steps * section.gradient_accumulation_steps % uses
    if left:
        whole = -(-section.max_steps // section.cycle) * section.cycle
        yield warning(
            "grpo.max_steps",
            f"{section.max_steps} steps end inside a generation cycle of {section.cycle}: "
            "the last completions are not used up",
            f"{whole}",
        )
    shown = passed.get("per_device_eval_batch_size")
    compared = passed.get("num_generations_eval") or section.num_generations
    if shown and shown * processes % compared:
        unit = compared // math.gcd(compared, processes)
        yield wrong(
            "grpo.per_device_eval_batch_size",
            f"{shown} × {processes} must be divisible by the {compared} generations of an evaluation",
            f"{-(-shown // unit) * unit}, or leave it out",
        )


def lengths(sections: Mapping[str, Any], shape: shapes.Shape | None) -> Iterator[Finding]:
    """Prompt and completion against the base's window, vLLM's, and each other."""
    if "validate" not in sections:
        return
    prompt = sections["validate"].max_prompt_tokens
    window = shape.window if shape else None
    if window and prompt >= window:
        yield wrong(
            "validate.max_prompt_tokens",
            f"{prompt} tokens leave nothing of the base's window of {window}",
            f"at most {window // 2}",
        )
        return
    asked = {}
    if "grpo" in sections:
        asked["grpo.max_completion_length"] = sections["grpo"].max_completion_length
    if "evaluate" in sections:
        asked["evaluate.max_gen_toks"] = sections["evaluate"].max_gen_toks
    for key, completion in asked.items():
        if window and prompt + completion > window:
            yield wrong(
                key,
                f"prompt and completion ({prompt} + {completion} = {prompt + completion} tokens) exceed "
                f"the base's window of {window}",
                f"at most {window - prompt}",
            )
    if "grpo" in sections:
        passed = sections["grpo"].passed_through
        limit, needed = passed.get("vllm_max_model_length"), prompt + asked["grpo.max_completion_length"]
        if limit and limit < needed:
            yield wrong(
                "grpo.vllm_max_model_length",
                f"{limit} tokens do not hold prompt and completion ({prompt} + {needed - prompt} = {needed})",
                f"{needed}",
            )
        elif limit and window and limit > window:
            yield wrong(
                "grpo.vllm_max_model_length",
                f"{limit} exceeds the base's window of {window}: vLLM refuses it",
                f"at most {window}",
            )
    if "sft" in sections and sections["sft"].max_steps:
        longest = sections["sft"].passed_through.get("max_length", 1024)
        if window and longest and longest > window:
            yield wrong("sft.max_length", f"{longest} tokens exceed the base's window of {window}", f"at most {window}")
        elif longest and longest < prompt:
            yield warning(
                "sft.max_length",
                f"{longest} tokens are fewer than a prompt may have ({prompt}): such rows "
                "keep no completion to learn from",
                f"{prompt} and the length of a solution",
            )


def rows_prepared(section: Any) -> dict[str, int]:
    """Rows per split, where data/prepared/ was made with these parameters; empty otherwise."""
    counts, record = Path("reports/prepare/metrics.json"), Path("reports/prepare/run.json")
    if not counts.exists() or not shapes.was_made_with(section, record, "prepare"):
        return {}
    return {split: one["rows"] for split, one in files.read_json(counts).items()}


def epochs(sections: Mapping[str, Any], target: Target, rows: Mapping[str, int]) -> Iterator[Finding]:
    """Steps against the rows that there are."""
    for stage, split in (("sft", "sft"), ("grpo", "train")):
        section = sections.get(stage)
        if section is None or section.max_steps <= 0:
            continue
        if split not in rows:
            yield unchecked(f"{stage}.max_steps", "epochs: rows unknown until prepare has run", "dvc repro prepare")
            continue
        each = section.per_device_train_batch_size * section.gradient_accumulation_steps * world(section, target)
        per_row = section.num_generations if stage == "grpo" else 1
        if stage == "grpo" and rows[split] * per_row < each:
            fits = rows[split] * per_row // section.gradient_accumulation_steps
            yield wrong(
                "grpo.per_device_train_batch_size",
                f"a step needs {each // per_row} different prompts, and train has {rows[split]}",
                f"at most {fits // per_row * per_row}",
            )
        elif (seen := section.max_steps * each / per_row / max(1, rows[split])) > 50 and not getattr(
            section, "curriculum", None
        ):
            yield warning(
                f"{stage}.max_steps",
                f"{section.max_steps} steps see every row {seen:.0f} times",
                f"{math.ceil(10 * rows[split] * per_row / each)} for 10 epochs",
            )


# --- hardware and versions ----------------------------------------------------------------------------------------


def hardware_findings(sections: Mapping[str, Any], configs: Mapping[str, Any], target: Target) -> Iterator[Finding]:
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
            why = "TRL turns bf16 on by itself" if sections[stage].passed_through.get("bf16") is None else "bf16"
            yield warning(f"{stage}.bf16", f"{why} and it is slower than float32 on a CPU", "false")
        if config.fp16 and device == "cpu":
            yield wrong(f"{stage}.fp16", "half precision with loss scaling needs a GPU", "false")
        if getattr(config, "use_vllm", False) and device == "cpu":
            yield wrong("grpo.use_vllm", "vLLM is asked for, and grpo runs on a CPU", "false, or device: cuda")
    evaluate = sections.get("evaluate")
    if evaluate and evaluate.backend == "vllm" and target.device(evaluate.device) == "cpu":
        yield wrong("evaluate.backend", "vllm is asked for, and evaluate runs on a CPU", "hf, or device: cuda")
    grpo = configs.get("grpo")
    if grpo is not None and grpo.use_vllm:
        yield from _vllm_findings(grpo, world(sections["grpo"], target))


def _vllm_findings(grpo: Any, processes: int) -> Iterator[Finding]:
    if grpo.vllm_mode not in ("server", "colocate"):
        yield wrong("grpo.vllm_mode", f"{grpo.vllm_mode!r} is no mode of TRL's", "colocate or server")
    if not 0 < grpo.vllm_gpu_memory_utilization < 1:
        yield wrong(
            "grpo.vllm_gpu_memory_utilization",
            f"{grpo.vllm_gpu_memory_utilization} is no share of the GPU's memory that leaves room to train",
            "0.3 (TRL's own)",
        )
    if grpo.vllm_mode == "colocate" and processes % grpo.vllm_tensor_parallel_size:
        yield wrong(
            "grpo.vllm_tensor_parallel_size",
            f"{grpo.vllm_tensor_parallel_size} does not divide {processes} process{'es' * (processes > 1)}",
            "1",
        )


def _has_bf16(target: Target) -> bool:
    if known := roofline.card(target.gpu):
        return roofline.CARDS[known][2]
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


def needs(sections: Mapping[str, Any], configs: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Packages beyond the usual that the profile asks for: distribution → (key, what for, how to do without)."""
    wanted: dict[str, tuple[str, str, str]] = {}
    for stage, config in configs.items():
        optimizer = str(getattr(config.optim, "value", config.optim))
        if any(part in optimizer for part in ("8bit", "4bit", "paged", "bnb")):
            wanted.setdefault("bitsandbytes", (f"{stage}.optim", f"the optimizer {optimizer}", "adamw_torch_fused"))
        if getattr(sections[stage], "quantization", None):
            wanted.setdefault("bitsandbytes", (f"{stage}.quantization", "quantised weights", "null"))
        if config.use_liger_kernel:
            wanted["liger-kernel"] = (
                f"{stage}.use_liger_kernel",
                "its kernels",
                "false (TRL's loss is chunked anyway)",
            )
        if config.deepspeed:
            wanted["deepspeed"] = (f"{stage}.deepspeed", "ZeRO", "leave it out")
        settings = config.model_init_kwargs or {}
        if "flash_attention_2" in str(settings.get("attn_implementation")):
            wanted["flash-attn"] = (f"{stage}.model_init_kwargs.attn_implementation", "flash_attention_2", "sdpa")
        if settings.get("use_kernels"):
            wanted["kernels"] = (f"{stage}.model_init_kwargs.use_kernels", "the hub's kernels", "false")
    if getattr(configs.get("grpo"), "use_vllm", False):
        wanted["vllm"] = ("grpo.use_vllm", "generation", "use_vllm: false")
    elif getattr(sections.get("evaluate"), "backend", "") == "vllm":
        wanted["vllm"] = ("evaluate.backend", "evaluation", "hf")
    return wanted


def versions(sections: Mapping[str, Any], configs: Mapping[str, Any], target: Target) -> Iterator[Finding]:
    """Installed versions against each other, and what would be needed where the target is another machine."""
    from packaging.version import Version

    low, high = vllm_range()
    for name, (key, purpose, without) in needs(sections, configs).items():
        found = installed(name)
        if found is None:
            line = EXTRA if name in ("vllm", "bitsandbytes", "liger-kernel", "deepspeed") else f"pip install {name}"
            on_gpu = target.device(sections[key.partition(".")[0]].device) == "cuda"
            elsewhere = on_gpu and not target.here
            yield Finding(
                "needed" if elsewhere else "wrong",
                key,
                f"{purpose} needs {name}, which is not installed",
                line if elsewhere else f"{without}, or {line}",
            )
        if name == "vllm":
            version = found or _pinned("vllm")
            if version and not Version(low) <= Version(Version(version).base_version) <= Version(high):
                what = "installed" if found else "pinned in constraints.txt"
                yield wrong(
                    key,
                    f"vLLM {version} is {what}, and TRL {installed('trl')} supports {low} to {high}",
                    f"pip install 'vllm>={low},<={high}'",
                )
    if any(target.device(one.device) == "cuda" for one in sections.values() if hasattr(one, "device")):
        yield from _torch_findings(target)


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


def pins(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Revisions that are no commit: placeholders, which a run refuses."""
    for stage, section in sections.items():
        for key, value in _walk(section.model_dump(), stage):
            if key.endswith(".revision") and value is not None and not is_commit(str(value)):
                yield warning(
                    key,
                    f"{value!r} is a placeholder, no commit: the stage will refuse it",
                    "the 40 hex digits of a commit",
                )


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _walk(one, f"{key}.{name}")
    else:
        yield key, value
