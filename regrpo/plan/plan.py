"""Whether a whole profile can be trained on a device, and how long it takes, before it is tried.

Nothing here needs a GPU: findings come from the other modules of this room, memory from `memory`,
times from `step_time`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regrpo.core.errors import Refused, RegrpoError
from regrpo.core.files import Json
from regrpo.core.hub import RAW_MODELS, file_under
from regrpo.inputs import inspection, model_folders
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
    Findings,
    Sections,
    Target,
    Trained,
    of_error,
    short_message,
    unchecked,
    wrong,
)
from regrpo.plan.model_shape import Shape
from regrpo.plan.workload import Workload


def plan(profile: Path, sections: Sections, target: Target, found: Iterable[Finding]) -> Json:
    """Everything about a profile, given the sections that could be parsed: plain data, to print.

    `found` are the findings so far. What is wrong with the profile is a finding, and never raised.
    """
    findings = list(found)
    config, shape = _base(sections, findings)
    stages = _stages(sections, target, config, findings)
    findings += _together(stages, sections, target, config, shape)
    uncounted = list(_not_counted(sections))
    findings += uncounted
    phases: list[Json] = []
    advice: list[Json] = []
    if shape is not None:
        for work in _workloads(stages, sections, config, target, findings):
            estimated = _phases(work, shape, sections[work.name], target, findings)
            phases += estimated
            if memory.vllm_does_not_start(shape, work):
                # Nothing else can be advised before vLLM has room.
                findings.append(_vllm_room(work, shape))
            elif not all(one["fits"] for one in estimated):
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


def _target(stages: list[Trained], sections: Sections, target: Target) -> Json:
    """The GPUs that the profile uses, if it uses any."""
    used = target.is_used_by(sections.values())
    return {
        "gpu": target.gpu if used else None,
        "gpu_memory": target.memory if used else None,
        "gpus": max((stage.processes for stage in stages), default=1),
        "here": target.here,
    }


def _verdict(findings: list[Finding], phases: list[Json], uncounted: bool) -> str:
    if any(one.level == "wrong" for one in findings):
        return "wrong"
    if not all(one["fits"] for one in phases):
        return "does not fit"
    return "fits" if phases and not uncounted else "unknown"


# --- the base -------------------------------------------------------------------------------------


def _base(sections: Sections, findings: list[Finding]) -> tuple[Any, Shape | None]:
    """The base's configuration and shape where they can be known; else findings say why not."""
    key = "base_model.source"
    if "base_model" not in sections or any(one.key == key for one in findings):
        return None, None
    section = sections["base_model"]
    local = section.source.kind == "local"
    try:
        if local:
            model_folders.recognise(_folder(section), section.source.path)
        config = model_shape.find_config(section)
        if config is None:
            why = "memory, times, window and LoRA's targets: unknown until base_model has run"
            would_do = "dvc repro base_model, or base_model.source.config in the profile"
            findings.append(unchecked(key, why, would_do))
            return None, None
        if config.architectures:
            inspection.require_causal(config)
        shape = model_shape.read(config)
    except RegrpoError as error:
        findings.append(of_error(error))
    except Exception as error:  # transformers reads files that may hold anything
        would_do = "a folder that `save_pretrained` wrote"
        findings.append(wrong(key, short_message(error, 250), would_do))
    else:
        if local:
            findings += _refused(section)
        return config, shape
    return None, None


def _folder(section: Any) -> Path:
    return file_under(RAW_MODELS, section.source.path, "base_model.source.path")


def _refused(section: Any) -> Findings:
    """What base_model will refuse of a folder under models/raw/ besides config.json."""
    folder = _folder(section)
    try:
        model_folders.require_model(folder, section.source.path)
        inspection.inspect(folder, section.pad_token)
    except RegrpoError as error:
        yield of_error(error)


# --- the stages that train ------------------------------------------------------------------------


def _stages(
    sections: Sections, target: Target, base: Any, findings: list[Finding]
) -> list[Trained]:
    """The training stages whose settings their library accepts; findings say what is wrong."""
    stages = []
    for name in TRAINED:
        # Without steps sft is left out.
        if name in sections and sections[name].max_steps:
            stages += _trained(name, sections[name], target, base, findings)
    return stages


def _trained(
    name: str, section: Any, target: Target, base: Any, findings: list[Finding]
) -> list[Trained]:
    """A training stage with its library's configuration, or [] if that cannot be built."""
    spread, problems = machine.spread(section.launch, f"{name}.launch.config")
    problems += machine.launched(name, section, target, spread)
    problems += library_settings.used_in_training(name, section, base)
    unusable = list(library_settings.unusable(name, section))
    findings += problems + unusable
    if unusable:
        return []
    findings += consistency.processes(name, section, target)
    findings += consistency.arithmetic(name, section)
    device = target.device(section)
    config, problems = library_settings.build(name, section, device)
    # What the library refuses may have been said above, with a value that would do.
    known = {one.key for one in findings}
    findings += [one for one in problems if one.key not in known]
    if config is None:
        return []
    return [Trained(name, section, config, device, target.processes(section), spread)]


def _together(
    stages: list[Trained], sections: Sections, target: Target, config: Any, shape: Shape | None
) -> Findings:
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
    sections: Sections,
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
    if "select" in sections and sections["select"].samples:
        found.append(workload.of_selection(sections["select"], sections, target))
    # A share of the GPU that is no number was named above.
    share = "evaluate.model_args.gpu_memory_utilization"
    if "evaluate" in sections and not any(one.key == share for one in findings):
        found.append(workload.of_evaluation(sections["evaluate"], sections, target))
    return found


def _phases(
    work: Workload, shape: Shape, section: Any, target: Target, findings: list[Finding]
) -> list[Json]:
    """Each phase of a stage: terms, total, limit, seconds of an optimizer step."""
    seconds: dict[str, float] = {}
    steps = None
    if work.train:
        steps = section.max_steps if section.max_steps > 0 else None
        seconds = step_time.seconds(shape, work, work.train, target, section.threads)
        if not seconds:
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
        for phase in memory.phases(shape, work)
    ]


def _vllm_room(work: Workload, shape: Shape) -> Finding:
    """A share of the GPU in which vLLM has no room for the weights and one sequence's cache."""
    generate, limit = work.generate, work.limit
    assert generate  # noqa: S101  (tells mypy a type, checks no input)
    key, without = "grpo.vllm_gpu_memory_utilization", "use_vllm: false"
    if work.name == "evaluate":
        key, without = "evaluate.model_args.gpu_memory_utilization", "backend: hf"
    base = memory.vllm_base(shape)
    lacking = "holds the weights and no cache for one sequence"
    if work.vllm < base:
        lacking = "does not hold the weights and a gigabyte of activations"
    cache = memory.cache_per_sequence(shape, generate.prompt + generate.completion, 2)
    share = math.ceil((base + cache) / limit * 20) / 20
    would_do = f"{share:.2f} or more" if share <= 0.9 else f"a larger GPU, or {without}"
    return wrong(key, f"{generate.vllm} of {limit / GIB:.0f} GiB {lacking}", would_do)


def _not_counted(sections: Sections) -> Findings:
    """What memory leaves out because it is not known here."""
    why = "its memory (4 bytes a weight) is not counted until its files are here"
    for stage, section in sections.items():
        for name, one in getattr(section, "classifiers", {}).items():
            if workload.classifier_folder(one) is None:
                would_do = f"hf download {one.repo} --revision {one.revision}"
                yield unchecked(f"{stage}.classifiers.{name}", why, would_do)
