"""What a run needs of the workspace: path, packages, interpreter, a whole dvc.lock, free disk."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.hardware import ACCEPTED_VERSIONS, accepted_versions
from regrpo.core.text import one_line
from regrpo.records import lock_copy

FREE_BYTES = 2 * 10**9
"""What a run of the default needs at most, with its caches and records."""


def require_path() -> None:
    """A path of the repository that what runs in it can name."""
    path = str(Path.cwd())
    # A folder with os.pathsep in its name cannot stand in PATH. MLflow 3.17 writes the path into a
    # statement of SQL, and DVC 3.67 into a text to be formatted.
    if set(path) & {os.pathsep, "'", "{", "}"} or one_line(path, len(path) + 1) != path:
        raise Refused(
            "repository",
            expected=f"a path without {os.pathsep} ' {{ and }}, in which every character prints "
            '(spaces, ", ?, %, # and letters of any language are fine)',
            found=path,
            remedy="Rename the folder, or move the repository.",
        )


def require_environment() -> None:
    """Every direct dependency at its version in constraints.txt, and PATH's `python` this one.

    A build (2.13.0+cpu) counts as its version. Versions that REGRPO_ACCEPT_VERSIONS names are
    accepted besides; records and card say so.
    """
    constraints = Path("constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE))
    wrong, others = [], []
    for name in _direct_dependencies():
        expected, found = pinned.get(_canonical(name)), _installed(name)
        if found is None:
            wrong.append(f"{name} nothing instead of {expected or 'an installed one'}")
        elif expected not in (None, found) and f"{name}=={found}" not in accepted_versions():
            wrong.append(f"{name} {found} instead of {expected}")
            others.append(f"{name}=={found}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CannotCheck(
            f"environment ({sys.executable})",
            expected="each direct dependency of pyproject.toml at the version that constraints.txt "
            "pins",
            found="; ".join(wrong[:5]) + more,
            remedy="Run `make install`, then `source .venv/bin/activate`; or accept other versions "
            f"(run.json and card say so): {ACCEPTED_VERSIONS}='{' '.join(others)}'.",
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
    if not lock_copy.is_whole(lock):
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
    models = sum(file.stat().st_size for file in Path("models/base").glob("*"))
    needed, free = FREE_BYTES + 6 * models, shutil.disk_usage(Path.cwd()).free
    if free < needed:
        raise Refused(
            "disk",
            expected=f"{needed / 1e9:.1f} GB free where the repository lies",
            found=f"{free / 1e9:.1f} GB",
            remedy="Free some (`dvc gc --workspace` drops cached results that no experiment of "
            "yours needs).",
        )
