"""Whether a whole profile can be trained on a device and how long it takes, before a second of it is spent.

Findings come from consistency, memory from memory, times from step_time; nothing here needs a GPU.
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

from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.hub import RAW_MODELS, require_safetensors
from regrpo.inputs import base_models
from regrpo.plan import consistency, library_settings, machine, memory, model_shape, step_time
from regrpo.plan.findings import (
    GIB,
    TRAINED,
    Finding,
    Target,
    of_error,
    one_line,
    unchecked,
    world,
    wrong,
)
from regrpo.plan.memory import Generation, Phase, Training


@dataclass(frozen=True)
class Stage:
    """A training stage in plain numbers, ready to be estimated."""

    name: str
    device: memory.Device
    train: Training
    generate: Generation | None
    limit: int

    def phases(
        self, shape: model_shape.Shape, train: Training, generate: Generation | None
    ) -> list[Phase]:
        if generate is None:
            return [memory.train_peak(shape, train, self.device, self.name)]
        return memory.grpo_phases(shape, train, generate, self.device, self.limit)


def work_of(
    stage: str,
    section: Any,
    config: Any,
    sections: Mapping[str, Any],
    target: Target,
    adapter: model_shape.Adapter | None,
) -> Stage:
    """What sft or grpo will do on one device, from TRL's configuration.

    Sequences as long as the settings allow.
    """
    kind = target.device(section.device)
    device = memory.CUDA if kind == "cuda" else memory.CPU
    processes = world(section, target)
    settings = config.model_init_kwargs or {}
    half = str(settings.get("dtype", settings.get("torch_dtype", ""))) in ("bfloat16", "float16")
    longest = prompt = getattr(section, "max_prompt_tokens", None) or _longest_prompt(sections)
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
        extra=_classifier_bytes(section, kind),
        shortest=32 if stage == "grpo" else longest + 1,
    )
    generation = None
    if stage == "grpo":
        passed = section.passed_through
        steps = passed.get("steps_per_generation") or section.gradient_accumulation_steps
        stated = passed.get("generation_batch_size")
        with_vllm = config.use_vllm and config.vllm_mode == "colocate"
        generation = Generation(
            sequences=stated // processes if stated else train.batch * steps,
            prompt=prompt,
            completion=completion,
            cache_bytes=2 if train.autocast or half or config.use_vllm else 4,
            vllm=config.vllm_gpu_memory_utilization
            if with_vllm
            else 0.0
            if config.use_vllm
            else None,
            sleeps=bool(config.vllm_enable_sleep_mode),
            group=section.num_generations // math.gcd(section.num_generations, processes),
            stated=next(
                (
                    key
                    for key in ("generation_batch_size", "steps_per_generation")
                    if passed.get(key)
                ),
                None,
            ),
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


def _longest_prompt(sections: Mapping[str, Any]) -> int:
    return sections["validate"].max_prompt_tokens if "validate" in sections else 512


def _is_sharded(section: Any, config: Any) -> bool:
    """FSDP or ZeRO-3 by the trainer's own keys, or by the accelerate configuration that `launch` names."""
    if config.fsdp_plugin_args or section.passed_through.get("deepspeed"):
        return True
    how = machine.spread(section.launch)[0]
    return how.startswith("FSDP") or how == "ZeRO-3"


