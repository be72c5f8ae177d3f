"""Files of commits are read with one git process; only experiments' references count as such."""

from __future__ import annotations

from pathlib import Path

from regrpo.core.git import Experiment, experiments, read_files
from tests.support.pipelines import commit


def test_files_of_several_commits_are_read_and_what_is_missing_is_none(tmp_path: Path) -> None:
    (tmp_path / "reports" / "sft").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("first\n")
    first = commit(tmp_path)
    (tmp_path / "dvc.lock").write_text("second\n\n")
    (tmp_path / "reports/sft/run.json").write_text("[]")
    second = commit(tmp_path)
    paths = ("dvc.lock", "reports/sft/run.json", "reports/sft", "nothing")
    assert read_files(tmp_path, [first, second, first], paths) == {
        first: dict.fromkeys(paths) | {"dvc.lock": b"first\n"},
        second: dict.fromkeys(paths) | {"dvc.lock": b"second\n\n", "reports/sft/run.json": b"[]"},
    }
    assert read_files(tmp_path, [], paths) == {}
    assert read_files(tmp_path / "reports", ["0" * 40], ["dvc.lock"]) == {
        "0" * 40: {"dvc.lock": None}
    }


def test_only_experiments_are_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "dvc.lock").write_text("{}")
    name = f"refs/exps/{'a' * 2}/{'b' * 38}/lively-one"
    revision = commit(tmp_path, name, "refs/exps/exec/EXEC_HEAD", "refs/exps/stash")
    baseline = "a" * 2 + "b" * 38
    assert experiments(tmp_path) == [Experiment("lively-one", baseline, revision, name)]
