"""What is installed, and that commands and stages work from a clone with nothing but that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from regrpo.cli import COMMANDS
from tests.support.projects import ROOT, environment, make_project, run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = make_project(folder / "source", {}, with_git=False)
    for name in ("README.md", "LICENSE"):
        (source / name).write_text((ROOT / name).read_text())
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q")
    run(source, *build, "--no-index", "-w", str(folder), ".")
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("clone") / "clone")


def with_only(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python that knows the wheel and the environment's packages, and no checkout.

    -S leaves out the environment's own link to a checkout, -P the current folder.
    """
    path = os.pathsep.join([str(wheel), sysconfig.get_path("purelib")])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=path, REGRPO_TRACKING="off"),
        capture_output=True,
        text=True,
        check=False,
    )


def regrpo(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script, as pip writes it."""
    script = "import sys; from regrpo.cli import main; sys.exit(main())"
    return with_only(wheel, folder, "-P", "-c", script, *arguments)


def test_the_wheel_holds_all_of_regrpo_and_nothing_else(wheel: Path) -> None:
    def files(folder: Path) -> list[str]:
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        return sorted(name for name in found if (folder / name).is_file() and "cache" not in name)

    assert files(wheel / "regrpo") == files(ROOT / "regrpo")
    packages = [path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")]
    assert packages == ["regrpo"]


HELP = """
import contextlib, io, json, sys
from regrpo.cli import COMMANDS, main
said = {}
for command in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = main([command, "--help"])
        except SystemExit as ended:
            code = ended.code
    said[command] = code, out.getvalue()
print(json.dumps(said))
"""


def test_a_commands_help_needs_no_clone(wheel: Path, tmp_path: Path) -> None:
    done = with_only(wheel, tmp_path, "-P", "-c", HELP)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert list(said) == list(COMMANDS)
    for command, (code, out) in said.items():
        assert code == 0
        assert out.startswith(f"usage: regrpo {command}")


def test_check_and_lineage_work_from_a_clone(wheel: Path, clone: Path) -> None:
    checked = regrpo(wheel, clone, "check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("ok: every section of the profile")
    drawn = regrpo(wheel, clone, "lineage")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert drawn.stdout == "No run made it: it is a source.\n", "nothing has run here"


def test_a_stage_works_from_a_clone(wheel: Path, clone: Path) -> None:
    done = with_only(wheel, clone, "-m", "stages.prepare")
    assert (done.returncode, done.stderr) == (0, "")
    assert (clone / "data/prepared/dataset.json").is_file()


@pytest.mark.parametrize("command", ["check", "plan"])
def test_outside_a_clone_one_line_says_where_to_go(
    command: str, wheel: Path, tmp_path: Path
) -> None:
    done = regrpo(wheel, tmp_path, command)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "expected the root of a clone of regrpo" in line
