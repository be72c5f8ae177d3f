"""regrpo reproduce.

A miniature run made again in a fresh clone, a changed one told apart, bad input in one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrpo import cli
from regrpo.audit import reproduce
from regrpo.core.profiles import read_yaml
from regrpo.records import stage_run
from regrpo.tracking.address import sqlite_uri
from tests.support.audited import forge_raw_data
from tests.support.projects import (
    MINIATURE,
    commit,
    edit_yaml,
    environment,
    make_project,
    run,
    run_pipeline,
)

SECTIONS = MINIATURE | {
    # Without warm-up the first logged step already shows the learning rate.
    "grpo": MINIATURE["grpo"] | {"warmup_steps": 0},
    "evaluate": MINIATURE["evaluate"] | {"tasks": ["heldout"]},
}
RAW = "data/raw/mine.jsonl"
MINE = '{"question": "1+1=", "answer": "2"}\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature run: DVC tracks its data, results are committed, its cache is pushed."""
    folder = make_project(tmp_path_factory.mktemp("made") / "project", SECTIONS)
    (folder / RAW).write_text(MINE)
    run(folder, "dvc", "add", RAW)
    run(folder, "dvc", "remote", "add", "-d", "store", "../remote")
    commit(folder, "data")
    run_pipeline(folder)
    run(folder, "dvc", "push")
    return folder


def objects(folder: Path) -> dict[str, str]:
    """SHA-256 of every object in a repository's DVC cache."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / ".dvc/cache").rglob("*"))
        if file.is_file()
    }


def state(folder: Path) -> dict[str, Any]:
    """What a reproduction must not touch."""
    return {
        "git": run(folder, "git", "status", "--short", "--branch").stdout,
        "refs": run(folder, "git", "for-each-ref").stdout,
        "worktrees": run(folder, "git", "worktree", "list", "--porcelain").stdout,
        "lock": (folder / "dvc.lock").read_bytes() if (folder / "dvc.lock").exists() else None,
        "local": (folder / ".dvc/config.local").exists(),
    }


def rows(folder: Path, kind: str) -> list[dict[str, str]]:
    """MLflow runs of a kind, straight from the store: tags, id and metrics."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as db, db:
        runs: dict[str, dict[str, str]] = {}
        for uuid, key, value in db.execute("select run_uuid, key, value from tags"):
            runs.setdefault(uuid, {"id": uuid})[key] = value
        for uuid, status in db.execute("select run_uuid, status from runs"):
            runs[uuid]["status"] = status
    return [one for one in runs.values() if one.get("regrpo.kind") == kind]


def copy(folder: Path, target: Path) -> Path:
    """The whole repository, cache and all, to be spoiled."""
    shutil.copytree(folder, target, symlinks=True)
    return target


