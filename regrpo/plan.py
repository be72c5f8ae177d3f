"""Whether a whole profile can be trained on a device and how long it takes, before a second of it is spent.

Findings come from regrpo.preflight, memory from regrpo.memory, times from regrpo.roofline; nothing here needs a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo import launch, memory, preflight, roofline, shapes
from regrpo.brought import RAW_MODELS
from regrpo.errors import CannotCheck, Refused, RegrpoError
from regrpo.memory import Generation, Phase, Training
from regrpo.preflight import GIB, TRAINED, Finding, Target, unchecked, world, wrong


@dataclass(frozen=True)
class Stage:
    """A training stage in plain numbers, ready to be estimated."""

    name: str
    device: memory.Device
    train: Training
    generate: Generation | None
    limit: int

    def phases(self, shape: shapes.Shape, train: Training, generate: Generation | None) -> list[Phase]:
        if generate is None:
            return [memory.train_peak(shape, train, self.device, self.name)]
        return memory.grpo_phases(shape, train, generate, self.device, self.limit)


def work_of(
    stage: str, section: Any, config: Any, sections: Mapping[str, Any], target: Target, adapter: shapes.Adapter | None
) -> Stage:
    """What sft or grpo will do on one device, from TRL's configuration; sequences as long as the settings allow."""
    kind = target.device(section.device)
    device = memory.CUDA if kind == "cuda" else memory.CPU
    processes = world(section, target)
    settings = config.model_init_kwargs or {}
    half = str(settings.get("dtype", settings.get("torch_dtype", ""))) in ("bfloat16", "float16")
    prompt = sections["validate"].max_prompt_tokens if "validate" in sections else 512
    if stage == "grpo":
        completion = config.max_completion_length
    else:
        tokens = config.max_length or 2 * prompt
        prompt = min(prompt, tokens // 2)
        completion = tokens - prompt
    train = Training(
        batch=config.per_device_train_batch_size,
        prompt=prompt,
        completion=completion,
        accumulate=config.gradient_accumulation_steps,
        checkpointing=bool(config.activation_checkpointing),
        autocast=bool(config.bf16 or config.fp16),
        weight_bytes=2 if half else 4,
        quantised=_quantised(section.quantization),
        eager=settings.get("attn_implementation") == "eager",
        optimizer=str(getattr(config.optim, "value", config.optim)),
        adapter=adapter,
        reference=getattr(config, "beta", 0.0) != 0,
        processes=processes,
        sharded=_is_sharded(section, config),
        extra=_classifier_bytes(section),
    )
    generation = None
    if stage == "grpo":
        steps = section.passed_through.get("steps_per_generation") or section.gradient_accumulation_steps
        stated = section.passed_through.get("generation_batch_size")
        with_vllm = config.use_vllm and config.vllm_mode == "colocate"
        generation = Generation(
            sequences=stated // processes if stated else train.batch * steps,
            prompt=prompt,
            completion=completion,
            cache_bytes=2 if train.autocast or half or config.use_vllm else 4,
            vllm=config.vllm_gpu_memory_utilization if with_vllm else 0.0 if config.use_vllm else None,
            sleeps=bool(config.vllm_enable_sleep_mode),
        )
    return Stage(stage, device, train, generation, limit(kind, target))


def _quantised(settings: Any) -> float | None:
    """Bytes of a quantised weight, by bitsandbytes' settings; None without them."""
    if settings is None:
        return None
    bits = 8 if settings.load_in_8bit else 4.5 if settings.bnb_4bit_use_double_quant else 4
    return memory.QUANTISED_BYTES[bits]


def limit(kind: str, target: Target) -> int:
    """Bytes that a stage may take: the GPU's memory, or what this machine has free."""
    import psutil

    return target.memory if kind == "cuda" else int(psutil.virtual_memory().available)


def _is_sharded(section: Any, config: Any) -> bool:
    """FSDP or ZeRO-3 by the trainer's own keys, or by the accelerate configuration that `launch` names."""
    if config.fsdp_plugin_args or config.deepspeed:
        return True
    with contextlib.suppress(RegrpoError):  # a launch.config that is none: `regrpo check` says so
        spread = launch.asked(section.launch) if section.launch else "DDP"
        return spread.startswith("FSDP") or spread == "ZeRO-3"
    return False


def _classifier_folders(section: Any) -> dict[str, Path | None]:
    """Where each rewarding classifier's files lie; None for one that is not here yet."""
    from huggingface_hub import try_to_load_from_cache

    found: dict[str, Path | None] = {}
    for name, one in (getattr(section, "classifiers", None) or {}).items():
        folder = RAW_MODELS / one.path if getattr(one, "path", None) else None
        if folder is None and getattr(one, "repo", None):
            cached = try_to_load_from_cache(one.repo, "config.json", revision=one.revision)
            folder = Path(cached).parent if isinstance(cached, str) else None
        found[name] = folder if folder and folder.is_dir() else None
    return found


def _classifier_bytes(section: Any) -> int:
    folders = filter(None, _classifier_folders(section).values())
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))


