"""regrpo check: the whole profile, the environment and free disk, in a second, before anything runs."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from regrpo.commands import clone
from regrpo.compare import promotion_rules
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.settings import Section
from regrpo.plan import rules

FREE_BYTES = 2 * 10**9
"""What a run of the default needs at most, with its caches and records."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=Path,
        help="the profile to check (default: the one that params.yaml names)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing where all is well")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    clone.enter()
    findings = check(arguments.profile)
    problems = [finding for finding in findings if finding["problem"]]
    if arguments.json:
        print(json.dumps(findings, indent=2))
    elif problems:
        for finding in problems:
            print(f"FAIL  {finding['problem']}", file=sys.stderr)
    elif not arguments.quiet:
        for finding in findings:
            print(f"ok    {finding['what']}")
    return max((finding["exit_code"] for finding in problems), default=0)


def check(profile: Path | None) -> list[dict[str, Any]]:
    """Findings {what, problem, exit_code}; `problem` is None for what is as it should be."""
    findings = []
    for what, require in WORKSPACE.items():
        findings += _findings(what, _refusal(require))
    try:
        path = profile or profiles.active_profile()
        values = profiles.read_profile(path)
    except RegrpoError as error:
        return findings + _findings("profile", [error])
    sections: dict[str, Section] = {}
    for stage in profiles.SECTIONS:
        errors: list[RegrpoError] = []
        try:
            section = profiles.parse_section(section_model(stage), values[stage], stage)
        except Refused as error:
            errors = [error]
        else:
            errors += rules.refusals(rules.NAMES, {stage: section})
            errors += rules.refusals(rules.READY, {stage: section})
        if not errors:
            sections[stage] = section
        findings += _findings(f"{path}: {stage}", errors, f"{path}: ")
    together = rules.joint_refusals(sections)
    findings += _findings(f"{path}: limits, tasks and rewards go together", together, f"{path}: ")
    return findings


def section_model(stage: str) -> type[Section]:
    """The parameters of a stage, or of `regrpo promote`."""
    if stage == "promote":
        return promotion_rules.Params
    model: type[Section] = importlib.import_module(f"stages.{stage}").Params
    return model


def _refusal(require: Callable[[], None]) -> list[RegrpoError]:
    try:
        require()
    except RegrpoError as error:
        return [error]
    return []


def _findings(what: str, errors: Iterable[RegrpoError], prefix: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"what": what, "problem": f"{prefix}{error}", "exit_code": error.exit_code}
        for error in errors
    ]
    return found or [{"what": what, "problem": None, "exit_code": 0}]


# --- the workspace --------------------------------------------------------------------------------


def require_environment() -> None:
    """Every direct dependency at its version in constraints.txt, and PATH's `python` this one."""
    constraints = Path("constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE))
    wrong = []
    for name in _direct_dependencies():
        expected, found = pinned.get(_canonical(name)), _installed(name)
        if found is None or expected not in (None, found):
            wrong.append(f"{name} {found or 'nothing'} instead of {expected or 'an installed one'}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CannotCheck(
            f"environment ({sys.executable})",
            expected="the packages that constraints.txt pins",
            found="; ".join(wrong[:5]) + more,
            remedy="Run `make install`, then `source .venv/bin/activate`.",
        )
    python = shutil.which("python")
    if python is None or Path(python).parent.resolve() != Path(sys.executable).parent.resolve():
        raise CannotCheck(
            "environment (PATH)",
            expected=f"`python` to be {sys.executable}, since DVC starts each stage with the "
            "python of PATH",
            found=str(python),
            remedy="Run `source .venv/bin/activate` first, or use `make repro`.",
        )


def _direct_dependencies() -> list[str]:
    try:
        lines = metadata.requires("regrpo") or []
    except metadata.PackageNotFoundError:
        return ["regrpo"]
    return [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]


def _installed(name: str) -> str | None:
    """A package's version without the build (a CPU build of torch says 2.13.0+cpu)."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def require_lock() -> None:
    """A dvc.lock that DVC can read: it writes in place, and a kill in that instant cuts it off."""
    lock = Path("dvc.lock")
    if not lock.exists():
        return
    try:
        content = profiles.read_yaml(lock)
    except Refused:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        empty = lock.stat().st_size == 0
        raise CannotCheck(
            "dvc.lock",
            expected="DVC's record of the stages",
            found="an empty file" if empty else "something that DVC cannot read",
            remedy="DVC was killed while it wrote it: `git checkout dvc.lock`, or delete it; DVC's "
            "cache brings the finished stages back.",
        )


def require_disk() -> None:
    """Room for what the run writes: the models thrice over, in the workspace and in DVC's cache."""
    base = Path("models/base")
    models = sum(file.stat().st_size for file in base.glob("*"))
    needed, free = FREE_BYTES + 6 * models, shutil.disk_usage(Path.cwd()).free
    if free < needed:
        raise Refused(
            "disk",
            expected=f"{needed / 1e9:.1f} GB free where the repository lies",
            found=f"{free / 1e9:.1f} GB",
            remedy="Free some (`dvc gc --workspace` drops cached results that no experiment of "
            "yours needs).",
        )


WORKSPACE: dict[str, Callable[[], None]] = {
    "environment: the pinned packages, on the python that DVC will start": require_environment,
    f"disk: at least {FREE_BYTES / 1e9:.0f} GB free": require_disk,
    "dvc.lock: whole, where there is one": require_lock,
}
