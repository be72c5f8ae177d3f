"""regrpo plan.

Whether a profile will train on a GPU (or here) and fit, before any GPU second is spent.
"""

from __future__ import annotations

import argparse
import importlib
import json
import textwrap
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regrpo.commands import check, clone
from regrpo.compare import promote
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.hub import is_commit
from regrpo.plan import plan as planning
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
    """What to plan for.

    What the command line says, else this machine's GPU, else an A100 (where CUDA is asked for).
    """
    import torch

    from regrpo.plan.step_time import CARDS, memory_of

    if gpus is not None and gpus < 1:
        raise Refused(
            "--gpus", expected="1 or more", found=str(gpus), remedy="Leave it out for one."
        )
    here = torch.cuda.is_available()
    name = gpu or (torch.cuda.get_device_name(0) if here else "A100")
    if memory:
        room = size(memory)
    elif here and not gpu:
        room = torch.cuda.get_device_properties(0).total_memory
    elif known := memory_of(name):
        room = known * GIB
    else:
        raise CannotCheck(
            "--gpu",
            expected=f"one of {', '.join(CARDS)}, or --gpu-memory beside it",
            found=name,
            remedy="Say how much memory it has: --gpu-memory 48GiB.",
        )
    return Target(name, room, gpus, stated=bool(gpu or memory or gpus), here=here and not gpu)


def make(profile: Path, target: Target) -> dict[str, Any]:
    """The plan of a profile.

    Raises CannotCheck or Refused where it cannot be read or has not one section per stage.
    """
    try:
        values = profiles.read_profile(profile)
    except OSError as error:
        raise CannotCheck(
            str(profile),
            expected="a profile, a YAML file",
            found=error.strerror or str(error),
            remedy="Name a file.",
        ) from error
    sections: dict[str, Any] = {}
    findings: list[Finding] = []
    for stage in profiles.SECTIONS:
        model = (
            promote.Params
            if stage == "promote"
            else importlib.import_module(f"stages.{stage}").Params
        )
        try:
            sections[stage] = model.model_validate(values[stage])
        except ValidationError as error:
            findings += explain(stage, model, values[stage], error)
        except (
            TypeError,
            AttributeError,
        ) as error:  # a validator met what it was not made for, as a number for a name
            findings.append(
                wrong(
                    stage,
                    f"cannot be read: {one_line(error)}",
                    "text for keys, and no null for a number",
                )
            )
    for stage in [name for name in check.LOOK_UP if name in sections]:
        source = getattr(getattr(sections[stage], "source", None), "kind", None)
        missing = "needed" if source in ("gguf", "package") else "wrong"
        findings += _told(
            check.LOOK_UP[stage], _to_look_up(sections[stage]), profile, missing=missing
        )
    if sections.keys() >= {"promote", "evaluate"}:
        findings += _told(check.require_promote, values, profile)
    if sections.keys() >= {"prepare", "sft"}:
        findings += _told(check.require_cut, values, profile)
    joined = ("prepare", "grpo", "evaluate")
    if sections.keys() >= set(joined) and not any(one.key.startswith(joined) for one in findings):
        findings += _told(check.require_answers, values, profile)
    return planning.plan(profile, sections, target, findings)


def _told(look_up: Any, given: Any, profile: Path, missing: Any = "wrong") -> list[Finding]:
    """What `regrpo check` refuses; `missing` is how bad it is where something is not there."""
    try:
        look_up(given, profile)
    except RegrpoError as error:
        return [of_error(error, profile, missing if isinstance(error, CannotCheck) else "wrong")]
    return []


def _to_look_up(section: Any) -> Any:
    """The section with placeholders taken for commits and without `launch`.

    Plan tells of both by itself.
    """

    def pinned(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        zeros = (
            {"revision": "0" * 40}
            if isinstance(one := value.get("revision"), str) and not is_commit(one)
            else {}
        )
        return {name: pinned(one) for name, one in value.items() if name != "launch"} | zeros

    return type(section).model_validate(pinned(section.model_dump()))


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
    """The plan for a terminal of 100 columns.

    Verdict, what is wrong, memory and time by phase, the rest.
    """
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
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
    )


def _target_line(plan: dict[str, Any]) -> str:
    target, base = plan["target"], plan["base"]
    gpu = (
        f"{target['gpus']} × {target['gpu']} of {_gib(target['gpu_memory'])}"
        if target["gpu"]
        else "this CPU"
    )
    model = (
        f"{base['architecture']}, {base['parameters']:,} parameters"
        if base
        else "base not known yet"
    )
    return (
        f"for {gpu}{'' if target['here'] or not target['gpu'] else ' (not this machine)'}; {model}"
    )


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
    said.append(
        "  Any one of these lines makes it fit:"
        if len(one["changes"]) > 1
        else "  This makes it fit:"
    )
    for change in one["changes"]:
        keys = ", ".join(
            f"{key}: {str(value).lower() if value is True else value}"
            for key, value in change["keys"].items()
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
