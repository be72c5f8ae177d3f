"""Whether a whole profile can be trained on a device, and how long it takes, before it is tried.

Nothing here needs a GPU: findings come from the other modules of this room, memory from `memory`,
times from `step_time`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.hub import RAW_MODELS, require_safetensors
from regrpo.inputs import base_models
from regrpo.plan import (
    consistency,
    library_settings,
    machine,
    memory,
    model_shape,
    step_time,
    workload,
)
from regrpo.plan.advice import advise
from regrpo.plan.findings import (
    GIB,
    TRAINED,
    Finding,
    Target,
    Trained,
    of_error,
    short_message,
    unchecked,
    wrong,
)
from regrpo.plan.workload import Workload


def plan(
    profile: Path, sections: Mapping[str, Any], target: Target, found: Iterable[Finding]
) -> dict[str, Any]:
    """Everything about a profile, given the sections that could be parsed: plain data, to print.

    `found` are the findings so far. What is wrong with the profile is a finding, and never raised.
    """
    findings = list(found)
    config, shape = _base(sections, findings)
    stages = _stages(sections, target, config, findings)
    findings += _together(stages, sections, target, config, shape)
    uncounted = _not_counted(sections)
    findings += uncounted
    phases: list[dict[str, Any]] = []
    advice: list[dict[str, Any]] = []
    if shape is not None:
        for work in _workloads(stages, sections, config, target, findings):
            without_room = list(_vllm_room(work, shape))
            findings += without_room
            estimated = _phases(work, shape, sections[work.name], target, findings)
            phases += estimated
            # vLLM's share comes first: nothing else can be advised before it has room.
            if not without_room and not all(one["fits"] for one in estimated):
                advice.append(advise(shape, work))
    findings = list(dict.fromkeys(findings))
    return {
        "profile": str(profile),
        "verdict": _verdict(findings, phases, bool(uncounted)),
        "target": _target(stages, sections, target),
        "base": dataclasses.asdict(shape) if shape else None,
        "findings": [dataclasses.asdict(one) for one in findings],
        "phases": phases,
        "advice": advice,
        "assumptions": list(step_time.ASSUMPTIONS) if phases else [],
    }


def _target(stages: list[Trained], sections: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The GPUs that the profile uses, if it uses any."""
    gpu: dict[str, Any] = {"gpu": None, "gpu_memory": None}
    if target.is_used_by(sections.values()):
        gpu = {"gpu": target.gpu, "gpu_memory": target.memory}
    processes = max((stage.processes for stage in stages), default=1)
    return gpu | {"gpus": processes, "here": target.here}


def _verdict(findings: list[Finding], phases: list[dict[str, Any]], uncounted: bool) -> str:
    if any(one.level == "wrong" for one in findings):
        return "wrong"
    if not all(one["fits"] for one in phases):
        return "does not fit"
    return "fits" if phases and not uncounted else "unknown"


# --- the base -------------------------------------------------------------------------------------


def _base(
    sections: Mapping[str, Any], findings: list[Finding]
) -> tuple[Any, model_shape.Shape | None]:
    """The base's configuration and shape where they can be known; else findings say why not."""
    key = "base_model.source"
    if "base_model" not in sections or any(one.key == key for one in findings):
        return None, None
    source = sections["base_model"].source
    try:
        config = model_shape.find_config(sections["base_model"])
        if config is not None:
            if config.architectures:
                base_models.require_causal(config)
            shape = model_shape.read(config)
    except CannotCheck as error:
        findings.append(unchecked(key, error.found, error.remedy.removesuffix(".")))
    except Refused as error:
        findings.append(of_error(error, "wrong"))
    except Exception as error:  # transformers reads files that may hold anything
        would_do = "a folder that `save_pretrained` wrote"
        findings.append(wrong(key, short_message(error, 250), would_do))
    else:
        if source.kind == "local":
            findings += _folder(RAW_MODELS / source.path)
        if config is not None:
            return config, shape
        why = "memory, times, window and LoRA's targets: unknown until base_model has run"
        would_do = "dvc repro base_model, or base_model.source.config in the profile"
        findings.append(unchecked(key, why, would_do))
    return None, None


