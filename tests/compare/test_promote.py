"""regrpo promote over a real MLflow registry, DVC and git.

One repository with five finished runs is made for the module; tests that change anything work on a
copy of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.audit.audit import audit
from regrpo.compare import promote
from regrpo.core import files, profiles
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import SAMPLES
from regrpo.records import stage_run
from regrpo.records.find import Place
from regrpo.tracking import address
from tests.support.frames import environment, in_this_process
from tests.support.projects import commit, edit_yaml, make_project, run
from tests.support.promotions import NAME, QUESTIONS, answers, finish

Result = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """run0: 30 of 40 right; run1: four more; run2: ten fewer; run3: other questions; run4.

    The doctor says fatal.
    """
    folder = make_project(tmp_path_factory.mktemp("promote") / "finished", {})
    shutil.copyfile(empty_store, folder / "mlflow.db")
    later = STAGES[STAGES.index("grpo") :]
    with contextlib.chdir(folder), in_this_process():
        finish(0, answers(range(30)), STAGES)
        finish(1, answers(range(34)), later)
        finish(2, answers(range(20)), later)
        finish(3, answers(range(140), first=100), later)
        finish(4, answers(range(35)), later, [{"step": 3.0, "loss": math.nan}])
    return folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an outer DVC or MLflow; the installed packages are listed once."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "REGRPO_"))]:
        monkeypatch.delenv(name)
    known = environment()
    monkeypatch.setattr(stage_run, "environment", lambda: known)


AUDITED: dict[str, Result] = {}
"""The real audit of each revision; where files are altered its own is made."""


def audited_once(place: Place) -> Result:
    revision = str(place.snapshot.revision)
    if revision not in AUDITED:
        AUDITED[revision] = audit(place)
    return AUDITED[revision]


@pytest.fixture
def here(finished: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The repository itself, for tests that change nothing but the registry.

    That is emptied afterwards.
    """
    monkeypatch.chdir(finished)
    monkeypatch.setattr(promote, "audit", audited_once)
    yield finished
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db, db:
        for table in (
            "registered_model_aliases",
            "model_version_tags",
            "model_versions",
            "registered_models",
        ):
            db.execute(f"delete from {table}")


