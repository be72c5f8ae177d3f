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
from regrpo.plan.findings import GIB, Finding, Level, Target, item, of_error, size, wrapped
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
    sections, findings = parse_errors.parse(values, clone.section_models())
    refused = rules.refusals(rules.NAMES, sections)
    findings += [of_error(error, _level(error, sections)) for error in refused]
    together = rules.joint_refusals(sections, refused)
    findings += [of_error(error, "wrong") for error in together]
    pins = rules.refusals(rules.COMMITS, sections)
    findings += [of_error(error, "warning") for error in pins]
    return planning.plan(profile, sections, target, findings)


def _level(error: RegrpoError, sections: dict[str, Any]) -> Level:
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
    text += findings_lines(findings, "warning")
    text += findings_lines(findings, "needed")
    text += findings_lines(findings, "unchecked")
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
        text += wrapped(shown, "    ")
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
