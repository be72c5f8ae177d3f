"""Where results come from: committed code, pinned hub revisions, the environment, older runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES
from regrpo.records import stage_run
from tests.support.audited import (
    Fault,
    Named,
    append,
    assert_complete,
    audited,
    edit_lock,
    edit_record,
    found,
    lock,
    require_found,
)
from tests.support.projects import commit, edit_yaml, run


def dirty(record: dict[str, Any]) -> None:
    record["code"] |= {"dirty": True, "diff_sha256": "0" * 64}


def other_code(folder: str, name: str) -> Callable[[dict[str, Any]], None]:
    """Another hash for one file of an input folder, the folder's own hash kept right."""

    def edit(record: dict[str, Any]) -> None:
        item = next(item for item in record["inputs"] if item["path"] == folder)
        item["files"][name] = "0" * 64
        item["sha256"] = files.sha256_json(item["files"])

    return edit


def unpinned(section: str, revision: object) -> Callable[[], None]:
    """A hub source with a branch name, consistent in profile, dvc.lock and run.json alike."""

    def plant() -> None:
        source = {"kind": "hub", "repo": "somebody/something", "license": "MIT"}
        source |= {} if revision is None else {"revision": revision}
        edit_yaml(Path("params.yaml"), {section: {"source": source}})
        edit_lock(
            section, lambda entry: entry["params"]["params.yaml"][section].update(source=source)
        )

        def edit(record: dict[str, Any]) -> None:
            record["parameters"]["params.yaml"][section]["source"] = source
            record["key"] = stage_key(lock()["stages"][section])

        edit_record(section, edit)

    return plant


def repackage(record: dict[str, Any], packages: dict[str, str], **facts: str) -> None:
    """Another environment in a record, its hash kept right."""
    there = record["environment"]
    there["packages"] |= packages
    there |= facts
    there["sha256"] = files.sha256_json(
        {key: value for key, value in there.items() if key != "sha256"}
    )


