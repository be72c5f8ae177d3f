"""A stage's frame: its record and journal, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.core import files
from regrpo.core.dvc import entry_now
from regrpo.core.errors import Refused
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import SECTIONS, Section
from regrpo.records import stage_run, watcher
from regrpo.records.journal import JournalReader, is_alive
from tests.support import tracked
from tests.support.pipelines import digest
from tests.support.projects import commit, run
from tests.support.stores import MYSELF

if TYPE_CHECKING:
    pass


class Params(Section):
    seed: int


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one stage, `prepare`, whose tracker is off."""
    with tracked.repository(tmp_path):
        write_one_stage(tmp_path, monkeypatch)
        yield tmp_path


def write_one_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRPO_TRACKING", "off")
    monkeypatch.setattr(stage_run, "require_checked_profile", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(watcher, "watched", lambda *_: contextlib.nullcontext())
    (root / "code.py").write_text("pass\n")
    sections = {name: {"seed": 1} for name in SECTIONS}
    files.write_json(root / "params.yaml", {"profile": "params.yaml"} | sections)
    declared = {
        "cmd": "python -m stages.prepare",
        "deps": ["code.py"],
        "outs": ["out.txt", "reports/prepare/run.json"],
    }
    files.write_json(root / "dvc.yaml", {"stages": {"prepare": declared}})


def closed_status(root: Path) -> str:
    (folder,) = (root / ".regrpo" / "journal").iterdir()
    return str(files.read_json(folder / "closed.json")["status"])


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def test_a_record_tells_what_was_read_and_written_and_nothing_of_user_host_or_place(
    stage: Path,
) -> None:
    with stage_run.stage("prepare", Params) as run:
        run.log({"rows": 3})
        files.write_text(Path("out.txt"), f"seed {run.params.seed}\n")
    [written] = files.read_json(stage / "reports" / "prepare" / "run.json")
    assert written["key"] == stage_key(entry_now("prepare"))
    assert [(item["path"], item["size"]) for item in written["inputs"]] == [("code.py", 5)]
    assert [(item["path"], item["sha256"]) for item in written["outputs"]] == [
        ("out.txt", digest("seed 1\n"))
    ]
    assert written["mlflow_run_id"] is None
    said = list(texts(written))
    assert not {getpass.getuser(), platform.node()} & set(said)
    assert not [text for text in said if Path(text).is_absolute() or str(stage) in text]
    assert closed_status(stage) == "FINISHED"


def test_a_refusing_stage_ends_with_its_code_and_failed(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, stage_run.stage("prepare", Params):
        raise Refused("a row", expected="this", found="that", remedy="Mend it.")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "prepare: a row: expected this; found that. Mend it.\n"
    assert closed_status(stage) == "FAILED"
    assert not (stage / "reports" / "prepare" / "run.json").exists()


def test_what_a_stage_prints_or_fails_of_controls_no_terminal_and_shows_no_secret(
    stage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    hostile = "\x1b[2J\u202e hf_abcdefgh"

    def print_and_fail() -> None:
        print(hostile)
        raise ZeroDivisionError(hostile)

    with pytest.raises(SystemExit) as caught, stage_run.stage("prepare", Params):
        print_and_fail()
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.out == "\\x1b[2J\\u202e ***\n"
    assert "ZeroDivisionError: \\x1b[2J\\u202e ***" in said.err


def test_what_keeps_a_run_from_mlflow_is_its_last_line_and_no_failure(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage_run.stage("prepare", Params) as run:
        files.write_text(Path("out.txt"), "")
        stuck = "The experiment is deleted. Restore it."
        JournalReader(run.journal.folder).answer_with_error("no such experiment", stuck)
        print("prepare: done")
    said = capsys.readouterr()
    assert said.err == f"prepare: MLflow does not take this run: {stuck}\n"
    assert closed_status(stage) == "FINISHED"


def test_a_fault_of_ours_keeps_its_traceback_and_an_interrupted_stage_was_killed(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), stage_run.stage("prepare", Params):
        raise KeyboardInterrupt
    assert closed_status(stage) == "KILLED"
    with pytest.raises(SystemExit) as caught, stage_run.stage("prepare", Params):
        raise ZeroDivisionError
    assert caught.value.code == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_failed_though_nothing_can_be_written(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def write(folder: Path) -> None:
        monkeypatch.setattr(files, "replacing", full)
        files.write_text(folder / "out.txt", "")

    with pytest.raises(SystemExit) as caught, stage_run.stage("prepare", Params) as run:
        write(run.reports)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prepare: reports/prepare/out.txt: expected room on the disk; found")
    assert closed_status(stage) == "FAILED"
    (folder,) = (stage / ".regrpo/journal").iterdir()
    closed = JournalReader(folder).closed
    assert closed is not None
    assert closed["ended"] > time.time() - 60


def test_uncommitted_code_that_is_too_large_is_named_by_its_files_and_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/sft.py").write_text("a = 1\n")
    run(tmp_path, "git", "init", "-q")
    commit(tmp_path, "first")
    (tmp_path / "stages/sft.py").write_text("a = 2\n")
    (tmp_path / "stages/new.py").write_text("b = 1\n" * 10)
    code, whole = stage_run.code_state()
    assert code["diff_sha256"] == files.sha256_text(whole)
    assert "+a = 2" in whole
    monkeypatch.setattr(stage_run, "DIFF_BYTES", 100)
    again, kept = stage_run.code_state()
    assert again == code
    first = f"diff too large (SHA-256 {digest(whole)}), {len(whole)} bytes; files:"
    assert kept.splitlines() == [first, "stages/sft.py", "stages/new.py"]
    monkeypatch.setattr(stage_run, "MOST_NAMES", 1)
    assert stage_run.code_state()[1].splitlines() == [first, "stages/sft.py", "and 1 more"]


class Installed:
    """A distribution that importlib.metadata finds."""

    def __init__(self, name: str, version: str) -> None:
        self.metadata = {"Name": name, "Version": version}


def test_of_a_package_that_is_installed_twice_the_first_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [Installed("Typing_Extensions", "2.0"), Installed("typing-extensions", "1.0")]
    monkeypatch.setattr(metadata, "distributions", lambda: iter(found))
    monkeypatch.setattr(stage_run, "_packages", stage_run._packages.__wrapped__)
    plain = stage_run.environment()
    assert plain["packages"] == {"typing-extensions": "2.0"}
    assert "accepted_versions" not in plain
    monkeypatch.setenv("REGRPO_ACCEPT_VERSIONS", "torch==2.11.0,numpy==2.5.0")
    accepted = stage_run.environment()
    assert accepted["accepted_versions"] == ["numpy==2.5.0", "torch==2.11.0"]
    assert accepted["sha256"] != plain["sha256"]


def test_the_execution_of_a_stage_is_the_process_that_dvc_runs_as(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert stage_run.ancestor_dvc() is None
    code = "from regrpo.records.stage_run import ancestor_dvc; print(*ancestor_dvc())"
    shell = ["sh", "-c", f'"{sys.executable}" -c "{code}"; true']
    done = subprocess.run(
        shell, env=os.environ | {"DVC_STAGE": "sft"}, capture_output=True, text=True, check=True
    )
    number, started = done.stdout.split()
    assert [int(number), float(started)] == MYSELF


def test_a_stage_that_was_adopted_takes_nobody_else_for_its_dvc(tmp_path: Path) -> None:
    """dvc ends while the stage starts: its parent is init then, or another that takes orphans."""
    code = (
        "import os, sys, time\nfrom regrpo.core.errors import CannotCheck\n"
        "from regrpo.records.stage_run import ancestor_dvc\n"
        "if os.fork():\n    os._exit(0)\n"
        "time.sleep(0.5)\n"
        "try:\n    print(ancestor_dvc())\n"
        "except CannotCheck as error:\n    print(error.found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DVC_STAGE": "sft"},
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    assert done.stdout == "that it has ended\n"


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    assert is_alive(MYSELF)
    assert not is_alive([MYSELF[0], MYSELF[1] - 60])
    assert not is_alive(None)