# --- the three verdicts ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fresh_clone_with_the_remote_and_the_mlflow_store_reproduces_the_run_identically(
    made: Path, tmp_path: Path
) -> None:
    """By its MLflow id, from another path, with an empty cache."""
    clone = tmp_path / "a clone"
    run(tmp_path, "git", "clone", "-q", str(made), str(clone))
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(made.parent / "remote"))
    [pipeline] = rows(made, "pipeline")
    dvc_status, before = run(clone, "dvc", "status", "--json").stdout, state(clone)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = ("python", "-m", "regrpo.cli", "reproduce", pipeline["id"], "--json")
    done = run(
        clone,
        *command,
        check=False,
        MLFLOW_TRACKING_URI=sqlite_uri(made / "mlflow.db"),
        TMPDIR=str(temporary),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    verdict = json.loads(done.stdout)
    assert verdict["verdict"] == verdict["expected"] == "identical"
    assert verdict["first_difference"] is None
    assert verdict["environment"] == verdict["parameters"] == verdict["notes"] == []
    assert verdict["mlflow_run_id"] == pipeline["id"]
    lock = read_yaml(made / "dvc.lock")["stages"]
    assert {stage["stage"] for stage in verdict["stages"]} == set(lock)
    for stage in verdict["stages"]:
        assert stage["reproduction"]["run"] != stage["original"]["run"], "computed, not restored"
        assert stage["files"] >= len(lock[stage["stage"]]["outs"]) - 1
    assert "grpo: step 4/4" in done.stderr, "the stages' own progress is shown"
    assert not any(
        hint in done.stderr for hint in ("dvc push", "git add", "autostage", "track the changes")
    )

    assert state(clone) == before
    assert run(clone, "dvc", "status", "--json").stdout == dvc_status
    assert list(temporary.iterdir()) == []
    assert objects(clone) == {}, "what the remote has was fetched elsewhere"
    [row] = rows(made, "reproduction")
    assert row["id"] == verdict["reproduction_run_id"]
    assert (row["status"], row["regrpo.verdict"], row["regrpo.reproduces"]) == (
        "FINISHED",
        "identical",
        pipeline["id"],
    )
    assert row["regrpo.reproduces_key"] == pipeline["regrpo.pipeline_key"]
    assert {row[f"regrpo.reproduces.{stage}"] for stage in lock} == {
        one["id"] for one in rows(made, "stage")
    }


@pytest.mark.slow
def test_another_learning_rate_is_different_from_grpos_first_logged_step_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A commit that changes the parameter beside results of the old one.

    What grpo reads comes from the cache.
    """
    folder = copy(made, tmp_path / "changed")
    edit_yaml(folder / "params.yaml", {"grpo": {"learning_rate": 1e-3}})
    commit(folder, "another learning rate")
    before, cache = state(folder), objects(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as when it was made
    code = cli.main(["reproduce", "--stages", "grpo", "--no-mlflow"])
    said = capfd.readouterr()
    assert code == 1, said.err
    last = said.out.splitlines()[-1]
    assert last.startswith("different: ")
    assert "it departs in stage grpo: models/grpo/model.safetensors, tensor model." in last
    assert last.endswith(", training step 1 (expected: identical)")
    assert "reports/grpo/history.csv: step 1: " in said.out
    assert "grpo.learning_rate is 0.001 at this commit, 0.0003 in the record" in said.out
    assert "Running stage 'sft'" not in said.err
    assert state(folder) == before
    assert objects(folder) == cache


@pytest.mark.slow
def test_on_another_processor_a_fresh_clone_without_remote_and_cache_is_equivalent(
    tmp_path: Path,
) -> None:
    """Vector units that are switched off play the processor."""
    bare = make_project(tmp_path / "bare", SECTIONS)
    run(bare, "dvc", "repro", REGRPO_TRACKING="off")
    commit(bare, "results")
    run(tmp_path, "git", "clone", "-q", str(bare), "clone")
    command = ["python", "-m", "regrpo.cli", "reproduce", "HEAD", "--json"]
    smaller = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    done = run(tmp_path / "clone", *command, check=False, **smaller)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    foreseen, stages = done.stderr.split("Running stage", 1)
    assert "expected: equivalent, not identical, for the bits depend on\n  processor: " in foreseen
    assert "ATEN_CPU_CAPABILITY=default" in foreseen
    assert "model_card" in stages
    verdict = json.loads(done.stdout)
    assert (verdict["verdict"], verdict["expected"]) == ("equivalent", "equivalent")
    assert verdict["first_difference"]["file"].endswith("/model.safetensors")
    assert verdict["evaluation"]["test"] == "paired"
    assert len(verdict["evaluation"]["values"]) == 6
    assert verdict["notes"] == []
    assert [one["what"] for one in verdict["environment"]] == ["cpu"]


@pytest.mark.slow
def test_a_run_is_made_again_in_a_fresh_environment(made: Path, tmp_path: Path) -> None:
    """pip installs what constraints.txt pins (minutes, some GB).

    The stages run in that and in no other.
    """
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(tmp_path / "wheel"),
    ]
    if subprocess.run([*wheel, "six"], capture_output=True, check=False).returncode:
        pytest.skip("no package index in reach")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(made), str(clone))
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(made.parent / "remote"))
    command = ["python", "-m", "regrpo.cli", "reproduce", "--install", "--keep", "--no-mlflow"]
    command += ["--json", "--stages", "prepare", "base_model", "sft"]
    done = run(clone, *command, TMPDIR=str(tmp_path))
    verdict = json.loads(done.stdout)
    assert verdict["verdict"] == "identical"
    tree = Path(verdict["kept"])
    python = tree.parents[1] / "venv/bin/python"
    listed = json.loads(run(tree, str(python), "-m", "pip", "list", "--format=json").stdout)
    packages = {one["name"].lower().replace("_", "-"): one["version"] for one in listed}
    [record] = json.loads((tree / "reports/sft/run.json").read_text())
    assert record["environment"]["packages"] == packages
    pinned = dict(
        line.split("==")
        for line in (tree / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    unpinned = {
        name
        for name, version in packages.items()
        if pinned.get(name, version) != version.partition("+")[0]
    }
    assert unpinned <= {"pip"}, "venv brings a pip of its own, and nothing asks for another"
    named = {one["what"] for one in verdict["environment"]}
    assert named == {
        name for name, version in packages.items() if version != distributions().get(name)
    } | (distributions().keys() - packages.keys())


def distributions() -> dict[str, str]:
    """The packages of this environment, which made the run."""
    packages: dict[str, str] = stage_run.environment()["packages"]
    return packages


# --- bad input ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished pipeline for bad input, as if prepare had read raw data.

    What one test spoils it mends.
    """
    root = tmp_path_factory.mktemp("spoiled")
    for folder in (finished, finished.parent / "remote"):
        shutil.copytree(folder, root / folder.name, symlinks=True)
    folder = root / finished.name
    (folder / RAW).write_text(MINE)
    run(folder, "dvc", "add", RAW)
    with contextlib.chdir(folder):
        forge_raw_data()
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "--amend", "--no-edit")
    return folder


