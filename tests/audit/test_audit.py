"""Pipelines with nothing to find: finished, cloned, restored, named in several ways."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.core.profiles import STAGES
from regrpo.records import graph
from regrpo.records.find import Finder, revisions, workspace
from tests.support.audited import (
    assert_complete,
    audited,
    found,
    row_id,
    run_id,
)
from tests.support.projects import run


def test_the_finished_pipeline_is_complete_everywhere(told: Path) -> None:
    result = audited(mlflow=True, remote=True)
    assert_complete(result)
    assert result["notes"] == []
    assert {one["place"] for one in result["artifacts"]} == {
        "workspace",
        "cache",
        "remote",
        "mlflow",
    }
    assert {one["verdict"] for one in result["artifacts"]} == {"ok"}
    assert [one["stage"] for one in result["stages"]] == list(STAGES)


def test_a_clone_is_complete_once_pulled_and_says_before_what_it_lacks(
    copy: Path, tmp_path: Path
) -> None:
    run(tmp_path, "git", "clone", "-q", str(copy), "clone of another user")
    clone = tmp_path / "clone of another user"
    with contextlib.chdir(clone):
        before = audited()
        assert before["verdict"] == "not checkable"
        assert ("output", "grpo", "models/grpo") in found(before, "unchecked")
        assert all("dvc pull" in one["text"] for one in before["unchecked"])
        assert before["faults"] == []
        assert_complete(audited(remote=True))
        run(clone, "dvc", "pull", "-q")
        assert_complete(audited(remote=True))
        gone = audited(mlflow=True)
        assert gone["verdict"] == "not checkable"
        assert "--no-mlflow" in gone["unchecked"][0]["text"]
        assert not Path("mlflow.db").exists()


def test_a_clone_without_a_remote_is_not_told_to_pull(copy: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(copy), "clone")
    with contextlib.chdir(tmp_path / "clone"):
        run(tmp_path / "clone", "dvc", "remote", "default", "--unset")
        assert all(
            "`dvc pull -r store`" in one["text"]
            for one in audited()["unchecked"]
            if one["kind"] == "output"
        )
        run(tmp_path / "clone", "dvc", "remote", "remove", "store")
        texts = [one["text"] for one in audited()["unchecked"] if one["kind"] == "output"]
        assert texts
        assert all("no remote" in text and "`dvc repro`" in text for text in texts)


@pytest.mark.slow
def test_experiments_restored_and_applied_are_complete_and_traced(told: Path) -> None:
    first = {one["stage"]: one["run"] for one in audited()["stages"]}
    run(told, "dvc", "exp", "run", "-q", "-n", "short", "-S", "evaluate.bootstrap=300")
    run(told, "python", "-m", "regrpo.cli", "sync")
    ran = audited(mlflow=True)
    assert_complete(ran)
    made = {one["stage"]: one["run"] for one in ran["stages"]}
    assert {stage for stage in STAGES if made[stage] != first[stage]} == {"evaluate", "model_card"}
    traced = {one["stage"]: one["text"] for one in ran["notes"] if one["kind"] == "restored"}
    (uncommitted,) = (one for one in ran["notes"] if one["kind"] == "uncommitted")
    assert uncommitted["path"] == "dvc.lock, reports/evaluate/run.json, reports/model_card/run.json"
    assert set(traced) == set(STAGES) - {"evaluate", "model_card"}
    assert run_id("grpo") in traced["grpo"]
    run(told, "git", "checkout", "-q", "--", ".")
    run(told, "dvc", "checkout", "-q", "--force")
    assert_complete(audited("short"))
    run(
        told, "dvc", "exp", "run", "-q", "-n", "again", "-S", "evaluate.bootstrap=300"
    )  # from the run-cache
    restored = audited(mlflow=False)
    assert_complete(restored)
    assert {one["stage"]: one["run"] for one in restored["stages"]} == made
    run(told, "git", "checkout", "-q", "--", ".")
    run(told, "dvc", "exp", "apply", "-q", "short")
    assert_complete(audited())

    whole = graph.of_places([workspace(told), *revisions(told)])
    data = next(
        one["found"]
        for one in restored["artifacts"]
        if one["path"] == "data/prepared/train.parquet"
    )
    reached = graph.ask(whole, data[:12], Finder(told).find, "downstream")[0].runs
    assert {first["model_card"], made["model_card"], first["grpo"]} <= reached.keys()
    assert first["prepare"] not in reached
    for named in (made["model_card"], "short"):
        upstream, starts = graph.ask(whole, named, Finder(told).find, "upstream")
        assert starts == [made["model_card"]]
        assert set(upstream.runs) == set(made.values())


def test_a_run_is_found_by_its_ids_and_revisions_by_name(told: Path) -> None:
    assert audited(run_id("sft"))["target"] == "workspace"
    assert audited(run_id("sft")[:12])["target"] == "workspace"
    assert audited(row_id(), mlflow=True)["target"] == "workspace"
    assert_complete(audited("HEAD"))
    assert audited("main")["revision"] == run(told, "git", "rev-parse", "HEAD").stdout.strip()
    with pytest.raises(CannotCheck, match="no finished stage"):
        audited("HEAD~1")
