"""The commands on a finished pipeline: what they print, pages, broken repositories."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.core.profiles import STAGES
from tests.support.audited import (
    command,
    run_id,
)


@pytest.mark.parametrize(
    "target", ["f" * 32, "no-such-experiment", "HEAD~99", "--help-me", "0" * 40]
)
def test_an_unknown_target_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    code, out, err = command(capsys, "audit", "--no-mlflow", "--", target)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert target in err


def test_the_command_prints_only_what_matters_and_changes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        f: (f.stat().st_mtime_ns, f.stat().st_size)
        for f in copy.rglob("*")
        if f.is_file() and ".dvc/tmp" not in str(f)
    }
    code, out, _ = command(capsys, "audit", "--no-mlflow")
    assert code == 0
    assert len(out.splitlines()) == len(STAGES) + 2, out
    assert command(capsys, "audit", "--no-mlflow", "--quiet") == (0, "", "")
    code, out, _ = command(capsys, "audit", "--no-mlflow", "--json", str(copy))
    assert json.loads(out)["verdict"] == "complete"
    after = {
        f: (f.stat().st_mtime_ns, f.stat().st_size)
        for f in copy.rglob("*")
        if f.is_file() and ".dvc/tmp" not in str(f)
    }
    assert after == before


def test_lineage_as_tree_mermaid_json_and_page(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, "lineage")
    assert (code, out.split()[0]) == (0, "model_card")
    assert all(stage in out for stage in STAGES)
    code, out, _ = command(capsys, "lineage", "models/sft/model.safetensors")
    assert (code, out.split()[0]) == (0, "sft")
    assert "evaluate" not in out
    code, out, _ = command(capsys, "lineage", "--mermaid", "models/sft")
    assert (code, out.splitlines()[0]) == (0, "flowchart LR")
    code, out, _ = command(capsys, "lineage", "--json", "--downstream", "models/grpo")
    assert [one["stage"] for one in json.loads(out)["runs"]] == ["evaluate", "model_card"]
    code, _, _ = command(capsys, "lineage", "--html", "page.html", run_id("grpo"))
    assert code == 0
    assert Path("page.html").read_text().count('<rect class="box') == 6
    code, _, err = command(capsys, "lineage", "--no-mlflow", "nothing-of-that-name")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["audit", "lineage"])
def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(path: Path, text: str) -> None:
        with files.replacing(path) as temporary:
            temporary.write_text(text[:1000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    os.mkfifo("pipe")
    before = sorted(path for path in copy.rglob("*") if ".dvc/tmp" not in str(path))
    for target, told in {
        "no/such/folder/page.html": "no folder no/such/folder",
        "models": "no regular file",
        "dvc.yaml/page.html": "no folder dvc.yaml",
        "pipe": "no regular file",
        "x" * 300: "File name too long",
        "full.html": "No space left on device",
    }.items():
        code, out, err = command(capsys, name, "--no-mlflow", "--html", target)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err
        assert sorted(path for path in copy.rglob("*") if ".dvc/tmp" not in str(path)) == before


def test_a_page_takes_the_place_of_an_older_one(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("page.html").write_text("older")
    assert command(capsys, "lineage", "--html", "page.html")[0] == 0
    assert "<svg" in Path("page.html").read_text()


BREAKAGES: dict[str, tuple[Callable[[], object], str]] = {
    "configuration": (
        lambda: Path(".dvc/config").write_text("[core\n"),
        ".dvc/config: expected DVC's configuration",
    ),
    "local configuration": (
        lambda: Path(".dvc/config.local").write_bytes(b"\xff\xfe"),
        "expected DVC's configuration",
    ),
    "no git": (lambda: shutil.rmtree(".git"), "git repository"),
    "no dvc.yaml": (lambda: Path("dvc.yaml").unlink(), "dvc.yaml"),
    "store": (
        lambda: Path("mlflow.db").write_bytes(b"no database at all" * 100),
        "file is not a database",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize("name", ["audit", "lineage", "sync", "reproduce"])
def test_a_broken_repository_is_one_line_and_nothing_changes(
    copy: Path, capfd: pytest.CaptureFixture[str], breakage: str, name: str
) -> None:
    plant, told = BREAKAGES[breakage]
    plant()
    # Lineage asks MLflow only about an id that no file holds.
    arguments = ["f" * 32] if (name, breakage) == ("lineage", "store") else []
    before = {
        path: path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and ".regrpo" not in path.parts
    }
    assert cli.main([name, *arguments]) == 2
    said = capfd.readouterr()
    if name == "audit" and breakage in (
        "no git",
        "store",
    ):  # all else is checked, and this is what is missing
        lines = [line for line in said.out.splitlines() if line.startswith("UNCHECKED")]
        assert said.err == ""
    else:
        lines = said.err.splitlines()
        assert said.out == ""
    assert len(lines) == 1, said
    assert told in lines[0]
    after = {
        path: path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and ".regrpo" not in path.parts
    }
    assert after == before
