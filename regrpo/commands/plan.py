"""regrpo plan: whether a profile will train on a GPU (or here) and fit, before any GPU second is spent."""

from __future__ import annotations

import argparse
import importlib
import json
import textwrap
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from regrpo import params
from regrpo import plan as planning
from regrpo.commands import check
from regrpo.errors import CannotCheck, Refused, RegrpoError
from regrpo.preflight import GIB, Finding, Target, explain, size

WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", type=Path, help="the profile to plan (default: the one that params.yaml names)")
    parser.add_argument(
        "--gpu-memory", metavar="SIZE", help="of one GPU, as 80GiB (default: this machine's GPU, or the card's)"
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="processes, one GPU each (default: what the profile launches)"
    )
    parser.add_argument("--gpu", metavar="NAME", help="the card, as H100 or L4 (default: this machine's, else A100)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    target = find_target(arguments.gpu, arguments.gpu_memory, arguments.gpus)
    plan = make(arguments.profile or params.active_profile(), target)
    print(json.dumps(plan, indent=2) if arguments.json else "\n".join(lines(plan)))
    return 0 if plan["verdict"] in ("fits", "unknown") else 1


def find_target(gpu: str | None, memory: str | None, gpus: int | None) -> Target:
    """What to plan for: what the command line says, else this machine's GPU, else an A100 (where CUDA is asked for)."""
    import torch

    from regrpo.roofline import CARDS, card

    if gpus is not None and gpus < 1:
        raise Refused("--gpus", expected="1 or more", found=str(gpus), remedy="Leave it out for one.")
    here = torch.cuda.is_available()
    name = gpu or (torch.cuda.get_device_name(0) if here else "A100")
    if memory:
        room = size(memory)
    elif here and not gpu:
        room = torch.cuda.get_device_properties(0).total_memory
    else:
        room = CARDS[card(name) or "A100"][0] * GIB
    return Target(name, room, gpus, stated=bool(gpu or memory or gpus), here=here and not gpu)


def make(profile: Path, target: Target) -> dict[str, Any]:
    """The plan of a profile. Raises CannotCheck or Refused where it is not there or has not one section per stage."""
    values = params.read_profile(profile)
    sections: dict[str, Any] = {}
    findings: list[Finding] = []
    for stage in params.STAGES:
        model = importlib.import_module(f"stages.{stage}").Params
        try:
            sections[stage] = model.model_validate(values[stage])
        except ValidationError as error:
            findings += explain(stage, model, values[stage], error)
            continue
        try:
            if stage in check.LOOK_UP:
                check.LOOK_UP[stage](sections[stage], profile)
        except RegrpoError as error:
            if error.where.endswith(".revision"):  # told below as a placeholder: the rest can be planned
                continue
            level: Literal["unchecked", "wrong"] = "unchecked" if isinstance(error, CannotCheck) else "wrong"
            key = error.where.removeprefix(f"{profile}: ")
            why = f"expected {error.expected}; found {error.found}"
            findings.append(Finding(level, key, why, error.remedy))
    return planning.plan(profile, sections, target, findings)


# --- printing -------------------------------------------------------------------------------------------------------

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
    """The plan for a terminal of 100 columns: verdict, what is wrong, memory and time by phase, the rest."""
    said = [f"{plan['profile']}: {VERDICTS[plan['verdict']]}", _target_line(plan), ""]
    said += _findings(plan, "wrong")
    for one in plan["advice"]:
        said += _advice(one)
    if plan["phases"]:
        said += [*_table(plan["phases"]), ""]
    for level in ("warning", "needed", "unchecked"):
        said += _findings(plan, level)
    if plan["assumptions"]:
        said += ["Assumed for the times (order of magnitude only) and sizes (docs/plan.md):"]
        said += [line for text in plan["assumptions"] for line in _wrapped(text, "  - ")]
    return said


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def _target_line(plan: dict[str, Any]) -> str:
    target, base = plan["target"], plan["base"]
    gpu = f"{target['gpus']} × {target['gpu']} of {_gib(target['gpu_memory'])}" if target["gpu"] else "this CPU"
    model = f"{base['architecture']}, {base['parameters']:,} parameters" if base else "base not known yet"
    return f"for {gpu}{'' if target['here'] or not target['gpu'] else ' (not this machine)'}; {model}"


def _findings(plan: dict[str, Any], level: str) -> list[str]:
    chosen = [one for one in plan["findings"] if one["level"] == level]
    if not chosen:
        return []
    said = [TITLES[level]]
    for one in chosen:
        said += _wrapped(f"{one['key']}: {one['why']}. Would do: {one['would_do']}", "  - ")
    return [*said, ""]


def _advice(one: dict[str, Any]) -> list[str]:
    said = _wrapped(f"{one['phase']} does not fit; its largest part is {one['largest']}.", "")
    if not one["changes"]:
        return [
            *said,
            "  No setting of the profile makes it fit: take a larger GPU, more of them, or a smaller base.",
            "",
        ]
    said.append("  Any one of these lines makes it fit:" if len(one["changes"]) > 1 else "  This makes it fit:")
    for change in one["changes"]:
        keys = ", ".join(
            f"{key}: {str(value).lower() if value is True else value}" for key, value in change["keys"].items()
        )
        said += _wrapped(f"{keys}  ({_gib(change['total'])})", "  - ")
    return [*said, ""]


def _table(phases: list[dict[str, Any]]) -> list[str]:
    """One block a phase: total against the limit and time, then its terms, the largest first."""
    said = [f"{'phase':16} {'peak':>11} {'of':>11}   {'':4} {'a step':>9} {'all steps':>10}"]
    for one in phases:
        seconds, steps = one["seconds_per_step"], one["steps"]
        whole = _duration(seconds * steps) if seconds and steps else ""
        fits = "fits" if one["fits"] else "NOT"
        step = _duration(seconds) if seconds else ""
        said.append(
            f"{one['phase']:16} {_gib(one['total']):>11} {_gib(one['limit']):>11}   {fits:4} {step:>9} {whole:>10}"
        )
        terms = sorted(one["terms"].items(), key=lambda term: -term[1])
        said += _wrapped(", ".join(f"{name} {_gib(size)}" for name, size in terms), "    ")
    return said


def _gib(size: int) -> str:
    return (
        f"{size / GIB:.1f} GiB"
        if size >= 10 * GIB
        else f"{size / GIB:.2f} GiB"
        if size >= GIB / 10
        else f"{size / 2**20:.1f} MiB"
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
