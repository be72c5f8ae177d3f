"""git's answers about the current repository, and the references under which DVC keeps experiments."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
"""A DVC experiment's reference: its baseline commit in two parts, and its name."""


def git(*arguments: str, env: dict[str, str] | None = None) -> str | None:
    """git's output in the current folder, stripped.

    None where git says no (no repository, no such object).
    """
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, errors="replace", check=False, env=env
    )
    return done.stdout.strip() if done.returncode == 0 else None


def experiment_refs(root: Path) -> dict[str, str]:
    """The DVC experiments of a repository: git reference (refs/exps/<baseline>/<name>) → commit."""
    listing = (
        git("-C", str(root), "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps") or ""
    )
    pairs = (line.rsplit(" ", 1) for line in listing.splitlines())
    return {ref: commit for ref, commit in pairs if EXPERIMENT.fullmatch(ref)}
