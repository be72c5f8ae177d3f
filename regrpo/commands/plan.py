"""regrpo plan: whether a profile will train on a GPU (or here) and fit, before any GPU is used."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regrpo.commands import clone
from regrpo.commands.check import section_model
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused
from regrpo.plan import plan as planning
from regrpo.plan import rules
from regrpo.plan.findings import GIB, Finding, Target, of_error, one_line, size, wrong
from regrpo.plan.parse_errors import explain

WIDTH = 100


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

    from regrpo.plan.step_time import CARDS, memory_of

    if gpus is not None and gpus < 1:
        raise Refused(
            "--gpus", expected="1 or more", found=str(gpus), remedy="Leave it out for one."
        )
    here = torch.cuda.is_available() and not gpu
    name = gpu or (torch.cuda.get_device_name(0) if here else "A100")
    known = memory_of(name)
    if memory:
        room = size(memory)
    elif here:
        room = torch.cuda.get_device_properties(0).total_memory
    elif known:
        room = known * GIB
    else:
        raise CannotCheck(
            "--gpu",
            expected=f"one of {', '.join(CARDS)}, or --gpu-memory beside it",
            found=name,
            remedy="Say how much memory it has: --gpu-memory 48GiB.",
        )
    return Target(name, room, gpus, stated=bool(gpu or memory or gpus), here=here)


def make(profile: Path, target: Target) -> dict[str, Any]:
    """The plan of a profile. Raises CannotCheck or Refused if it cannot be read as one."""
    values = profiles.read_profile(profile)
    sections: dict[str, Any] = {}
    findings: list[Finding] = []
    for stage in profiles.SECTIONS:
        model = section_model(stage)
        try:
            sections[stage] = model.model_validate(values[stage])
        except ValidationError as error:
            findings += explain(stage, model, values[stage], error)
        except (TypeError, AttributeError) as error:  # a validator met what it was not made for
            why = f"cannot be read: {one_line(error)}"
            findings.append(wrong(stage, why, "text for keys, and no null for a number"))
    findings += _refused(sections)
    return planning.plan(profile, sections, target, findings)


def _refused(sections: dict[str, Any]) -> list[Finding]:
    """What rules refuse, of names and files and of what goes together."""
    findings, sound = [], {}
    for stage, section in sections.items():
        errors = list(rules.refusals(rules.NAMES, {stage: section}))
        if not errors:
            sound[stage] = section
        for error in errors:
            # What comes with a package is missing here, and may be installed where it is to run.
            packaged = stage == "base_model" and section.source.kind in ("gguf", "package")
            missing = packaged and isinstance(error, CannotCheck)
            findings.append(of_error(error, "needed" if missing else "wrong"))
    return findings + [of_error(error, "wrong") for error in rules.joint_refusals(sound)]


# --- printing -------------------------------------------------------------------------------------

VERDICTS = {
    "fits": "fits: nothing is wrong, and every phase fits",
    "does not fit": "does not fit",
    "wrong": "wrong: it would fail",
    "unknown": "nothing is wrong; whether it fits is unknown",
}
TITLES = {
    "wrong": "Wrong",
    "warning": "Warnings",
    "needed": "Needed on the machine that trains",
    "unchecked": "Not checked",
}


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan for a terminal of 100 columns: verdict, what is wrong, memory and time, the rest."""
    text = [f"{plan['profile']}: {VERDICTS[plan['verdict']]}", _target_line(plan), ""]
    text += _findings(plan, "wrong")
    for one in plan["advice"]:
        text += _advice(one)
    if plan["phases"]:
        text += [*_table(plan["phases"]), ""]
    for level in ("warning", "needed", "unchecked"):
        text += _findings(plan, level)
    if plan["assumptions"]:
        text.append("Assumed for the times (order of magnitude only) and sizes (docs/plan.md):")
        for assumption in plan["assumptions"]:
            text += _item(assumption)
    return text


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
    )


def _item(text: str) -> list[str]:
    return _wrapped(text, "  - ")


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


def _findings(plan: dict[str, Any], level: str) -> list[str]:
    chosen = [one for one in plan["findings"] if one["level"] == level]
    if not chosen:
        return []
    text = [TITLES[level]]
    for one in chosen:
        text += _item(f"{one['key']}: {one['why']}. Would do: {one['would_do']}")
    return [*text, ""]


def _advice(one: dict[str, Any]) -> list[str]:
    text = _wrapped(f"{one['phase']} does not fit; its largest part is {one['largest']}.", "")
    changes = one["changes"]
    if not changes:
        none = "No setting of the profile makes it fit: take a larger GPU, more of them, or a "
        return [*text, *_wrapped(none + "smaller base.", "  "), ""]
    any_one = "Any one of these lines makes it fit:"
    text.append(f"  {any_one if len(changes) > 1 else 'This makes it fit:'}")
    for change in changes:
        keys = [f"{key}: {_in_yaml(value)}" for key, value in change["keys"].items()]
        text += _item(f"{', '.join(keys)}  ({_gib(change['total'])})")
    return [*text, ""]


def _in_yaml(value: Any) -> str:
    return "true" if value is True else str(value)


def _table(phases: list[dict[str, Any]]) -> list[str]:
    """One block a phase: total against the limit and time, then its terms, the largest first."""
    text = [f"{'phase':16} {'peak':>11} {'of':>11}   {'':4} {'a step':>9} {'all steps':>10}"]
    for one in phases:
        seconds, steps = one["seconds_per_step"], one["steps"]
        columns = [
            f"{one['phase']:16}",
            f"{_gib(one['total']):>11}",
            f"{_gib(one['limit']):>11}  ",
            f"{'fits' if one['fits'] else 'NOT':4}",
            f"{_duration(seconds) if seconds else '':>9}",
            f"{_duration(seconds * steps) if seconds and steps else '':>10}",
        ]
        text.append(" ".join(columns))
        terms = sorted(one["terms"].items(), key=lambda term: -term[1])
        shown = ", ".join(f"{name} {_gib(size)}" for name, size in terms)
        text += _wrapped(shown, "    ")
    return text


def _gib(size: int) -> str:
    if size >= 10 * GIB:
        return f"{size / GIB:.1f} GiB"
    if size >= GIB / 10:
        return f"{size / GIB:.2f} GiB"
    return f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
