"""`make repro`: what it starts, and what it leaves out where there is nothing to say."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.support.projects import ROOT, run

PYTHON = """#!/bin/sh
echo "$*" >> started
case "$*" in *report*) touch reports/index.html;; esac
test ! -e broken
"""
EVERY = ["check", "repro", "sync", "report"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What `make repro` looks at, as old as can be, and a python that writes down its arguments."""
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for name in ("profiles/a", "custom/a", "data/raw/a", "models/raw/a", "stages/a", "regrpo/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("reports/sft/run.json", ".git/HEAD", ".git/logs/HEAD", ".git/refs/heads/main"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv/lib/python3/site-packages").mkdir(parents=True)
    (tmp_path / ".venv/bin").mkdir()
    (tmp_path / ".venv/bin/python").write_text(PYTHON)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    (tmp_path / ".venv/.installed").touch()
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    return tmp_path


def started(folder: Path, *arguments: str) -> list[str]:
    """The commands that `make repro` starts."""
    (folder / "started").unlink(missing_ok=True)
    run(folder, "make", "repro", *arguments, check=False)
    return [line.split()[2] for line in (folder / "started").read_text().splitlines()]


def test_a_run_with_nothing_to_do_asks_dvc_and_mlflow_alone(repository: Path) -> None:
    assert started(repository) == EVERY
    assert started(repository) == ["repro", "sync"]
    for changed in ("custom/b", "reports/sft/run.json", ".venv/lib/python3/site-packages/b"):
        time.sleep(0.02)  # a file system's clock ticks every few milliseconds
        (repository / changed).touch()
        assert started(repository) == EVERY, changed
    (repository / "reports/index.html").touch()  # as `regrpo report` does
    assert started(repository) == ["repro", "sync"]
    (repository / "reports/index.html").unlink()
    assert started(repository) == EVERY
    assert started(repository, "PROFILE=profiles/a")[:2] == ["check", "exp"]


def test_after_a_failure_everything_is_looked_at_again(repository: Path) -> None:
    assert started(repository) == EVERY
    (repository / "broken").touch()
    assert started(repository) == EVERY[1:], "dvc failed: MLflow and the page say so"
    (repository / "broken").unlink()
    assert started(repository) == EVERY