Refusal = Callable[..., str]


@pytest.fixture
def refusal(
    spoiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Refusal:
    """Runs the command.

    It must end with 2, one line on stderr, and nothing changed or left behind.
    """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "REGRPO_"))]:
        monkeypatch.delenv(name)

    def refused(*arguments: str, folder: Path = spoiled) -> str:
        monkeypatch.chdir(folder)
        before = (state(folder), objects(folder)) if (folder / ".git").exists() else None
        capfd.readouterr()
        assert cli.main(["reproduce", *arguments]) == 2
        said = capfd.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("regrpo reproduce: ")]
        assert len(lines) == 1, said.err
        assert "Traceback" not in said.err
        assert said.out == ""
        assert before is None or (state(folder), objects(folder)) == before
        assert list(temporary.iterdir()) == []
        return lines[0]

    return refused


@contextlib.contextmanager
def committed(folder: Path, path: str, content: bytes) -> Iterator[None]:
    """A commit with another content of a file, undone afterwards."""
    (folder / path).write_bytes(content)
    commit(folder, "spoiled")
    try:
        yield
    finally:
        run(folder, "git", "reset", "-q", "--hard", "HEAD~1")


def test_an_unknown_run_and_one_that_is_not_finished_are_refused(refusal: Refusal) -> None:
    assert "found none of that name" in refusal("--no-mlflow", "--", "--upload-pack=x")
    assert "none of prepare, base_model, " in refusal("HEAD~1", "--no-mlflow")


def test_a_corrupt_profile_is_refused(refusal: Refusal, spoiled: Path) -> None:
    whole = (spoiled / "params.yaml").read_bytes()
    with committed(spoiled, "params.yaml", b"{"):
        assert "params.yaml of that commit: expected YAML; found " in refusal("--no-mlflow")
    with committed(spoiled, "params.yaml", whole.replace(b"\ngrpo:", b"\nppo:")):
        assert "params.yaml of that commit: expected one section per stage" in refusal(
            "--no-mlflow"
        )


def test_a_broken_configuration_of_dvc_is_refused(refusal: Refusal, spoiled: Path) -> None:
    for content in (b"[core\n", b"[core]\n    nonsense = 1\n", b"\xff\xfe"):
        with committed(spoiled, ".dvc/config", content):
            assert ".dvc/config: expected DVC's configuration; found " in refusal("--no-mlflow")


