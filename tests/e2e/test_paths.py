"""A repository in a folder of any name: `make repro`, and every command afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.projects import ROOT, commit, make_project, run

NAME = 'a?b%41 "c" #1 проба é $HOME [x]*\\z`w` & (d); e=f+g~'
"""Every kind of character that docs/security.md promises; `regrpo check` refuses : ' { and }."""


def give_environment(folder: Path) -> None:
    """A .venv of the folder's own, with this environment's packages; nothing is installed."""
    run(folder, sys.executable, "-m", "venv", "--without-pip", ".venv")
    (own,) = (folder / ".venv").glob("lib/python*/site-packages")
    packages = sysconfig.get_path("purelib")
    (own / "others.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    with (folder / ".gitignore").open("a") as ignored:
        ignored.write(".venv/\nMakefile\n")
    (folder / ".venv/.installed").touch()


@pytest.mark.slow
def test_a_path_with_every_kind_of_character_works_everywhere(tmp_path: Path) -> None:
    around = tmp_path / "around"
    folder = make_project(around / NAME)
    give_environment(folder)
    commit(folder, "environment")
    said = run(folder, "make", "repro").stdout
    assert "MLflow is up to date: sqlite:///" in said
    commit(folder, "results")
    audit = run(folder, ".venv/bin/python", "-m", "regrpo.cli", "audit").stdout.splitlines()
    assert audit[-1].startswith("complete: ")
    assert "faults: 0, unchecked: 0, notes: 0" in audit[-1]
    assert "mlflow" in audit[-1]
    for command in (
        ["lineage", "models/grpo"],
        ["compare", "workspace", "HEAD"],
        ["promote", "HEAD", "--alias", "champion"],
        ["plan"],
        ["report", "--out", "reports/a page?.html"],
    ):
        run(folder, ".venv/bin/python", "-m", "regrpo.cli", *command)
    reproduce = [".venv/bin/python", "-m", "regrpo.cli", "reproduce", "--stages", "model_card"]
    refused = run(folder, *reproduce, check=False)
    assert refused.returncode == 2
    assert "expected a path in ASCII" in refused.stderr
    run(folder, "git", "clone", "-q", ".", f"../{NAME} cloned")
    # Nothing lies beside it: no database or folder of a name that was read in another way.
    assert {path.name for path in around.iterdir()} == {NAME, f"{NAME} cloned"}
    known = set(run(folder, "git", "status", "--short", "--ignored").stdout.splitlines())
    assert {line for line in known if line.startswith("??")} == {'?? "reports/a page?.html"'}


def test_make_calls_everything_by_its_interpreter() -> None:
    """The first line of a script in .venv/bin cannot name every path."""
    scripts = {"ruff", "mypy", "uv"}
    called = subprocess.run(
        ["grep", "-oE", r"\$\(BIN\)/\w+", "Makefile"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert {name.rpartition("/")[2] for name in called} <= {"python", *scripts}
