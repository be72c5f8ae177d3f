"""Everything that `regrpo check` and `regrpo plan` find, each as one call; nothing is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regrpo.core import hub, profiles
from regrpo.core.custom import loading
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.files import Json
from regrpo.core.settings import Section
from regrpo.core.text import USER_IN_ADDRESS
from regrpo.plan import consistency, machine, parse_errors, plan, rules, workspace
from regrpo.plan.findings import (
    GIB,
    TRAINED,
    Finding,
    Level,
    Sections,
    Target,
    of_error,
    size,
    wrong,
)

Models = Mapping[str, type[Section]]
"""The parameters of each section of a profile."""


def check(profile: Path | None, models: Models) -> list[Finding]:
    """What is wrong with the workspace and a profile (None: the active one), or unchecked."""
    findings = []
    requirements = (
        workspace.require_path,
        workspace.require_environment,
        workspace.require_disk,
        workspace.require_lock,
        hub.require_brought,
        loading.require_all_alone,
    )
    for require in requirements:
        try:
            require()
        except RegrpoError as error:
            findings.append(of_error(error))
    try:
        path = profile or profiles.active_profile()
        values = profiles.read_yaml(path)
    except RegrpoError as error:
        return [*findings, of_error(error)]
    try:
        profiles.require_sections(values, path)
    except Refused as error:  # the sections that are there are looked at all the same
        findings.append(of_error(error))
        if not isinstance(values, dict):
            return findings
    findings += _passwords(values)
    sections, problems = parse_errors.parse(values, models)
    errors = rules.absent_files(values)
    errors += rules.refusals(sections, rules.NAMES, rules.COMMITS, rules.READY)
    errors += rules.joint_refusals(sections, errors)
    findings += problems + list(map(of_error, errors))
    findings += machine.versions_of_vllm(sections)
    findings += consistency.card(path, sections)
    return findings + [one for one in _numbers(sections) if one.level == "wrong"]


def _passwords(value: Any, where: str = "") -> Iterator[Finding]:
    """Every address with a user or password in a profile."""
    if isinstance(value, str) and USER_IN_ADDRESS.search(value):
        why = "it names a user or password, and would stand in git, dvc.lock, run.json and MLflow"
        yield wrong(where, why, "the address alone")
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _passwords(inner, f"{where}.{key}".removeprefix("."))


def _numbers(sections: Sections) -> Iterator[Finding]:
    """What `plan` says of a profile without a look at the machine or the model."""
    for stage in TRAINED:
        if stage in sections and sections[stage].max_steps:
            yield from consistency.arithmetic(stage, sections[stage])
    yield from consistency.epochs(sections, Target("", 0))


def make_plan(profile: Path, models: Models, target: Target) -> Json:
    """The plan of a profile. Raises CannotCheck or Refused if it cannot be read as one."""
    values = profiles.read_profile(profile)
    sections, findings = parse_errors.parse(values, models)
    refused = rules.absent_files(values) + rules.refusals(sections, rules.NAMES)
    for error in refused + rules.joint_refusals(sections, refused):
        findings.append(of_error(error, _level(error, sections)))
    for error in rules.refusals(sections, rules.COMMITS):
        findings.append(of_error(error, "warning"))
    findings += consistency.card(profile, sections)
    return plan.plan(profile, sections, target, findings)


def _level(error: RegrpoError, sections: Sections) -> Level:
    # What comes with a package is missing here, and may be installed where it is to run.
    of_base = isinstance(error, CannotCheck) and error.where.startswith("base_model")
    if of_base and sections["base_model"].source.kind in ("gguf", "package"):
        return "needed"
    return "wrong"


def find_target(gpu: str | None, memory: str | None, gpus: int | None) -> Target:
    """What to plan for: what the command line says, else this machine's GPU, else an A100.

    Raises CannotCheck for a card whose memory is not known.
    """
    import torch

    from regrpo.plan.step_time import CARDS, memory_of
    from regrpo.plan.workload import CUDA

    if gpus is not None and gpus < 1:
        raise Refused(
            "--gpus", expected="1 or more", found=str(gpus), remedy="Leave it out for one."
        )
    here = torch.cuda.is_available() and not gpu
    name = gpu or (torch.cuda.get_device_name(0) if here else "A100")
    known, taken = memory_of(name), 0
    if memory:
        room = size(memory)
    elif here:
        free, room = torch.cuda.mem_get_info(0)
        # This process's own context is counted as every stage's.
        taken = max(0, room - free - CUDA.context)
    elif known:
        room = known * GIB
    else:
        raise CannotCheck(
            "--gpu",
            expected=f"one of {', '.join(CARDS)}, or --gpu-memory beside it",
            found=name,
            remedy="Say how much memory it has: --gpu-memory 48GiB.",
        )
    stated = bool(gpu or memory or gpus)
    return Target(name, room - taken, gpus, stated, here, taken)
