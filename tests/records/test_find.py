"""Every name of a run leads to the place that holds its files; what leads nowhere is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import Snapshot
from regrpo.core.profiles import STAGES
from regrpo.records.find import Finder, Place, require_git, workspace
from tests.support.pipelines import commit, digest, write_stage


class Rows:
    """MLflow's rows, in memory; `problem` is why there is no answer."""

    def __init__(self, *rows: dict[str, Any], problem: str | None = None) -> None:
        self.rows, self.problem, self.questions = rows, problem, 0

    def run(self, run_id: str) -> dict[str, Any] | None:
        return next((row for row in self._answer() if row["id"] == run_id), None)

    def tagged(self, **tags: str) -> list[dict[str, Any]]:
        wanted = {name.replace("__", "."): value for name, value in tags.items()}
        return [row for row in self._answer() if wanted.items() <= row["tags"].items()]

    def _answer(self) -> Sequence[dict[str, Any]]:
        self.questions += 1
        if self.problem:
            raise CannotCheck("MLflow", expected="an answer", found=self.problem, remedy="Wait.")
        return self.rows


def row(name: str, version: int | None = None, status: str = "FINISHED", **tags: str) -> Any:
    """A row of MLflow; with `version`, of the pipeline that `write_runs` writes."""
    every = {"regrpo.kind": "pipeline"} | {
        f"regrpo.{tag.replace('__', '.')}": value for tag, value in tags.items()
    }
    if version is not None:
        every |= {f"regrpo.stage.{stage}": own_id(stage, version) for stage in STAGES}
    return {"id": digest(name)[:32], "status": status, "deleted": False, "tags": every}


def own_id(stage: str, version: int) -> str:
    return digest(f"own {stage} {version}")[:32]


def mlflow_id(stage: str, version: int) -> str:
    return digest(f"mlflow {stage} {version}")[:32]


def write_runs(root: Path, version: int) -> None:
    for stage in STAGES:
        ids = {"run": own_id(stage, version), "mlflow_run_id": mlflow_id(stage, version)}
        write_stage(root, stage, version, **ids)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with run 0 committed and run 1 in the workspace."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    write_runs(tmp_path, 0)
    commit(tmp_path)
    write_runs(tmp_path, 1)
    return tmp_path


def head(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def experiment(root: Path, name: str, version: int) -> str:
    """Run `version` as a DVC experiment on HEAD, which stays where it is; returns its commit."""
    baseline = head(root)
    write_runs(root, version)
    made = commit(root, f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}")
    subprocess.run(["git", "-C", str(root), "reset", "-q", "--hard", baseline], check=True)
    return made


def refused(root: Path, target: str, rows: Rows | None = None) -> str:
    with pytest.raises(CannotCheck) as caught:
        Finder(root, rows).find(target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_name_and_two_names_are_the_workspace(root: Path) -> None:
    for target in (None, "workspace", "."):
        assert Finder(root).find(target) == Place("workspace", Snapshot(root))


def test_a_stage_run_is_found_by_its_ids_and_by_their_first_digits(root: Path) -> None:
    for version, revision, name in (
        (0, head(root), f"commit {head(root)[:12]}"),
        (1, None, "workspace"),
    ):
        for target in (
            own_id("sft", version),
            mlflow_id("sft", version),
            own_id("sft", version)[:8],
        ):
            found = Finder(root).find(target)
            assert found == Place(name, Snapshot(root, revision), mlflow_id("sft", version))


def test_the_oldest_commit_that_holds_a_run_is_the_one_that_made_it(root: Path) -> None:
    first = head(root)
    write_stage(root, "model_card", 2, run=own_id("model_card", 2))
    commit(root)
    assert Finder(root, committed=True).find(own_id("sft", 0)).snapshot.revision == first


def test_what_is_not_committed_does_not_count_where_only_git_does(root: Path) -> None:
    with pytest.raises(CannotCheck, match="found none of that name"):
        Finder(root, committed=True).find(own_id("sft", 1))
    assert Finder(root, committed=True).find("HEAD").snapshot.revision == head(root)


def test_revisions_and_experiments_are_found_by_name(root: Path) -> None:
    made = experiment(root, "mine", 2)
    assert Finder(root).find("mine") == Place("experiment mine", Snapshot(root, made))
    assert Finder(root).find("HEAD") == Place("revision HEAD", Snapshot(root, head(root)))
    assert Finder(root).find(own_id("grpo", 2)).name == "experiment mine"


def test_a_name_of_two_commits_is_refused(root: Path) -> None:
    made = experiment(root, "mine", 2)
    subprocess.run(["git", "-C", str(root), "update-ref", "refs/tags/mine", made], check=True)
    assert Finder(root).find("mine").snapshot.revision == made, "two names of one commit"
    subprocess.run(["git", "-C", str(root), "update-ref", "refs/tags/mine", "HEAD"], check=True)
    said = refused(root, "mine")
    assert "Give the commit instead" in said
    assert all(commit[:12] in said for commit in (made, head(root)))


def test_a_pipelines_row_is_found_where_its_own_runs_are(root: Path) -> None:
    """Not where some of them are: other runs of later stages are another pipeline."""
    write_stage(root, "grpo", 0, run="a" * 32)
    rows = Rows(
        row("zero", 0), row("one", 1), row("again", kind="reproduction", revision=head(root))
    )
    found = Finder(root, rows).find(digest("zero")[:32])
    assert (found.snapshot.revision, found.mlflow_run_id) == (head(root), digest("zero")[:32])
    assert Finder(root, rows).find(digest("again")[:32]).snapshot.revision == head(root)
    assert "its results were never committed here" in refused(root, digest("one")[:32], rows)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (row("x", 7), "its results were never committed here"),
        (row("x", 7, experiment="gone"), "its DVC experiment 'gone' was removed"),
        (row("x", 0, "RUNNING"), "still running, says MLflow"),
        (row("x", 0, "FAILED"), "failed, says MLflow"),
        (row("x", kind="tuning"), "it is no run of a pipeline (tuning)"),
        (row("x", kind="reproduction"), "it is no run of a pipeline (reproduction)"),
    ],
)
def test_a_row_whose_results_are_nowhere_is_told_why(root: Path, known: Any, why: str) -> None:
    said = refused(root, known["id"], Rows(known))
    assert (
        f"expected a commit that holds the run's dvc.lock and run.json files; found none: {why}"
        in said
    )


