"""regrpo check: the whole profile, the environment and free disk, before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from regrpo.commands import clone
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.plan import machine, parse_errors, rules
from regrpo.plan.findings import Finding, lines, of_error

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
    """Print what is wrong.

    Exit code 0: nothing is; 1: something is; 2: something could not be checked.
    """
    clone.enter()
    findings = check(arguments.profile)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
    elif findings:
        text = lines(findings, "wrong") + lines(findings, "unchecked")
        print("\n".join(text), file=sys.stderr)
    elif not arguments.quiet:
        print("ok: every section of the profile, the environment, dvc.lock and free disk")
    levels = {one.level for one in findings}
    if "unchecked" in levels:
        return 2
    return 1 if levels else 0


def check(profile: Path | None) -> list[Finding]:
    """What is wrong with the workspace and the profile, or could not be checked."""
    findings = []
    for require in (require_environment, require_disk, require_lock):
        try:
            require()
        except RegrpoError as error:
            findings.append(of_error(error))
    try:
        values = profiles.read_profile(profile or profiles.active_profile())
    except RegrpoError as error:
        return [*findings, of_error(error)]
    sections, problems = parse_errors.parse(values, clone.section_models())
    errors = rules.refusals(sections, rules.NAMES, rules.COMMITS, rules.READY)
    errors += rules.joint_refusals(sections, errors)
    findings += problems + list(map(of_error, errors))
    return findings + list(machine.versions_of_vllm(sections))


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