FAULTS: dict[str, Fault] = {
    "dirty code": (lambda: edit_record("sft", dirty), ("code", "sft", "reports/sft/run.json"), {}),
    "dirty code of the gate": (
        lambda: edit_record("validate", dirty),
        ("code", "validate", "reports/validate/run.json"),
        {},
    ),
    "no revision": (
        lambda: edit_record("prepare", lambda r: r["code"].update(revision=None, dirty=None)),
        ("code", "prepare", "reports/prepare/run.json"),
        {},
    ),
    "code that git does not hold": (
        lambda: edit_record("grpo", other_code("regrpo/train", "rewards.py")),
        ("code", "grpo", "regrpo/train/rewards.py"),
        {},
    ),
    "branch of a model": (
        unpinned("base_model", "main"),
        ("hub", "base_model", "params.yaml: base_model.source.revision"),
        {},
    ),
    "no revision of data": (
        unpinned("prepare", None),
        ("hub", "prepare", "params.yaml: prepare.source.revision"),
        {},
    ),
    "strict package": (
        lambda: edit_record("sft", lambda r: repackage(r, {"torch": "1.0"})),
        ("environment", None, "torch"),
        {"strict_env": True},
    ),
    "strict python": (
        lambda: edit_record("sft", lambda r: repackage(r, {}, python="2.7")),
        ("environment", None, "python"),
        {"strict_env": True},
    ),
}
ALSO: dict[str, set[Named]] = {
    "code that git does not hold": {("input", "grpo", "regrpo/train/rewards.py")},
}
"""What else a planted fault makes untrue; nothing besides may be accused."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(copy: Path, name: str) -> None:
    require_found(FAULTS[name], ALSO.get(name, set()))


def test_another_environment_is_a_note_package_by_package(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stage_run.environment()
    there = here | {
        "packages": here["packages"] | {"torch": "9.9", "made-up": "1"},
        "cpu": "another",
    }
    monkeypatch.setattr(stage_run, "environment", lambda: there)
    result = audited()
    assert_complete(result)
    assert {one["path"] for one in result["notes"]} == {"torch", "made-up", "cpu"}
    assert audited(strict_env=True)["verdict"] == "broken"


def test_another_repository_lacks_the_commit(copy: Path) -> None:
    shutil.rmtree(".git")
    run(copy, "git", "init", "-q")
    result = audited()
    assert result["verdict"] == "not checkable"
    assert found(result, "unchecked") == {
        ("code", stage, f"reports/{stage}/run.json") for stage in STAGES
    }


def write_diff(diff: str, digest: str) -> None:
    """Uncommitted code of sft, in its journal and record."""
    journal = next(Path(".regrpo/journal").glob("*-sft/open.json"))
    files.write_json(journal, files.read_json(journal) | {"diff": diff})
    edit_record("sft", lambda record: record["code"].update(dirty=True, diff_sha256=digest))


def test_uncommitted_code_that_the_journal_does_not_keep_is_named(copy: Path) -> None:
    diff = f"{stage_run.too_large('ab' * 32)}, 5,000,000 bytes; files:\nstages/sft.py"
    write_diff(diff, "ab" * 32)
    (fault,) = audited()["faults"]
    assert fault["found"]["diff"] == diff
    write_diff(diff, "cd" * 32)
    (fault,) = audited()["faults"]
    assert fault["found"]["diff"] is None, "another run's"


def test_uncommitted_code_is_shown_from_the_journal(copy: Path) -> None:
    diff = "--- a/stages/sft.py\n+++ b/stages/sft.py\n+<script>print('uncommitted')</script>"
    write_diff(diff, files.sha256_text(diff))
    (fault,) = audited()["faults"]
    assert (fault["kind"], fault["found"]["diff"]) == ("code", diff)
    assert cli.main(["audit", "--no-mlflow", "--quiet", "--html", "page.html"]) == 1
    page = Path("page.html").read_text()
    assert "<svg" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "://" not in page


UNREAD = {
    "requirements": ["constraints.txt", "pyproject.toml"],
    "observers": ["regrpo/records/journal.py", "regrpo/tracking/rows.py"],
    "commands": ["regrpo/audit/audit.py", "regrpo/cli.py", "regrpo/commands/new.py"],
}


@pytest.mark.parametrize("committed", [False, True])
def test_changed_code_that_no_stage_reads_is_a_note_of_its_kind(
    copy: Path, committed: bool
) -> None:
    for paths in UNREAD.values():
        for path in paths:
            append(path)
    if committed:
        commit(copy, "later code")
    result = audited()
    assert_complete(result)
    notes = {(one["kind"], one["path"]) for one in result["notes"]}
    assert notes == {(kind, ", ".join(paths)) for kind, paths in UNREAD.items()}
    (first, *_) = result["notes"]
    assert first["text"].startswith("changed since the run (code ")


def test_unread_code_that_is_gone_is_named_and_what_is_as_it_was_is_not(copy: Path) -> None:
    Path("regrpo/audit/verdict.py").unlink()
    append("regrpo/records/find.py")
    texts = [(one["kind"], one["path"]) for one in audited()["notes"]]
    assert texts[:2] == [
        ("commands", "regrpo/audit/verdict.py"),
        ("observers", "regrpo/records/find.py"),
    ]


def test_code_that_a_stage_reads_is_a_fault_and_no_note_of_the_run(copy: Path) -> None:
    append("regrpo/evaluate/stats.py")
    result = audited()
    assert ("input", "evaluate", "regrpo/evaluate/stats.py") in found(result)
    assert not [one for one in result["notes"] if one["text"].startswith("changed since")]


def test_a_regrpo_from_another_folder_that_differs_is_noted(copy: Path) -> None:
    append("regrpo/cli.py")
    texts = [one["text"] for one in audited()["notes"] if one["path"] == "regrpo/cli.py"]
    assert [text for text in texts if text.startswith("the regrpo that audits here (in ")]