def _folder(folder: Path) -> Iterator[Finding]:
    """What base_model will miss in a folder besides config.json."""
    key = "base_model.source.path"
    try:
        require_safetensors(folder)
    except Refused as error:
        yield wrong(key, f"{error.found} in {folder}", f"{error.expected}, by `save_pretrained`")
    if not list(folder.glob("tokenizer*")):
        why = f"no tokenizer in {folder}"
        yield wrong(key, why, "the tokenizer's files, by `save_pretrained`")


# --- the stages that train ------------------------------------------------------------------------


def _stages(
    sections: Mapping[str, Any], target: Target, base: Any, findings: list[Finding]
) -> list[Trained]:
    """The training stages whose settings their library accepts; findings say what is wrong."""
    stages = []
    for name in TRAINED:
        # Without steps sft is left out.
        if name not in sections or not sections[name].max_steps:
            continue
        stage, problems = _trained(name, sections[name], target, base)
        findings += problems
        if stage is not None:
            stages.append(stage)
    return stages


def _trained(
    name: str, section: Any, target: Target, base: Any
) -> tuple[Trained | None, list[Finding]]:
    """A training stage with its library's configuration, or None if that cannot be built."""
    spread, problems = machine.spread(section.launch, f"{name}.launch.config")
    findings = [
        *problems,
        *machine.launched(name, section, target, spread),
        *library_settings.used_in_training(name, section, base),
    ]
    if unusable := list(library_settings.unusable(name, section)):
        return None, findings + unusable
    findings += consistency.processes(name, section, target)
    findings += consistency.arithmetic(name, section)
    device = target.device(section.device)
    config, problems = library_settings.build(name, section, device)
    # What the library refuses may have been said above, with a value that would do.
    known = {one.key for one in findings}
    findings += [one for one in problems if one.key not in known]
    if config is None:
        return None, findings
    stage = Trained(name, section, config, device, target.processes(section), spread)
    return stage, findings


def _together(
    stages: list[Trained],
    sections: Mapping[str, Any],
    target: Target,
    config: Any,
    shape: model_shape.Shape | None,
) -> Iterator[Finding]:
    """What the sections ask of the machine, of the libraries and of each other."""
    for stage in stages:
        yield from machine.precision(stage, target)
        if stage.uses_vllm:
            yield from machine.vllm(stage)
    if "evaluate" in sections:
        yield from machine.evaluation(sections["evaluate"], target)
        yield from library_settings.evaluation(sections["evaluate"], config)
    yield from machine.versions(stages, sections, target)
    if "prepare" in sections:
        yield from consistency.data(sections["prepare"])
    yield from consistency.epochs(sections, target)
    yield from consistency.lengths(sections, shape)


# --- memory and time ------------------------------------------------------------------------------


def _workloads(
    stages: list[Trained],
    sections: Mapping[str, Any],
    config: Any,
    target: Target,
    findings: list[Finding],
) -> list[Workload]:
    """The work of each stage; an adapter that does not fit the base is a finding."""
    found = []
    for stage in stages:
        adapter = None
        if stage.section.lora:
            try:
                adapter = model_shape.adapter(config, stage.section.lora, f"{stage.name}.lora")
            except Refused as error:
                findings.append(wrong(error.where, error.found, error.remedy))
                continue
        found.append(workload.of_training(stage, sections, target, adapter))
    # A share of the GPU that is no number was named above.
    share = "evaluate.model_args.gpu_memory_utilization"
    if "evaluate" in sections and not any(one.key == share for one in findings):
        found.append(workload.of_evaluation(sections["evaluate"], sections, target))
    return found