@pytest.fixture
def copy(finished: Path, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for tests that change files."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def promoted(target: str, alias: promote.Alias = "candidate", dry_run: bool = False) -> Result:
    return promote.promote(target, Path.cwd(), alias=alias, dry_run=dry_run)


def rules(result: Result) -> dict[str, str]:
    return {one["rule"]: one["verdict"] for one in result["rules"]}


def registered() -> dict[str, Any]:
    """The registry, straight from the store: {version: tags}, aliases, descriptions."""
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        tags: dict[str, dict[str, str]] = {}
        for version, key, value in db.execute("select version, key, value from model_version_tags"):
            tags.setdefault(str(version), {})[key] = value
        aliases = {
            alias: str(version)
            for alias, version in db.execute("select alias, version from registered_model_aliases")
        }
        about = {
            str(v): (d, s)
            for v, d, s in db.execute("select version, description, source from model_versions")
        }
    return {"tags": tags, "aliases": aliases, "about": about}


def test_a_candidate_carries_hashes_card_and_verdicts_and_is_the_same_version_when_promoted_again(
    here: Path,
) -> None:
    first = promoted("run0")
    assert (first["verdict"], first["version"], first["created"]) == ("registered", "1", True)
    assert rules(first) == {"audit": "holds", "doctor": "holds", "comparison": "holds"}
    for name in (
        "run0",
        first["tags"]["regrpo.row"],
        first["tags"]["regrpo.stage.grpo"],
    ):  # by tag, row and stage run
        again = promoted(name)
        assert (again["version"], again["created"]) == ("1", False)
    found = registered()
    assert found["aliases"] == {"candidate": "1"}
    assert list(found["tags"]) == ["1"]
    [grpo] = files.read_json(here / "reports/grpo/run.json")  # of run4: not the one promoted
    tags = found["tags"]["1"]
    assert len(tags["regrpo.output.models/grpo"]) == 64
    assert tags["regrpo.output.models/grpo"] != grpo["outputs"][0]["sha256"]
    assert tags["regrpo.pipeline_key"] == first["pipeline_key"]
    assert (tags["regrpo.audit"], tags["regrpo.health"], tags["regrpo.heldout"]) == (
        "complete",
        "healthy",
        "0.75",
    )
    description, source = found["about"]["1"]
    assert description.startswith(f"# {NAME}\n\nThe | summary.")
    assert "## More" not in description
    assert "| audit | holds | complete:" in description
    assert "| comparison | holds |" in description
    assert source.startswith("models:/m-")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        sha = db.execute(
            "select tag_value from logged_model_tags "
            "where model_id = ? and tag_key = 'regrpo.sha256'",
            [source[8:]],
        ).fetchone()
    assert sha == (tags["regrpo.output.models/grpo"],)


def test_the_first_champion_needs_audit_and_doctor_and_a_better_one_takes_its_place(
    here: Path,
) -> None:
    promoted("run0")
    assert promoted("run0", "champion")["replaced"] is None
    assert registered()["aliases"] == {"champion": "1"}, "a champion is no candidate any more"
    assert promoted("run0", "champion")["reigns"]

    better = promoted("run1", "champion")
    assert (better["verdict"], better["version"], better["replaced"]) == ("registered", "2", "1")
    assert registered()["aliases"] == {"champion": "2"}
    found = better["comparison"]
    assert (found["difference"], found["gained"], found["lost"], found["questions"]) == (
        0.1,
        4,
        0,
        QUESTIONS,
    )
    tags = registered()["tags"]["2"]
    assert tags["regrpo.comparison.difference"] == "0.1"
    assert tags["regrpo.comparison.champion_version"] == "1"
    assert float(tags["regrpo.comparison.ci95_low"]) >= 0
    assert r"with champion (version 1): +10.0 points \[" in registered()["about"]["2"][0]


def test_a_worse_run_stays_out_and_nothing_is_changed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted("run0", "champion")
    before = registered()
    assert cli.main(["promote", "run2", "--alias", "champion"]) == 1
    said = capsys.readouterr()
    assert "comparison  FAILS" in said.out
    assert (
        "run2 does not become champion: comparison: with champion (version 1): -25.0 points ["
        in said.err
    )
    assert (
        "-3.0 points is allowed (promote.max_loss); "
        "the loss is significant (McNemar p = 0.002, under 0.05" in said.err
    )
    assert registered() == before
    assert promoted("run2")["version"] == "2", "a candidate may be worse"
    assert registered()["aliases"] == {"champion": "1", "candidate": "2"}


def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["promote", "run0", "--alias", "champion", "--dry-run"]) == 0
    assert f"{NAME} version (new) would be champion" in capsys.readouterr().out
    assert cli.main(["promote", "run0", "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["alias"], printed["dry_run"]) == (NAME, "candidate", True)
    assert registered() == {"tags": {}, "aliases": {}, "about": {}}


def test_a_fault_of_the_audit_bars_the_champion_and_is_named(copy: Path) -> None:
    weights = copy / "models/grpo/model.safetensors"
    md5 = profiles.read_yaml(copy / "dvc.lock")["stages"]["grpo"]["outs"][0]["md5"]
    listing = json.loads((copy / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}").read_text())
    cached = copy / f".dvc/cache/files/md5/{listing[0]['md5'][:2]}/{listing[0]['md5'][2:]}"
    cached.chmod(0o644)
    cached.write_bytes(weights.read_bytes()[:-2] + b"x\n")
    result = promoted("run4", "champion")
    assert (result["verdict"], rules(result)["audit"]) == ("refused", "fails")
    assert "models/grpo/model.safetensors: DVC's cache: object" in result["rules"][0]["text"]
    assert registered()["aliases"] == {}


def test_what_the_audit_cannot_look_at_bars_the_champion_with_code_2(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(copy, "git", "checkout", "-q", "run1")
    md5 = profiles.read_yaml(copy / "dvc.lock")["stages"]["grpo"]["outs"][0]["md5"]
    (copy / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}").unlink()
    assert cli.main(["promote", "run1", "--alias", "champion"]) == 2
    said = capsys.readouterr().err
    assert (
        "run1 does not become champion: audit: not checkable: "
        "models/grpo: neither here nor in DVC's cache" in said
    )
    assert registered()["aliases"] == {}


def test_a_fatal_verdict_of_the_doctor_bars_the_champion(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["promote", "run4", "--alias", "champion"]) == 1
    assert (
        "run4 does not become champion: doctor: fatal: not_finite at step 3"
        in capsys.readouterr().err
    )


def test_runs_with_different_questions_are_not_compared(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted("run0", "champion")
    assert cli.main(["promote", "run3", "--alias", "champion"]) == 2
    said = capsys.readouterr().err
    assert (
        "heldout: expected both runs evaluated on the same questions; "
        "found 0 shared of 40 here and 40 there" in said
    )
    assert rules(promoted("run3"))["comparison"] == "unknown", "it may be a candidate all the same"


def test_a_champion_whose_samples_are_gone_is_told(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote, "audit", audited_once)  # it is the champion that lacks something
    promoted("run0", "champion")
    run(copy, "git", "checkout", "-q", "run0")
    stage = profiles.read_yaml(copy / "dvc.lock")["stages"]["evaluate"]
    run(copy, "git", "checkout", "-q", "main")
    md5 = next(out["md5"] for out in stage["outs"] if out["path"] == SAMPLES)
    (copy / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}").unlink()
    result = promoted("run1", "champion")
    assert (result["verdict"], rules(result)["comparison"]) == ("not checkable", "unknown")
    assert "is not in DVC's cache, or altered there" in result["rules"][-1]["text"]

    with contextlib.closing(sqlite3.connect("mlflow.db")) as db, db:
        db.execute(
            "update model_version_tags set value = ? where key = 'regrpo.stage.evaluate'",
            ["0" * 32],
        )
    assert "found none of that name" in promoted("run1", "champion")["rules"][-1]["text"]
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db, db:
        db.execute("delete from model_version_tags where key = 'regrpo.stage.evaluate'")
    assert "registered by other means" in promoted("run1", "champion")["rules"][-1]["text"]


def test_an_unknown_run_an_unfinished_one_and_one_whose_results_are_gone_are_told_apart(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["promote", "nothing"]) == 2
    assert "found none of that name" in capsys.readouterr().err

    from mlflow import MlflowClient

    client = MlflowClient(address.tracking_uri())
    failed = client.create_run("1").info.run_id
    client.set_terminated(failed, "FAILED")
    assert cli.main(["promote", failed]) == 2
    assert "found none: it is no run of a pipeline (foreign)" in capsys.readouterr().err

    lock = profiles.read_yaml(copy / "dvc.lock")
    del lock["stages"]["evaluate"], lock["stages"]["model_card"]
    files.write_json(copy / "dvc.lock", lock)
    commit(copy, "half a run")
    assert cli.main(["promote", "HEAD"]) == 2
    assert (
        "revision HEAD: expected a finished pipeline; found no finished evaluate, model_card"
        in capsys.readouterr().err
    )


def test_records_that_do_not_fit_together_are_refused(copy: Path) -> None:
    [record] = files.read_json(copy / "reports/grpo/run.json")
    files.write_json(copy / "reports/grpo/run.json", [record | {"seconds": 0.0}])
    commit(copy, "edited")
    with pytest.raises(Refused, match="`regrpo audit HEAD` names them"):
        promoted("HEAD")


def test_mlflow_out_of_reach_is_one_line(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri in ("http://user:secret@127.0.0.1:9", address.sqlite_uri(copy / "none.db")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert cli.main(["promote", "run0"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "expected an MLflow store" in said
        assert "secret" not in said
    assert not (copy / "none.db").exists()


def test_another_store_than_the_run_was_told_to_is_told(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db, db:
        db.execute("delete from logged_model_tags")
    with pytest.raises(
        CannotCheck, match="expected the model that run0's grpo stage logged; found none"
    ):
        promoted("run0")


def test_the_rule_is_the_workspace_profiles_and_not_the_runs_own(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote, "audit", audited_once)
    promoted("run0", "champion")
    changed = {"task": "nothing_like_it", "require_statement": True}
    edit_yaml(copy / "params.yaml", {"promote": changed})
    result = promoted("run1", "champion")
    assert rules(result)["comparison"] == "unknown"
    assert rules(result)["statement"] == "fails", "none was asked for when it was made"
    assert (
        "promote.task: nothing_like_it: expected a task that both runs were asked"
        in result["rules"][-1]["text"]
    )
