"""Finding tasks, and what is refused; classifiers as metrics."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.evaluate import harness, tasks
from tests.support.questions import ask, known, write_data


@pytest.fixture(scope="module", autouse=True)
def few_stock_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two of lm-eval's own tasks, of thousands whose YAML files take seconds to read."""
    from lm_eval.tasks import manager

    folder = tmp_path_factory.mktemp("stock")
    for name in ("gsm8k", "gsm8k_platinum"):
        shutil.copytree(Path(manager.__file__).parent / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "__file__", str(folder / "manager.py"))
        yield


def test_an_unknown_task_is_refused_with_the_nearest_names(root: Path) -> None:
    write_data(root)
    (root / "custom/eval_tasks/broken.yaml").write_text("task: [mine\n")
    found = (
        r"'heldout_sampeld', which is none; custom/eval_tasks/broken\.yaml cannot be read as YAML"
    )
    with pytest.raises(Refused, match=rf"{found}\. Did you mean heldout_sampled"):
        tasks.find_tasks(["heldout", "heldout_sampeld"], "exact_int")


def test_our_tasks_are_refused_where_the_data_have_no_verifier_and_others_are_not(
    root: Path,
) -> None:
    write_data(root, verifier="none")
    with pytest.raises(
        Refused,
        match=r"heldout: .*verifier none\)\. Name heldout_text, tasks of your own .* or lm-eval's",
    ):
        tasks.find_tasks(["heldout"], "none")
    (task,) = tasks.find_tasks(["example_two_terms"], "none")
    assert [metric.key for metric in task.metrics] == ["example_two_terms"]


def test_a_stock_task_keeps_its_own_metrics(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def local(path: str, name: str | None = None, **_: Any) -> Any:
        assert path == "openai/gsm8k"
        rows = [
            {"question": f"What is {n} and 1?", "answer": f"It is more.\n#### {n + 1}"}
            for n in range(8)
        ]
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    (task,) = tasks.find_tasks(["gsm8k"], "exact_int")
    assert [(metric.key, metric.label, metric.role) for metric in task.metrics] == [
        ("gsm8k", "exact_match,strict-match", "stock"),
        ("gsm8k_exact_match_flexible-extract", "exact_match,flexible-extract", "stock"),
    ]
    lm = known(lambda context: "It is 5, so the answer is 5.")
    found = harness.ask(task, lm, chat=False, max_gen_toks=9, limit=None, seed=0)
    right = {
        row["task"]: sum(one["value"] for one in found if one["task"] == row["task"])
        for row in found
    }
    assert right == {"gsm8k": 0, "gsm8k_exact_match_flexible-extract": 1}


def test_data_out_of_reach_are_told_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        CannotCheck, match=r"example_two_terms: .*found ConnectionError: no network\. Mend custom/"
    ):
        ask("example_two_terms", None)


def test_a_metric_that_is_no_mean_over_questions_is_refused(root: Path) -> None:
    text = (root / "custom/eval_tasks/example.yaml").read_text()
    (root / "custom/eval_tasks/middle.yaml").write_text(
        text.replace("example_two_terms", "middle").replace(
            "aggregation: mean", "aggregation: median"
        )
    )
    with pytest.raises(Refused, match="middle: expected a metric that is a mean over questions"):
        ask("middle", known(lambda context: ""))


def test_text_is_compared_with_its_reference_and_judged(root: Path) -> None:
    from types import SimpleNamespace

    rows = write_data(root, verifier="none", questions=3)
    for row in rows:
        row |= {"answer": f"the sum of {row['id']} is {row['answer']}", "solution": None}
    files.write_parquet(root / "data/prepared/eval.parquet", pd.DataFrame(rows))
    length = SimpleNamespace(
        spec=SimpleNamespace(positive=["long"], negative=[]),
        values=lambda texts: [len(text) / 100 for text in texts],
    )
    judges: Any = {"length": length, "again": length}
    (found,) = tasks.find_tasks(["heldout_text"], "none")
    task = tasks.with_judges(found, judges)
    lm = known(lambda context: next(row["answer"] for row in rows if row["prompt"] == context))
    asked = harness.ask(task, lm, chat=False, max_gen_toks=9, limit=None, seed=0)
    judged = tasks.judged(task, asked, judges)
    by_metric = {
        key: [row["value"] for row in (*asked, *judged) if row["task"] == key]
        for key in (metric.key for metric in task.metrics)
    }
    assert by_metric["heldout_text"] == [1.0] * 3
    assert by_metric["heldout_text_chrf"] == pytest.approx([100.0] * 3)
    assert (
        by_metric["heldout_text_classifiers"]
        == by_metric["heldout_text_length"]
        == by_metric["heldout_text_again"]
    )
    assert by_metric["heldout_text_length"] == [len(row["answer"]) / 100 for row in rows]
    assert {metric.kind for metric in task.metrics} == {"continuous"}
    assert tasks.with_judges(found, {}) == found


def test_a_question_without_reference_is_refused_by_name(root: Path) -> None:
    rows = write_data(root, verifier="none", questions=4)
    rows[2]["answer"] = None
    files.write_parquet(root / "data/prepared/eval.parquet", pd.DataFrame(rows))
    with pytest.raises(
        Refused, match=r"eval\.parquet: expected a reference .*found none for q02\."
    ):
        tasks.find_tasks(["heldout_text"], "none")


def test_where_few_shot_examples_come_from_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def local(path: str, name: str | None = None, **_: Any) -> Any:
        rows = [{"question": f"What is {n} and 1?", "answer": f"#### {n + 1}"} for n in range(8)]
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    found = {
        task.name: task.few_shot
        for task in tasks.find_tasks(["gsm8k", "gsm8k_platinum"], "exact_int")
    }
    assert found["gsm8k"] == {"examples": 5, "dataset": "openai/gsm8k", "split": "train"}
    assert found["gsm8k_platinum"] == {
        "examples": 5,
        "dataset": "madrylab/gsm8k-platinum",
        "split": "test",
    }
    write_data(root)
    assert tasks.find_tasks(["heldout"], "exact_int")[0].few_shot is None
