"""regrpo plan: whether a profile will train on a GPU (or here) and fit, before any GPU is used."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from regrpo.commands import clone
from regrpo.core import profiles
from regrpo.core.files import Json
from regrpo.core.text import duration, memory
from regrpo.plan.check import find_target, make_plan
from regrpo.plan.findings import Finding, Target, item, wrapped
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


def make(profile: Path, target: Target) -> Json:
    """The plan of a profile of this clone."""
    return make_plan(profile, clone.section_models(), target)


# --- printing -------------------------------------------------------------------------------------

VERDICTS = {
    "fits": "fits: nothing is wrong, and every phase fits",
    "does not fit": "does not fit",
    "wrong": "wrong: it would fail",
    "unknown": "nothing is wrong; whether it fits is unknown",
}


def lines(plan: Json) -> list[str]:
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


def _target_line(plan: Json) -> str:
    target, base = plan["target"], plan["base"]
    where = "this CPU"
    if target["gpu"]:
        where = f"{target['gpus']} × {target['gpu']} of {memory(target['gpu_memory'])}"
        if not target["here"]:
            where += " (not this machine)"
    model = "base not known yet"
    if base:
        model = f"{base['architecture']}, {base['parameters']:,} parameters"
    return f"for {where}; {model}"


def _advice(one: Json) -> list[str]:
    text = wrapped(f"{one['phase']} does not fit; its largest part is {one['largest']}.", "")
    changes = one["changes"]
    if not changes:
        none = "No setting of the profile makes it fit: take a larger GPU, more of them, or a "
        return [*text, *wrapped(none + "smaller base.", "  "), ""]
    any_one = "Any one of these lines makes it fit:"
    text.append(f"  {any_one if len(changes) > 1 else 'This makes it fit:'}")
    for change in changes:
        keys = [f"{key}: {_in_yaml(value)}" for key, value in change["keys"].items()]
        text += item(f"{', '.join(keys)}  ({memory(change['total'])})")
    return [*text, ""]


def _in_yaml(value: Any) -> str:
    return "true" if value is True else str(value)


def _table(phases: list[Json]) -> list[str]:
    """One block a phase: total against the limit and time, then its terms, the largest first."""
    form = "{:22} {:>11} {:>11}   {:4} {:>9} {:>10}".format
    text = [form("phase", "peak", "of", "", "a step", "all steps")]
    for one in phases:
        step = one["seconds_per_step"] or 0
        times = duration(step), duration(step * (one["steps"] or 0))
        fits = "fits" if one["fits"] else "NOT"
        text.append(form(one["phase"], memory(one["total"]), memory(one["limit"]), fits, *times))
        terms = sorted(one["terms"].items(), key=lambda term: -term[1])
        text += wrapped(", ".join(f"{name} {memory(size)}" for name, size in terms), "    ")
    return text
