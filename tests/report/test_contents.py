"""What the report page has to show: refused, partial, broken and missing files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo import cli
from regrpo.core.profiles import STAGES
from regrpo.report import contents
from tests.support import pages as made
from tests.support.report_pages import PAGE, read, states, written


@pytest.mark.parametrize("last", STAGES[:-1])
def test_a_pipeline_that_stopped_says_what_is_missing(
    inside: Callable[..., Path], last: str
) -> None:
    inside(upto=last)
    page = written()
    missing = STAGES[STAGES.index(last) + 1 :]
    assert [name for name, state in states().items() if state == "missing"] == list(missing)
    assert "! This pipeline is not whole." in page.words
    for name in missing:
        assert f"{name} not run" in page.words
    assert ("Completions of base, SFT and GRPO cannot be shown" in page.words) == (
        "evaluate" in missing
    )
    assert ("Reward, dev accuracy and length curves cannot be shown" in page.words) == (
        "grpo" in missing
    )
    assert ("The gate's verdict cannot be shown" in page.words) == ("validate" in missing)


def test_refused_data_is_the_first_thing_said_with_rows_and_remedy(
    inside: Callable[..., Path],
) -> None:
    inside(upto="base_model")
    made.write_gate({"question_unique": 9, "answer_parses": 1}, "thirteen")
    page = written()
    assert states()["validate"] == "refused"
    assert "✗ The gate refused this data. 2 of 6 checks failed" in page.words
    assert "question_unique in train: 9 failed" in page.words
    assert "Expected: no question occurs twice in a split." in page.words
    assert "Remove the repeats from the source" in page.words
    assert page.words.count("thirteen") == contents.SHOWN + 1


@pytest.mark.parametrize(
    "path",
    [
        "reports/validate/verdict.json",
        "reports/grpo/health.json",
        "reports/evaluate/metrics.json",
        "reports/evaluate/samples.parquet",
        "reports/base_model/source.json",
        "data/prepared/dataset.json",
        "reports/sft/run.json",
        "dvc.lock",
        "dvc.yaml",
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(
    inside: Callable[..., Path], path: str
) -> None:
    inside()
    for content in (b"{", b"[]", b"\xff\xfe", b'{"verdict": NaN, "stages": {"sft": 1}}'):
        Path(path).write_bytes(content)
        page = written()
        found = read()
        assert not found.complete
        named = [problem for problem in found.problems if problem.startswith(path)]
        assert named or path == "dvc.yaml" or (path, content) == ("dvc.lock", b"[]"), content
        assert all(len(problem) < 400 and "\n" not in problem for problem in found.problems)
        assert "! This pipeline is not whole." in page.words
        assert ("Newly right (" in page.words) == (not path.startswith("reports/evaluate"))
        assert ("✗ unreadable" in page.words) == path.endswith("run.json")


def test_a_history_of_other_things_than_numbers_is_named(inside: Callable[..., Path]) -> None:
    inside()
    for content, problem in (
        ("step,reward\n1,many\n", "could not convert"),
        ("reward\n1\n", "a row without step"),
        ("step,reward\n1,2,3\n", "or of other columns"),
    ):
        Path("reports/grpo/history.csv").write_text(content)
        assert problem in written().words
    Path("reports/grpo/history.csv").write_text("")
    assert "curves cannot be shown" in written().words


def test_nothing_readable_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--no-mlflow"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "expected results of at least one stage; found none. Run `make repro`" in err
    assert not PAGE.exists()
    monkeypatch.chdir(tmp_path.parent)
    assert cli.main(["report", "--no-mlflow"]) == 2
    assert "expected the root of a repository" in capsys.readouterr().err


def test_an_unknown_run_and_an_unwritable_place_are_one_line_each(
    inside: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    inside()
    assert cli.main(["report", "--no-mlflow", "no-such-run"]) == 2
    Path("taken").write_text("a file")
    assert cli.main(["report", "--no-mlflow", "--out", "taken/page.html"]) == 2
    assert [line.partition(": expected")[0] for line in capsys.readouterr().err.splitlines()] == [
        "regrpo report: no-such-run",
        "regrpo report: taken/page.html",
    ]


def test_the_splits_stand_in_the_order_of_their_use() -> None:
    verdict = contents.Verdict(
        passed=True, rows={"dev": 1, "eval": 2, "other": 5, "sft": 3, "train": 4}, checks=[]
    )
    assert [name for name, _ in verdict.splits] == ["sft", "train", "dev", "eval", "other"]
