"""dvc.lock and DVC's rwlock heal after a kill in the instant of their writing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regrpo.core import profiles
from regrpo.core.pipeline import parse_lock
from regrpo.records import lock_copy

WHOLE = "schema: '2.0'\nstages:\n  prepare:\n    cmd: python -m stages.prepare\n"
CUT_OFF = [
    "",
    WHOLE[:24],
    "stages: [",
    "\x00" * 80,
    WHOLE.partition(" cmd")[0],
    WHOLE.partition(" python")[0],
]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("left", CUT_OFF)
def test_a_lock_that_was_cut_off_is_put_back(left: str, root: Path) -> None:
    (root / "dvc.lock").write_text(WHOLE)
    lock_copy.keep()
    (root / "dvc.lock").write_text(left)
    lock_copy.keep()
    (said,) = lock_copy.mend()
    assert said.startswith("dvc.lock cannot be read (a kill or a full disk cuts it off): put back")
    assert (root / "dvc.lock").read_text() == WHOLE
    assert (root / ".regrpo/dvc.lock.damaged").read_text() == left
    assert lock_copy.mend() == []


@pytest.mark.parametrize("left", ["", '{"/models/sft": {"wri'])
def test_a_garbled_rwlock_is_removed(left: str, root: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text(left)
    assert lock_copy.mend() == [".dvc/tmp/rwlock was cut off by a kill: removed"]
    assert not (root / ".dvc/tmp/rwlock").exists()


def test_what_is_whole_stays(root: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text("{}")
    (root / "dvc.lock").write_text(WHOLE)
    assert lock_copy.mend() == []
    assert (root / "dvc.lock").read_text() == WHOLE


def test_a_lock_beyond_the_limit_of_profiles_is_whole_and_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = WHOLE.replace("    cmd", f"    desc: {'x' * 2**18}\n    cmd")
    (root / "dvc.lock").write_text(large)
    lock_copy.keep()
    assert lock_copy.mend() == []
    assert (root / ".regrpo/dvc.lock").read_text() == large
    assert parse_lock(large.encode())["stages"]["prepare"]["cmd"] == "python -m stages.prepare"
    (root / "dvc.lock").write_text(large[: 2**17])
    assert len(lock_copy.mend()) == 1
    monkeypatch.setattr(profiles, "BY_DVC", profiles.Limits(1000, 1000))
    assert lock_copy.mend() == [], "too large to look at is not cut off"


def test_a_lock_that_was_cut_off_before_there_is_a_copy_is_set_aside(root: Path) -> None:
    (root / "dvc.lock").write_text(WHOLE[:24])
    (said,) = lock_copy.mend()
    assert "set aside (git may have one, DVC's cache brings finished stages back)" in said
    assert not (root / "dvc.lock").exists()
    assert (root / ".regrpo/dvc.lock.damaged").read_text() == WHOLE[:24]


def test_nothing_is_mended_while_a_dvc_of_this_repository_lives(root: Path, tmp_path: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text("")
    sleeper = root / "dvc"
    sleeper.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, str(sleeper), "repro"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as dvc:
        assert dvc.stdout is not None
        dvc.stdout.readline()
        assert lock_copy.mend() == []
        dvc.kill()
    assert lock_copy.mend() != []


def test_an_experiments_temporary_workspace_keeps_no_copy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = root / ".dvc/tmp/exps/one"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    (workspace / "dvc.lock").write_text(WHOLE)
    lock_copy.keep()
    assert not list(root.rglob(".regrpo"))


def test_a_merge_that_is_not_resolved_is_left_to_its_author(root: Path) -> None:
    (root / "dvc.lock").write_text(WHOLE)
    lock_copy.keep()
    conflict = f"<<<<<<< HEAD\n{WHOLE}=======\n{WHOLE}>>>>>>> other\n"
    (root / "dvc.lock").write_text(conflict)
    assert lock_copy.mend() == []
    assert (root / "dvc.lock").read_text() == conflict
