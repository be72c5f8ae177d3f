"""regrpo plan: whether a profile will train on a GPU (or here) and fit, before any GPU is used."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from regrpo.commands import clone
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.plan import parse_errors, rules
from regrpo.plan import plan as planning
from regrpo.plan.findings import (
    GIB,
    Finding,
    Level,
    Sections,
    Target,
    item,
    of_error,
    size,
    wrapped,
)
from regrpo.plan.findings import lines as findings_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", type=Path, help="the profile to plan (default: the one that params.yaml names)"
    )
    parser.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help="of one GPU, as 80GiB (default: this machine's GPU, or the card's)",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="processes, one GPU each (default: what the profile launches)",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="the card, as H100 or L4 (default: this machine's, else A100)"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    clone.enter()
    target = find_target(arguments.gpu, arguments.gpu_memory, arguments.gpus)
    plan = make(arguments.profile or profiles.active_profile(), target)
    print(json.dumps(plan, indent=2) if arguments.json else "\n".join(lines(plan)))
    return 0 if plan["verdict"] in ("fits", "unknown") else 1


def find_target(gpu: str | None, memory: str | None, gpus: int | None) -> Target:
    """What to plan for: what the command line says, else this machine's GPU, else an A100.

    Raises CannotCheck for a card whose memory is not known.
    """
    import torch

    from regrpo.plan.memory import CUDA
    from regrpo.plan.step_time import CARDS, memory_of

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


def make(profile: Path, target: Target) -> dict[str, Any]:
    """The plan of a profile. Raises CannotCheck or Refused if it cannot be read as one."""
    values = profiles.read_profile(profile)
    sections, findings = parse_errors.parse(values, clone.section_models())
    refused = rules.refusals(sections, rules.NAMES)
    for error in refused + rules.joint_refusals(sections, refused):
        findings.append(of_error(error, _level(error, sections)))
    for error in rules.refusals(sections, rules.COMMITS):
        findings.append(of_error(error, "warning"))
    return planning.plan(profile, sections, target, findings)


def _level(error: RegrpoError, sections: Sections) -> Level:
    # What comes with a package is missing here, and may be installed where it is to run.
    of_base = isinstance(error, CannotCheck) and error.where.startswith("base_model")
    if of_base and sections["base_model"].source.kind in ("gguf", "package"):
        return "needed"
    return "wrong"


# --- printing -------------------------------------------------------------------------------------

VERDICTS = {
    "fits": "fits: nothing is wrong, and every phase fits",
    "does not fit": "does not fit",
    "wrong": "wrong: it would fail",
    "unknown": "nothing is wrong; whether it fits is unknown",
}


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan for a terminal of 100 columns: verdict, what is wrong, memory and time, the rest."""
    text = [f"{plan['profile']}: {VERDICTS[plan['verdict']]}", _target_line(plan), ""]
    findings = [Finding(**one) for one in plan["findings"]]
    text += findings_lines(findings, "wrong")
    for one in plan["advice"]:
        text += _advice(one)
    if plan["phases"]:
        text += [*_table(plan["phases"]), ""]
    for level in ("warning", "needed", "unchecked"):
        text += findings_lines(findings, level)
    if plan["assumptions"]:
        text.append("Assumed for the times (order of magnitude only) and sizes (docs/plan.md):")
        for assumption in plan["assumptions"]:
            text += item(assumption)
    return text


def _target_line(plan: dict[str, Any]) -> str:
    target, base = plan["target"], plan["base"]
    where = "this CPU"
    if target["gpu"]:
        where = f"{target['gpus']} × {target['gpu']} of {_gib(target['gpu_memory'])}"
        if not target["here"]:
            where += " (not this machine)"
    model = "base not known yet"
    if base:
        model = f"{base['architecture']}, {base['parameters']:,} parameters"
    return f"for {where}; {model}"


def _advice(one: dict[str, Any]) -> list[str]:
    text = wrapped(f"{one['phase']} does not fit; its largest part is {one['largest']}.", "")
    changes = one["changes"]
    if not changes:
        none = "No setting of the profile makes it fit: take a larger GPU, more of them, or a "
        return [*text, *wrapped(none + "smaller base.", "  "), ""]
    any_one = "Any one of these lines makes it fit:"
    text.append(f"  {any_one if len(changes) > 1 else 'This makes it fit:'}")
    for change in changes:
        keys = [f"{key}: {_in_yaml(value)}" for key, value in change["keys"].items()]
        text += item(f"{', '.join(keys)}  ({_gib(change['total'])})")
    return [*text, ""]


def _in_yaml(value: Any) -> str:
    return "true" if value is True else str(value)


def _table(phases: list[dict[str, Any]]) -> list[str]:
    """One block a phase: total against the limit and time, then its terms, the largest first."""
    form = "{:22} {:>11} {:>11}   {:4} {:>9} {:>10}".format
    text = [form("phase", "peak", "of", "", "a step", "all steps")]
    for one in phases:
        step = one["seconds_per_step"] or 0
        times = _duration(step), _duration(step * (one["steps"] or 0))
        fits = "fits" if one["fits"] else "NOT"
        text.append(form(one["phase"], _gib(one["total"]), _gib(one["limit"]), fits, *times))
        terms = sorted(one["terms"].items(), key=lambda term: -term[1])
        text += wrapped(", ".join(f"{name} {_gib(size)}" for name, size in terms), "    ")
    return text


def _gib(size: int) -> str:
    if size < GIB / 10:
        return f"{size / 2**20:.1f} MiB"
    if size < 10 * GIB:
        return f"{size / GIB:.2f} GiB"
    return f"{size / GIB:.1f} GiB"


def _duration(seconds: float) -> str:
    """ "" for none."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.2g} s" if seconds else ""