@pytest.mark.parametrize(
    "name", ["nonsense", "0" * 32, "0" * 40, "0" * 9, "--upload-pack=x", "", "a'b"]
)
def test_an_unknown_name_is_refused(root: Path, name: str) -> None:
    for rows in (None, Rows()):
        assert (
            "expected an MLflow run id, a git revision or a DVC experiment; found none"
            in refused(root, name, rows)
        )


def test_mlflow_remembers_an_experiment_that_was_removed(root: Path) -> None:
    rows = Rows(row("x", 7, experiment="gone"))
    said = refused(root, "gone", rows)
    assert f"it was removed; run {rows.rows[0]['id']}" in said


def test_mlflow_is_asked_only_about_what_no_file_holds_and_no_second_time(root: Path) -> None:
    rows = Rows(problem="no answer within 8 s")
    finder = Finder(root, rows)
    named = finder.each(["workspace", "HEAD", own_id("sft", 0)])
    assert rows.questions == 0
    assert all(one.place for one in named)
    first, second = finder.each(["0" * 32, "nonsense"])
    assert rows.questions == 1
    assert first.problem == "none of that name (MLflow could not be asked: no answer within 8 s)"
    assert second.problem == first.problem
    assert finder.mlflow_problem == "MLflow could not be asked: no answer within 8 s"


def test_a_sweep_is_its_experiments_and_its_rows_in_the_order_of_numbers(root: Path) -> None:
    for number in (10, 2):
        experiment(root, f"lr-{number}", number)
    experiment(root, "lr-two", 20)
    rows = Rows(
        row("two", 2, sweep="lr", experiment="lr-2"),
        row("three", 3, "FAILED", sweep="lr", experiment="lr-3"),
        row("other", 4, sweep="beta", experiment="beta-1"),
    )
    members = Finder(root, rows).sweep("lr")
    assert [(one.name, one.place is not None) for one in members] == [
        ("lr-2", True),
        ("lr-3", False),
        ("lr-10", True),
    ]
    assert members[1].problem == "none: failed, says MLflow"


def test_experiments_of_one_name_on_two_baselines_are_both_in_the_sweep(root: Path) -> None:
    experiment(root, "lr-1", 2)
    commit(root)
    experiment(root, "lr-1", 3)
    names = [one.name for one in Finder(root).sweep("lr")]
    assert len(names) == 2
    assert "lr-1" in names
    assert all(name.startswith("lr-1") for name in names)


def test_a_sweep_that_nobody_knows_is_refused(root: Path) -> None:
    with pytest.raises(
        CannotCheck, match=r"expected DVC experiments lr-1, lr-2, …, or MLflow rows"
    ):
        Finder(root, Rows()).sweep("lr")
    with pytest.raises(
        CannotCheck, match=r"none queued under that name \(MLflow could not be asked"
    ):
        Finder(root, Rows(problem="it is away")).sweep("lr")


def test_a_folder_that_is_no_repository_of_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotCheck, match=r"found no dvc\.yaml"):
        workspace(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(CannotCheck, match=r"found no \.dvc/"):
        workspace(tmp_path)
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(
        CannotCheck, match=r"expected a git repository around dvc\.yaml; found none"
    ):
        require_git(tmp_path)
    with pytest.raises(
        CannotCheck, match=r"expected a git repository around dvc\.yaml; found none"
    ):
        Finder(tmp_path, committed=True).find("HEAD")
    assert "found no git repository here" in refused(tmp_path, "HEAD")
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    require_git(tmp_path)
