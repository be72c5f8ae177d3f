"""The temporary worktree: what is installed there, and whether it holds what the stages read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from regrpo.audit.worktree import Worktree
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import Snapshot


def test_install_builds_an_environment_of_that_commits_constraints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {"torch": "2.13.0", "vllm": "0.30.0", "pytest": "9"}
    records = {"grpo": {"environment": {"packages": packages}}}
    worktree = Worktree(Snapshot(tmp_path), records, tmp_path, tmp_path)
    commands, status = [], 0

    def run(self: Any, *command: str) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        message = "ERROR: nothing satisfies torch==2.13.0\n"
        return subprocess.CompletedProcess(command, status, "", message)

    monkeypatch.setattr(Worktree, "run", run)
    worktree.install()
    assert commands[0] == (sys.executable, "-m", "venv", str(tmp_path / "venv"))
    assert commands[1][-4:] == ("-c", "constraints.txt", "-e", ".[cuda,dev]")
    assert worktree.variables()["PATH"].startswith(f"{tmp_path / 'venv/bin'}:")
    status = 1
    found = r"constraints.txt: expected to be installable; found ERROR: nothing"
    with pytest.raises(CannotCheck, match=found):
        worktree.install()


def test_code_that_was_not_committed_is_named_as_that(tmp_path: Path) -> None:
    records = {"grpo": {"code": {"dirty": True, "diff_sha256": "ab" * 32}}}
    worktree = Worktree(Snapshot(tmp_path), records, tmp_path, tmp_path)
    (tmp_path / "regrpo/train").mkdir(parents=True)
    (tmp_path / "regrpo/train/rewards.py").touch()
    found = r"uncommitted when grpo ran: its diff, SHA-256 abababababab…, is not"
    with pytest.raises(CannotCheck, match=found):
        worktree.verify("grpo", {"path": "regrpo/train/rewards.py", "sha256": "0"})
