"""What commands print: names out of data, records, profiles and MLflow act on no terminal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from regrpo import cli
from regrpo.cli import COMMANDS
from regrpo.commands import promote, reproduce
from regrpo.core.pipeline import stage_key
from regrpo.tracking import state
from tests.support.audited import edit_lock, edit_record, lock

HOSTILE = "x\x1b]0;mine\x07\x1b[2J\u202egpj\x9b31m\r\u200b\ufe0f"
"""Sets a window's title, clears the screen, turns the direction of reading, hides characters."""
FORGED = f"{HOSTILE}\ncomplete: 104 hashes in cache"
"""Poses as a line of a command's own, too."""


def require_harmless(said: pytest.CaptureResult[str], shown: str = "x\\x1b]0;mine\\x07") -> str:
    """Nothing that was printed acts or hides, and the name is shown; returns all of it."""
    text = said.out + said.err
    assert text.replace("\n", "").isprintable()
    assert "\ufe0f" not in text
    assert shown in text
    return text


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_that_acts_on_a_terminal_is_spelled_out(
    copy: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = HOSTILE.strip("\r")
    arguments = {
        "check": ["--profile", f"profiles/{name}.yaml"],
        "plan": ["--profile", f"profiles/{name}.yaml"],
        "sync": [f"--{name}"],
        "compare": ["--no-mlflow", "workspace", name],
        "promote": [name],
        "release": ["--no-mlflow", "--out", "out", name],
        "verify": [name],
        "publish": ["--repo-id", "owner/name", name],
        "reproduce": ["--no-mlflow", name],
    }
    try:
        code = cli.main([command, *arguments.get(command, ["--no-mlflow", name])])
    except SystemExit as error:  # argparse's own
        code = error.code
    assert code in (1, 2)
    require_harmless(capsys.readouterr())


def test_audit_and_a_file_whose_name_forges_a_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "models/grpo" / FORGED).touch()
    for options in ([], ["--verbose"]):
        assert cli.main(["audit", "--no-mlflow", *options]) == 1
        text = require_harmless(capsys.readouterr())
        assert [line for line in text.splitlines() if line.startswith("complete:")] == []
        assert (
            sum(line.startswith("FAULT output: grpo: models/grpo/x") for line in text.splitlines())
            == 1
        )


def test_lineage_and_a_source_whose_path_forges_a_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = {"path": f"data/raw/{FORGED}", "sha256": "0" * 64, "size": 1}
    edit_record("prepare", lambda record: record["inputs"].append(item))
    for options in ([], ["--mermaid"]):
        assert cli.main(["lineage", "--no-mlflow", *options]) == 0
        shown = "x\\x1b]0;mine\\x07" if not options else "x#92;x1b"
        text = require_harmless(capsys.readouterr(), shown)
        assert [line for line in text.splitlines() if line.startswith("complete:")] == []


def test_compare_and_a_parameter_whose_name_and_value_forge_lines(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def set_parameter(entry: dict[str, Any]) -> None:
        entry["params"]["params.yaml"]["grpo"][FORGED] = FORGED

    def set_recorded(record: dict[str, Any]) -> None:
        record["parameters"]["params.yaml"]["grpo"][FORGED] = FORGED
        record["key"] = stage_key(lock()["stages"]["grpo"])

    edit_lock("grpo", set_parameter)
    edit_record("grpo", set_recorded)
    for options in ([], ["--md"]):
        assert cli.main(["compare", "--no-mlflow", *options, "HEAD", "workspace"]) == 0
        shown = "x\\x1b]0;mine" if not options else "x\\\\x1b\\]0;mine"
        text = require_harmless(capsys.readouterr(), shown)
        assert [line for line in text.splitlines() if line.startswith("complete:")] == []


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_profile_with_hostile_keys_and_values(
    copy: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = YAML()
    profile = yaml.load(Path("params.yaml"))
    profile["grpo"] |= {FORGED: 1, "loss_type": FORGED}
    yaml.dump(profile, Path("params.yaml"))
    assert cli.main([command]) == 1
    text = require_harmless(capsys.readouterr())
    assert [line for line in text.splitlines() if line.startswith("complete:")] == []


def test_sync_and_a_row_of_a_hostile_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state, "up_to_date", lambda: True)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", HOSTILE)
    row = {"kind": "pipeline", "name": FORGED, "status": "FINISHED", "run_id": "0"}
    state.remember(latest=row)
    assert cli.main(["sync"]) == 0
    text = require_harmless(capsys.readouterr())
    assert [line for line in text.splitlines() if line.startswith("complete:")] == []


@pytest.mark.parametrize("command", [promote, reproduce])
def test_what_promote_and_reproduce_say_of_hostile_names(
    copy: Path,
    command: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rule = {"rule": "audit", "verdict": "fails", "text": FORGED}
    promotion = {"verdict": "refused", "target": FORGED, "pipeline_key": "0", "model": FORGED}
    monkeypatch.setattr(
        promote, "promote", lambda *_, **__: promotion | {"rules": [rule], "notes": [FORGED]}
    )
    verdict = dict.fromkeys(
        ["evaluation", "reproduction_run_id", "kept", "experiment", "first_difference"]
    )
    verdict |= {"stages": [], "sources_of_difference": [FORGED], "parameters": []}
    verdict |= {"notes": [FORGED], "verdict": "different", "revision": "0", "holds": False}
    verdict |= {"expected": "identical", "mlflow_error": FORGED}
    monkeypatch.setattr(reproduce, "reproduce", lambda *_, say, **__: [say(FORGED), verdict][1])
    name = command.__name__.rpartition(".")[2]
    assert cli.main([name, "HEAD"]) in (1, 2)
    text = require_harmless(capsys.readouterr())
    assert [line for line in text.splitlines() if line.startswith("complete:")] == []


def test_a_fault_of_ours_is_told_in_the_same_way_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError(HOSTILE)

    monkeypatch.setattr("regrpo.commands.clone.enter", fail)
    assert cli.main(["check"]) == 2
    assert "ZeroDivisionError" in require_harmless(capsys.readouterr())


def test_the_trackers_log_hides_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    (copy / ".regrpo/tracking.log").unlink(missing_ok=True)
    with state.log_stderr():
        said = state.log_error(RuntimeError(f"{FORGED} hf_abcdefgh"))
    log = (copy / ".regrpo/tracking.log").read_text()
    assert "Traceback" in log or "RuntimeError" in log
    for text in (log, said):
        assert text.replace("\n", "").isprintable()
        assert "hf_abcdefgh" not in text


@pytest.mark.parametrize("character", [":", "'", "{", "}", "\n", "\x1b", "\u202e", "\udcff"])
def test_check_refuses_a_path_that_something_cannot_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch, character: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy.with_name(f"a{character}b")
    shutil.copytree(copy, folder, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.chdir(folder)
    assert cli.main(["check"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Wrong\n  - repository: expected a path without : ' { and }")
    assert "Rename the folder" in said.replace("\n    ", " ")


def test_check_refuses_an_address_with_a_password_in_a_profile(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = YAML()
    profile = yaml.load(Path("params.yaml"))
    profile["grpo"]["vllm_server_base_url"] = "http://me:hunter2@127.0.0.1:8000"
    yaml.dump(profile, Path("params.yaml"))
    assert cli.main(["check"]) == 1
    said = capsys.readouterr().err
    assert "grpo.vllm_server_base_url: it names a user or password" in said
    assert "hunter2" not in said
