"""git's answers about the current repository, and the references of DVC's experiments."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
"""A DVC experiment's reference: its baseline commit in two parts, and its name."""

Files = dict[str, bytes | None]
"""Contents by path; None for a path where there is no file."""


def git(*arguments: str, env: dict[str, str] | None = None) -> str | None:
    """git's output in the current folder, stripped.

    Returns None if git says no (no repository, no such object).
    """
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, errors="replace", check=False, env=env
    )
    if done.returncode != 0:
        return None
    return done.stdout.strip()


def read_files(root: Path, commits: Iterable[str], paths: Sequence[str]) -> dict[str, Files]:
    """The same paths (relative to `root`) of several commits: {commit: {path: bytes}}.

    One git process reads them all; a process a file would take milliseconds each.
    """
    commits = list(dict.fromkeys(commits))
    objects = [f"{commit}:./{path}\n" for commit in commits for path in paths]
    if not objects:
        return {commit: {} for commit in commits}
    command = ["git", "-C", str(root), "cat-file", "--batch"]
    done = subprocess.run(
        command, input="".join(objects).encode(), capture_output=True, check=False
    )
    answer = io.BytesIO(done.stdout)
    return {commit: {path: _next_file(answer) for path in paths} for commit in commits}


def _next_file(answer: io.BytesIO) -> bytes | None:
    """The next object of `git cat-file --batch`: "<id> <type> <size>", the bytes, a newline."""
    head = answer.readline().split()
    if len(head) != 3 or not head[2].isdigit():  # "<name> missing", or no git repository at all
        return None
    data = answer.read(int(head[2]))
    answer.read(1)
    return data if head[1] == b"blob" else None


def experiment_refs(root: Path) -> dict[str, str]:
    """The DVC experiments of a repository: git reference (refs/exps/<baseline>/<name>) → commit."""
    listing = git("-C", str(root), "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    refs = {}
    for line in (listing or "").splitlines():
        ref, commit = line.rsplit(" ", 1)
        if EXPERIMENT.fullmatch(ref):
            refs[ref] = commit
    return refs