def _classifier_folder(one: Any) -> Path | None:
    """Where a classifier's files lie; None while they are not here."""
    from huggingface_hub import try_to_load_from_cache

    if one.path:
        return RAW_MODELS / str(one.path)
    cached = try_to_load_from_cache(one.repo, "config.json", revision=one.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _classifier_bytes(section: Any, kind: str) -> int:
    """What a section's classifiers weigh on the device of the stage.

    Float32, however they were saved.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for one in (getattr(section, "classifiers", None) or {}).values():
        folder = _classifier_folder(one) if one.device in ("auto", kind, f"{kind}:0") else None
        for file in folder.glob("*.safetensors") if folder else ():
            with contextlib.suppress(SafetensorError), safe_open(file, framework="pt") as tensors:
                count += sum(
                    math.prod(tensors.get_slice(name).get_shape())
                    for name in tensors.keys()  # noqa: SIM118
                )
    return 4 * count


def not_counted(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """What memory leaves out because it is not known here."""
    for stage in ("grpo", "evaluate"):
        for name, one in (sections[stage].classifiers if stage in sections else {}).items():
            if not list((_classifier_folder(one) or Path("nowhere")).glob("*.safetensors")):
                yield unchecked(
                    f"{stage}.classifiers.{name}",
                    "its memory (4 bytes a weight) is not counted until its files are here",
                    f"hf download {one.repo} --revision {one.revision}",
                )


def estimate(
    stage: Stage, shape: model_shape.Shape, roof: step_time.Roof | None, steps: int
) -> list[dict[str, Any]]:
    """Each phase of a stage.

    Terms, total, limit, seconds of an optimizer step, hours of the stage.
    """
    train, work = stage.train, stage.generate
    seconds: dict[str, float] = {}
    if roof:
        forwards = 0
        if work:
            forwards = int(work.vllm is not None) + int(train.reference)
        seconds[f"{stage.name}, train" if work else stage.name] = step_time.train_seconds(
            shape, train, roof, forwards
        )
    if roof and work:
        at_once = memory.sequences_in_cache(shape, work, stage.limit) if work.vllm else None
        weight_bytes = shape.stored_bytes if work.vllm is not None else train.weight_bytes
        whole = step_time.generate_seconds(
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


def evaluation(
    section: Any, shape: model_shape.Shape, sections: Mapping[str, Any], target: Target
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Finding]]:
    """The evaluate phase (one model at a time.

    An automatic batch counts as 64), what would make it fit, findings.
    """
    kind = target.device(section.device)
    device = memory.CUDA if kind == "cuda" else memory.CPU
    prompt = _longest_prompt(sections)
    batch = 64 if section.batch_size == "auto" else section.batch_size
    key, room = "evaluate.model_args.gpu_memory_utilization", limit(kind, target)
    share = (
        section.model_args.get("gpu_memory_utilization", 0.9) if section.backend == "vllm" else None
    )
    work = Generation(batch, prompt, section.max_gen_toks, 4 if kind == "cpu" else 2, share)
    judges = _classifier_bytes(section, kind)
    phase = memory.evaluate_peak(shape, work, device, room, judges)
    told = {
        "phase": phase.name,
        "terms": phase.terms,
        "total": phase.total,
        "limit": room,
        "fits": phase.total <= room,
        "seconds_per_step": None,
        "steps": None,
    }
    if told["fits"]:
        return told, [], list(_vllm_room(key, shape, work, room))
    largest = max(phase.terms, key=lambda name: phase.terms[name])
    changes = memory.evaluate_changes(shape, work, device, room, judges)
    return (
        told,
        [{"stage": "evaluate", "phase": phase.name, "largest": largest, "changes": changes}],
        [],
    )


def advice(stage: Stage, shape: model_shape.Shape) -> dict[str, Any]:
    """For a stage that does not fit.

    The largest term, and what would make it fit, found by trying.
    """

    def peaks(train: Training, generate: Generation | None) -> list[int]:
        if (
            generate
            and generate.vllm
            and not memory.sequences_in_cache(shape, generate, stage.limit)
        ):
            return [10**18]  # vLLM itself would not start
        return sorted((phase.total for phase in stage.phases(shape, train, generate)), reverse=True)

    worst = max(stage.phases(shape, stage.train, stage.generate), key=lambda phase: phase.total)
    found = memory.changes(shape, stage.train, stage.generate, peaks, stage.limit, stage.name)
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in found:  # of each kind of change the mildest
        kept.setdefault(tuple(one["keys"]), one)
    return {
        "phase": worst.name,
        "largest": max(worst.terms, key=lambda name: worst.terms[name]),
        "changes": list(kept.values()),
    }


def plan(
    profile: Path, sections: Mapping[str, Any], target: Target, found: list[Finding]
) -> dict[str, Any]:
    """Everything about a profile whose sections are parsed (those that could be).

    Plain data, ready to print.

    `found` are the findings so far. Raises nothing for what is wrong with the profile: it is told.
    """
    findings = list(found)
    configs: dict[str, Any] = {}
    config, shape = _base(sections, findings)
    for stage in TRAINED:
        if stage in sections and (stage == "grpo" or sections[stage].max_steps):
            section = sections[stage]
            findings += machine.launched(stage, section, target)
            findings += library_settings.names(stage, section, config)
            if unusable := list(library_settings.numbers(stage, section)):
                findings += unusable
                continue
            findings += consistency.arithmetic(stage, section, target)
            built, told = library_settings.build(stage, section, target.device(section.device))
            findings += [one for one in told if one.key not in {known.key for known in findings}]
            if built is not None:
                configs[stage] = built
    findings += machine.hardware_findings(sections, configs, target)
    findings += machine.versions(sections, configs, target)
    if getattr(configs.get("grpo"), "use_vllm", False):
        findings += machine.vllm_configuration(sections["grpo"], "models/sft")
        findings += machine.server(sections, configs["grpo"], target)
    if "prepare" in sections:
        findings += consistency.data(sections["prepare"])
    if "evaluate" in sections:
        findings += library_settings.evaluation(sections["evaluate"], config)
    findings += consistency.pins(sections)
    findings += consistency.epochs(
        sections,
        target,
        consistency.rows_prepared(sections["prepare"]) if "prepare" in sections else {},
    )
    findings += consistency.lengths(sections, shape)
    findings += (uncounted := list(not_counted(sections)))
    phases, advised = _estimates(sections, configs, config, shape, target, findings)
    unique = list(dict.fromkeys(findings))
    on_gpu = any(
        target.device(one.device) == "cuda" for one in sections.values() if hasattr(one, "device")
    )
    verdict = (
        "unknown"
        if not phases
        else "fits"
        if all(one["fits"] for one in phases)
        else "does not fit"
    )
    if verdict == "fits" and uncounted:
        verdict = "unknown"
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
        "assumptions": list(step_time.ASSUMPTIONS) if phases else [],
    }


def _base(
    sections: Mapping[str, Any], findings: list[Finding]
) -> tuple[Any, model_shape.Shape | None]:
    """The base's configuration and shape where they can be known.

    Why not is added to the findings.
    """
    if "base_model" not in sections or any(
        one.key.startswith("base_model.source") for one in findings
    ):
        return None, None
    section = sections["base_model"]
    try:
        config = model_shape.find_config(section)
    except RegrpoError as error:
        findings.append(of_error(error, Path()))
        return None, None
    except Exception as error:  # transformers reads files that may hold anything
        findings.append(
            wrong(
                "base_model.source", one_line(error, 250), "a folder that `save_pretrained` wrote"
            )
        )
        return None, None
    if config is None:
        findings.append(
            unchecked(
                "base_model.source",
                "memory, times, window and LoRA's targets: unknown until base_model has run",
                "dvc repro base_model, or base_model.source.config in the profile",
            )
        )
        return None, None
    if section.source.kind == "local":
        findings += _folder(RAW_MODELS / section.source.path)
    try:
        if config.architectures:
            base_models.require_causal(config)
        return config, model_shape.read(config)
    except CannotCheck as error:
        findings.append(unchecked("base_model.source", error.found, error.remedy.removesuffix(".")))
    except Refused as error:
        findings.append(of_error(error, Path()))
    return config, None


def _folder(folder: Path) -> Iterator[Finding]:
    """What base_model will miss in a folder besides config.json."""
    try:
        require_safetensors(folder)
    except Refused as error:
        yield wrong(
            "base_model.source.path",
            f"{error.found} in {folder}",
            f"{error.expected}, by `save_pretrained`",
        )
    if not list(folder.glob("tokenizer*")):
        yield wrong(
            "base_model.source.path",
            f"no tokenizer in {folder}",
            "the tokenizer's files, by `save_pretrained`",
        )


def _estimates(
    sections: Mapping[str, Any],
    configs: Mapping[str, Any],
    config: Any,
    shape: model_shape.Shape | None,
    target: Target,
    findings: list[Finding],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    phases: list[dict[str, Any]] = []
    advised: list[dict[str, Any]] = []
    if shape is None:
        return phases, advised
    adapters: dict[str | None, model_shape.Adapter] = {}
    for name, built in configs.items():
        section = sections[name]
        as_text = section.lora.model_dump_json() if section.lora else None
        try:
            if (
                as_text and as_text not in adapters
            ):  # PEFT takes a second for a model of many layers
                adapters[as_text] = model_shape.adapter(config, section.lora, f"{name}.lora")
        except Refused as error:
            findings.append(wrong(error.where, error.found, error.remedy))
            continue
        stage = work_of(name, section, built, sections, target, adapters.get(as_text))
        roof = _roof(section, stage, target, findings)
        phases += (told := estimate(stage, shape, roof, section.max_steps))
        share = "grpo.vllm_gpu_memory_utilization"
        no_room = (
            list(_vllm_room(share, shape, stage.generate, stage.limit)) if stage.generate else []
        )
        findings += no_room
        if not no_room and not all(one["fits"] for one in told):  # the share comes first
            advised.append({"stage": name} | advice(stage, shape))
    if "evaluate" in sections and not any(
        one.key.endswith("model_args.gpu_memory_utilization") for one in findings
    ):
        phase, changes, told_of_it = evaluation(sections["evaluate"], shape, sections, target)
        phases.append(phase)
        advised += changes
        findings += told_of_it
    return phases, advised


def _roof(
    section: Any, stage: Stage, target: Target, findings: list[Finding]
) -> step_time.Roof | None:
    if stage.device.kind == "cpu":
        return step_time.of_this_cpu(min(section.threads, os.cpu_count() or 1))
    roof = step_time.of_card(target.gpu, stage.train.autocast or stage.train.weight_bytes == 2)
    if roof is None:
        findings.append(
            unchecked(
                "step time",
                f"no peak arithmetic and bandwidth are known for {target.gpu}",
                f"--gpu with one of {', '.join(step_time.CARDS)}",
            )
        )
    return roof


def _vllm_room(
    key: str, shape: model_shape.Shape, work: Generation, limit: int
) -> Iterator[Finding]:
    """A share of the GPU in which vLLM has no room for the weights and one sequence's cache."""
    if not work.vllm or memory.sequences_in_cache(shape, work, limit) >= 1:
        return
    one = memory.cache_per_sequence(shape, work.prompt + work.completion, 2)
    needed = (shape.parameters * shape.stored_bytes + 10**9 + one) / limit
    weights = work.vllm * limit < shape.parameters * shape.stored_bytes + 10**9
    share = math.ceil(needed * 20) / 20
    without = "use_vllm: false" if key.startswith("grpo") else "backend: hf"
    yield wrong(
        key,
        f"{work.vllm} of {limit / GIB:.0f} GiB {'does not hold the weights' if weights else 'holds the weights'} and "
        f"{'a gigabyte of activations' if weights else 'no cache for one sequence'}",
        f"{share:.2f} or more" if share <= 0.9 else f"a larger GPU, or {without}",
    )