def _phases(
    work: Workload,
    shape: model_shape.Shape,
    section: Any,
    target: Target,
    findings: list[Finding],
) -> list[dict[str, Any]]:
    """Each phase of a stage: terms, total, limit, seconds of an optimizer step."""
    seconds: dict[str, float] = {}
    steps = None
    if work.train is not None:
        if section.max_steps > 0:
            steps = section.max_steps
        roof = _roof(work, section, target)
        if roof is not None:
            seconds = _seconds(work, shape, roof)
        else:
            why = f"no peak arithmetic and bandwidth are known for {target.gpu}"
            would_do = f"--gpu with one of {', '.join(step_time.CARDS)}"
            findings.append(unchecked("step time", why, would_do))
    return [
        {
            "phase": phase.name,
            "terms": phase.terms,
            "total": phase.total,
            "limit": work.limit,
            "fits": phase.total <= work.limit,
            "seconds_per_step": seconds.get(phase.name),
            "steps": steps,
        }
        for phase in work.phases(shape)
    ]


def _roof(work: Workload, section: Any, target: Target) -> step_time.Roof | None:
    """The roof of the device that trains, or None for a card that is not known."""
    assert work.train
    if work.device.kind == "cpu":
        return step_time.of_this_cpu(min(section.threads, os.cpu_count() or 1))
    return step_time.of_card(target.gpu, half=work.train.half == 2)


def _seconds(work: Workload, shape: model_shape.Shape, roof: step_time.Roof) -> dict[str, float]:
    """Seconds of an optimizer step, by phase."""
    train, generate = work.train, work.generate
    assert train
    if generate is None:
        return {work.name: step_time.train_seconds(shape, train, roof)}
    with_vllm = generate.vllm is not None
    forwards = int(with_vllm) + int(train.reference)
    at_once = None
    if generate.vllm:
        at_once = max(1, memory.sequences_in_cache(shape, generate, work.limit))
    weight_bytes = shape.stored_bytes if with_vllm else train.weight_bytes
    cycle = step_time.generate_seconds(shape, generate, roof, weight_bytes, at_once)
    completions = train.batch * train.accumulate
    return {
        "grpo, train": step_time.train_seconds(shape, train, roof, forwards),
        "grpo, generate": cycle * completions / generate.sequences,
    }


def _vllm_room(work: Workload, shape: model_shape.Shape) -> Iterator[Finding]:
    """A share of the GPU in which vLLM has no room for the weights and one sequence's cache."""
    generate, limit = work.generate, work.limit
    if generate is None or not generate.vllm:
        return
    if memory.sequences_in_cache(shape, generate, limit) >= 1:
        return
    key, without = "grpo.vllm_gpu_memory_utilization", "use_vllm: false"
    if work.name == "evaluate":
        key, without = "evaluate.model_args.gpu_memory_utilization", "backend: hf"
    if generate.vllm * limit < memory.vllm_base(shape):
        lacking = "does not hold the weights and a gigabyte of activations"
    else:
        lacking = "holds the weights and no cache for one sequence"
    cache = memory.cache_per_sequence(shape, generate.prompt + generate.completion, 2)
    share = math.ceil((memory.vllm_base(shape) + cache) / limit * 20) / 20
    would_do = f"{share:.2f} or more" if share <= 0.9 else f"a larger GPU, or {without}"
    yield wrong(key, f"{generate.vllm} of {limit / GIB:.0f} GiB {lacking}", would_do)


def _not_counted(sections: Mapping[str, Any]) -> list[Finding]:
    """What memory leaves out because it is not known here."""
    why = "its memory (4 bytes a weight) is not counted until its files are here"
    findings = []
    for stage in ("grpo", "evaluate"):
        if stage not in sections:
            continue
        for name, one in sections[stage].classifiers.items():
            if workload.classifier_folder(one) is None:
                would_do = f"hf download {one.repo} --revision {one.revision}"
                findings.append(unchecked(f"{stage}.classifiers.{name}", why, would_do))
    return findings