def not_counted(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """What memory leaves out because it is not known here."""
    for name, folder in _classifier_folders(sections.get("grpo")).items():
        if folder is None:
            yield unchecked(
                f"grpo.classifiers.{name}",
                "its memory is unknown until its files are here",
                "put it under models/raw/, or run once",
            )


def estimate(stage: Stage, shape: shapes.Shape, roof: roofline.Roof | None, steps: int) -> list[dict[str, Any]]:
    """Each phase of a stage: terms, total, limit, seconds of an optimizer step, hours of the stage."""
    train, work = stage.train, stage.generate
    seconds: dict[str, float] = {}
    if roof:
        forwards = 0
        if work:
            forwards = int(work.vllm is not None) + int(train.reference)
        seconds[f"{stage.name}, train" if work else stage.name] = roofline.train_seconds(shape, train, roof, forwards)
    if roof and work:
        at_once = memory.sequences_in_cache(shape, work, stage.limit) if work.vllm else None
        weight_bytes = shape.stored_bytes if work.vllm is not None else train.weight_bytes
        whole = roofline.generate_seconds(
            shape, work, roof, weight_bytes, max(1, at_once) if at_once is not None else None
        )
        seconds["grpo, generate"] = whole * train.batch * train.accumulate / work.sequences
    return [
        {
            "phase": phase.name,
            "terms": phase.terms,
            "total": phase.total,
            "limit": stage.limit,
            "fits": phase.total <= stage.limit,
            "seconds_per_step": seconds.get(phase.name),
            "steps": steps if steps > 0 else None,
        }
        for phase in stage.phases(shape, train, work)
    ]


def evaluation(section: Any, shape: shapes.Shape, sections: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The evaluate phase: one model at a time; an automatic batch counts as 64."""
    kind = target.device(section.device)
    device = memory.CUDA if kind == "cuda" else memory.CPU
    prompt = sections["validate"].max_prompt_tokens if "validate" in sections else 512
    batch = 64 if section.batch_size == "auto" else section.batch_size
    share = section.model_args.get("gpu_memory_utilization", 0.9) if section.backend == "vllm" else None
    work = Generation(batch, prompt, section.max_gen_toks, 4 if kind == "cpu" else 2, share)
    room = limit(kind, target)
    phase = memory.evaluate_peak(shape, work, device, room)
    return {
        "phase": phase.name,
        "terms": phase.terms,
        "total": phase.total,
        "limit": room,
        "fits": phase.total <= room,
        "seconds_per_step": None,
        "steps": None,
    }


def advice(stage: Stage, shape: shapes.Shape) -> dict[str, Any]:
    """For a stage that does not fit: the largest term, and what would make it fit, found by trying."""

    def peak(train: Training, generate: Generation | None) -> int:
        return max(phase.total for phase in stage.phases(shape, train, generate))

    worst = max(stage.phases(shape, stage.train, stage.generate), key=lambda phase: phase.total)
    found = memory.changes(shape, stage.train, stage.generate, peak, stage.limit, stage.name)
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in found:  # of each kind of change the mildest
        kept.setdefault(tuple(one["keys"]), one)
    return {
        "phase": worst.name,
        "largest": max(worst.terms, key=lambda name: worst.terms[name]),
        "changes": list(kept.values()),
    }


def plan(profile: Path, sections: Mapping[str, Any], target: Target, found: list[Finding]) -> dict[str, Any]:
    """Everything about a profile whose sections are parsed (those that could be): plain data, ready to print.

    `found` are the findings so far. Raises nothing for what is wrong with the profile: it is told.
    """
    findings = list(found)
    configs: dict[str, Any] = {}
    for stage in TRAINED:
        if stage in sections and (stage == "grpo" or sections[stage].max_steps):
            findings += preflight.arithmetic(stage, sections[stage], target)
            config, told = preflight.build(stage, sections[stage], target.device(sections[stage].device))
            findings += [one for one in told if one.key not in {known.key for known in findings}]
            if config is not None:
                configs[stage] = config
    findings += preflight.hardware_findings(sections, configs, target)
    findings += preflight.versions(sections, configs, target)
    if getattr(configs.get("grpo"), "use_vllm", False):
        findings += preflight.vllm_configuration(sections["grpo"], "models/sft")
    findings += preflight.pins(sections)
    findings += preflight.epochs(
        sections, target, preflight.rows_prepared(sections["prepare"]) if "prepare" in sections else {}
    )
    config, shape = _base(sections, findings)
    findings += preflight.lengths(sections, shape)
    findings += not_counted(sections)
    phases, advised = _estimates(sections, configs, config, shape, target, findings)
    unique = list(dict.fromkeys(findings))
    on_gpu = any(target.device(one.device) == "cuda" for one in sections.values() if hasattr(one, "device"))
    verdict = "unknown" if not phases else "fits" if all(one["fits"] for one in phases) else "does not fit"
    if any(one.level == "wrong" for one in unique):
        verdict = "wrong"
    return {
        "profile": str(profile),
        "verdict": verdict,
        "target": {
            "gpu": target.gpu if on_gpu else None,
            "gpu_memory": target.memory if on_gpu else None,
            "gpus": max((world(sections[stage], target) for stage in configs), default=1),
            "here": target.here,
        },
        "base": dataclasses.asdict(shape) if shape else None,
        "findings": [dataclasses.asdict(one) for one in unique],
        "phases": phases,
        "advice": advised,
        "assumptions": list(roofline.ASSUMPTIONS) if phases else [],
    }


def _base(sections: Mapping[str, Any], findings: list[Finding]) -> tuple[Any, shapes.Shape | None]:
    """The base's configuration and shape where they can be known; why not is added to the findings."""
    if "base_model" not in sections:
        return None, None
    try:
        config = shapes.find_config(sections["base_model"])
        if config is not None:
            return config, shapes.read(config)
    except Refused as error:
        findings.append(wrong(error.where, f"expected {error.expected}; found {error.found}", error.remedy))
    except (CannotCheck, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:250]
        findings.append(unchecked("base_model.source", why, "dvc repro base_model"))
    else:
        findings.append(
            unchecked(
                "base_model.source",
                "memory, times, window and LoRA's targets: unknown until base_model has run",
                "dvc repro base_model, or base_model.source.config in the profile",
            )
        )
    return None, None


def _estimates(
    sections: Mapping[str, Any],
    configs: Mapping[str, Any],
    config: Any,
    shape: shapes.Shape | None,
    target: Target,
    findings: list[Finding],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    phases: list[dict[str, Any]] = []
    advised: list[dict[str, Any]] = []
    if shape is None:
        return phases, advised
    adapters: dict[str | None, shapes.Adapter] = {}
    for name, built in configs.items():
        section = sections[name]
        as_text = section.lora.model_dump_json() if section.lora else None
        try:
            if as_text and as_text not in adapters:  # PEFT takes a second for a model of many layers
                adapters[as_text] = shapes.adapter(config, section.lora, f"{name}.lora")
        except Refused as error:
            findings.append(wrong(error.where, error.found, error.remedy))
            continue
        stage = work_of(name, section, built, sections, target, adapters.get(as_text))
        roof = _roof(section, stage, target, findings)
        phases += (told := estimate(stage, shape, roof, section.max_steps))
        if not all(one["fits"] for one in told):
            advised.append({"stage": name} | advice(stage, shape))
        if stage.generate and stage.generate.vllm:
            findings += _vllm_room(shape, stage)
    if "evaluate" in sections:
        phases.append(evaluation(sections["evaluate"], shape, sections, target))
    return phases, advised


def _roof(section: Any, stage: Stage, target: Target, findings: list[Finding]) -> roofline.Roof | None:
    if stage.device.kind == "cpu":
        return roofline.of_this_cpu(min(section.threads, os.cpu_count() or 1))
    roof = roofline.of_card(target.gpu, stage.train.autocast or stage.train.weight_bytes == 2)
    if roof is None:
        findings.append(
            unchecked(
                "step time",
                f"no peak arithmetic and bandwidth are known for {target.gpu}",
                f"--gpu with one of {', '.join(roofline.CARDS)}",
            )
        )
    return roof


def _vllm_room(shape: shapes.Shape, stage: Stage) -> Iterator[Finding]:
    work = stage.generate
    assert work is not None
    if work.vllm and memory.sequences_in_cache(shape, work, stage.limit) < 1:
        one = memory.cache_per_sequence(shape, work.prompt + work.completion, 2)
        needed = (shape.parameters * shape.stored_bytes + 10**9 + one) / stage.limit
        yield wrong(
            "grpo.vllm_gpu_memory_utilization",
            f"{work.vllm} of {stage.limit / GIB:.0f} GiB holds the weights but no cache for one sequence",
            f"{math.ceil(needed * 20) / 20:.2f} or more",
        )
