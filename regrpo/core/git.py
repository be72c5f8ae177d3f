"""git's answers about the current repository, and the references of DVC's experiments."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
"""A DVC experiment's reference: its baseline commit in two parts, and its name."""

Files = dict[str, bytes | None]
"""Contents by path; None for a path where there is no file."""


def git(*arguments: str, env: dict[str, str] | None = None) -> str | None:
    """git's output in the current folder, stripped.

    Returns None if git says no (no repository, no such object).
    """
    done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
        ["git", *arguments],  # noqa: S607  (git is the user's, from PATH)
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=env,
    )
    if done.returncode != 0:
        return None
    return done.stdout.strip()


def uncommitted(root: Path, *paths: str) -> list[str]:
    """The files under these paths (from `root`) that git does not hold as they are."""
    # Without the optional locks this may run beside another git command.
    quietly = ("-C", str(root), "--no-optional-locks", "-c", "status.relativePaths=true")
    listed = git(*quietly, "status", "--short", "--untracked-files=all", "--", *paths)
    return [line.split(maxsplit=1)[1] for line in (listed or "").splitlines()]


def read_files(root: Path, commits: Iterable[str], paths: Sequence[str]) -> dict[str, Files]:
    """The same paths (relative to `root`) of several commits: {commit: {path: bytes}}.

    One git process reads them all; a process a file would take milliseconds each.
    """
    commits = list(dict.fromkeys(commits))
    objects = [f"{commit}:./{path}\n" for commit in commits for path in paths]
    if not objects:
        return {commit: {} for commit in commits}
    command = ["git", "-C", str(root), "cat-file", "--batch"]
    done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
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


class Experiment(NamedTuple):
    """A DVC experiment: its name, its baseline's commit and its own, and its git reference."""

    name: str
    baseline: str
    commit: str
    ref: str


def experiments(root: Path) -> list[Experiment]:
    """The DVC experiments of a repository."""
    listing = git("-C", str(root), "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    found = []
    for line in (listing or "").splitlines():
        commit, _, ref = line.partition(" ")
        if match := EXPERIMENT.fullmatch(ref):
            found.append(Experiment(match[3], match[1] + match[2], commit, ref))
    return found