def test_an_uncommitted_workspace_is_refused_unless_a_revision_is_named(
    refusal: Refusal, spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (
        "dvc.lock",
        "params.yaml",
        "profiles/gemma-3-1b-pt.yaml",
        "stages/sft.py",
        "custom/mine.py",
    ):
        changed = spoiled / path
        before = changed.read_bytes() if changed.exists() else None
        changed.write_bytes((before or b"") + b"\n# changed\n")
        said = refusal("--no-mlflow")
        assert (
            f"workspace: expected what lies here to be committed; "
            f"found uncommitted changes in {path}. " in said
        )
        assert "name the revision: `regrpo reproduce HEAD`" in said
        changed.unlink() if before is None else changed.write_bytes(before)
    (spoiled / "params.yaml").write_bytes(b"{")
    assert "uncommitted changes in params.yaml" in refusal("--no-mlflow")
    run(spoiled, "git", "checkout", "-q", "params.yaml")

    (spoiled / "notes.txt").touch()  # decides nothing
    with (spoiled / "stages/sft.py").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setattr(reproduce, "_prepare", lambda *_: [])  # seconds of DVC
    monkeypatch.setattr(reproduce, "_execute", lambda *_: {})
    found = {"verdict": "identical", "notes": [], "sources_of_difference": []}
    monkeypatch.setattr(reproduce, "judge", lambda *_: {**found, "numbers": {}})
    monkeypatch.chdir(spoiled)
    lines: list[str] = []
    verdict = reproduce.reproduce("HEAD", mlflow=False, say=lines.append)
    note = "the workspace has uncommitted changes in stages/sft.py; the commit is reproduced"
    assert verdict["notes"][0] == note
    assert f"note: {note}" in lines
    run(spoiled, "git", "checkout", "-q", "stages/sft.py")
    (spoiled / "notes.txt").unlink()
    assert reproduce.reproduce(mlflow=False)["notes"] == []


def test_what_is_to_be_expected_is_said_before_anything_runs(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    here = stage_run.environment()
    found: dict[str, Any] = {"verdict": "equivalent", "notes": [], "sources_of_difference": []}
    lines: list[str] = []

    def execute(*_: Any) -> dict[str, Any]:
        lines.append("(runs)")
        return {}

    def made_again(**options: Any) -> dict[str, Any]:
        lines.clear()
        monkeypatch.chdir(spoiled)
        return reproduce.reproduce("HEAD", mlflow=False, say=lines.append, **options)

    monkeypatch.setattr(reproduce, "_prepare", lambda *_: [])  # seconds of DVC
    monkeypatch.setattr(reproduce, "_execute", execute)
    monkeypatch.setattr(reproduce, "judge", lambda *_: found | {"numbers": {}})
    same = made_again()
    assert (same["expected"], same["holds"]) == ("identical", False)
    identical = "expected: identical (processor, thread counts and versions are those of the record"
    assert lines[-2].startswith(identical)
    assert lines[-1] == "(runs)"
    # A stage that found another environment than the command has the last word.
    found["sources_of_difference"] = ["device: H100"]
    assert made_again()["holds"]
    assert not made_again(expect="identical")["holds"]
    found["sources_of_difference"] = []

    monkeypatch.setattr(reproduce, "environment", lambda: here | {"cpu": "Another"})
    elsewhere = made_again()
    assert (elsewhere["expected"], elsewhere["holds"]) == ("equivalent", True)
    assert lines[-3:] == [
        "expected: equivalent, not identical, for the bits depend on",
        f"  processor: {here['cpu']} → Another (vector units add up in another order)",
        "(runs)",
    ]
    assert "--stages: expected evaluate among them, by whose answers" in refusal(
        "HEAD", "--no-mlflow", "--stages", "sft"
    )
    made_again(stages=["sft"], expect="identical")


def test_code_that_is_not_the_runs_is_refused(refusal: Refusal, spoiled: Path) -> None:
    changed = (spoiled / "regrpo/train/rewards.py").read_bytes() + b"\n# changed\n"
    with committed(spoiled, "regrpo/train/rewards.py", changed):
        said = refusal("--no-mlflow")
    assert "regrpo/train: expected the files that validate read when it ran; found 1 with" in said
    assert "another SHA-256 or missing: regrpo/train/rewards.py" in said


def test_raw_data_that_neither_cache_nor_remote_has_is_refused(
    refusal: Refusal, spoiled: Path
) -> None:
    md5 = read_yaml(spoiled / f"{RAW}.dvc")["outs"][0]["md5"]
    kept = spoiled / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    data = kept.read_bytes()
    kept.unlink()
    remote = spoiled.parent / "remote"
    remote.rename(remote.with_name("away"))
    assert f"{RAW}: expected the run's data in DVC's cache or on its remote" in refusal(
        "--no-mlflow"
    )
    kept.write_bytes(data.replace(b"2", b"3"))  # of the same size
    assert "expected the files that prepare read when it ran" in refusal("--no-mlflow")
    kept.write_bytes(data)
    remote.with_name("away").rename(remote)


def test_a_store_that_is_gone_or_broken_is_refused_before_anything_runs(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "gone.db"))
    said = refusal("0" * 32)
    assert "could not be asked" in said
    assert "no such file" in said
    assert not (tmp_path / "gone.db").exists()
    (tmp_path / "gone.db").write_text(
        "no database at all, but some text that is longer than its header" * 10
    )
    assert "expected an MLflow store; found " in refusal()


@pytest.mark.slow
def test_a_store_that_another_program_has_locked_is_refused(
    refusal: Refusal, spoiled: Path
) -> None:
    with contextlib.closing(sqlite3.connect(spoiled / "mlflow.db", isolation_level=None)) as db:
        db.execute("begin exclusive")
        assert "database is locked" in refusal()
        db.execute("rollback")


def test_too_little_disk_is_refused(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    said = refusal("--no-mlflow")
    assert "GB free for the temporary worktree; found 0.0 GB" in said
    assert "TMPDIR" in said


def test_an_unknown_stage_is_refused(refusal: Refusal) -> None:
    assert "found train" in refusal("HEAD", "--no-mlflow", "--stages", "train")


def test_a_terminated_reproduction_leaves_nothing_behind(spoiled: Path, tmp_path: Path) -> None:
    """SIGTERM while a stage runs: the stage ends too, worktree and temporary folder are gone."""
    import psutil

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = state(spoiled)
    process = subprocess.Popen(
        [sys.executable, "-m", "regrpo.cli", "reproduce", "--no-mlflow"],
        cwd=spoiled,
        env=environment(TMPDIR=str(temporary)),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("> python -m stages"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    _, alive = psutil.wait_procs(children, 10)
    assert children
    assert alive == []
    assert state(spoiled) == before
    assert list(temporary.iterdir()) == []
