"""The gate: what a verdict says of good and of bad splits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regrpo.inputs import expectations, gate
from regrpo.inputs.checks import CHECKS
from stages import validate
from tests.support.splits import LIMITS, failed, good, row


def test_good_data_passes_every_check_in_every_split_without_a_word(
    check: Callable[..., gate.Verdict], capfd: pytest.CaptureFixture[str]
) -> None:
    verdict = check(good())
    assert failed(verdict) == {}
    report = verdict.as_json()
    assert (report["passed"], report["failed_checks"]) == (True, 0)
    assert report["rows"] == dict.fromkeys(("sft", "train", "dev", "eval"), 4)
    run_on: dict[str, list[str]] = {}
    for one in report["checks"]:
        run_on.setdefault(one["check"], []).append(one["split"])
        assert one["expectation"].startswith("expect_")
        assert (one["failed"], one["passed"]) == (0, True)
    assert [*run_on] == [name for name in CHECKS if name != "template_keeps"]
    not_everywhere = {
        name: splits for name, splits in run_on.items() if splits != ["sft", "train", "dev", "eval"]
    }
    assert not_everywhere == {"class_unique": ["dev", "eval"], "turn_ends": ["sft"]}
    assert len(verdict.failure_table()) == 0
    assert check(good()) == verdict
    assert capfd.readouterr() == ("", "")


def test_what_the_table_does_not_hold_is_counted_and_said(
    check: Callable[..., gate.Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectations, "KEPT", 30)
    verdict = check({"train": [row("train", i, f"{100 + i}+1=", answer="?") for i in range(50)]})
    assert (verdict.failed[0].failed, len(verdict.failure_table())) == (50, 30)
    dataset = dict.fromkeys(
        ("source", "license", "format", "verifier", "prompt_style", "revision"), "a"
    )
    assert "The first 20; the first 30 are in failures.parquet." in validate.page(
        verdict, dataset, LIMITS
    )


def test_an_empty_sft_split_is_allowed_and_an_empty_train_split_is_not(
    check: Callable[..., gate.Verdict],
) -> None:
    assert failed(check({"sft": [], "train": []})) == {("row_count", "train"): ["train"]}


def test_a_message_shows_the_first_20_of_many_rows_and_the_table_keeps_them_all(
    check: Callable[..., gate.Verdict],
) -> None:
    verdict = check({"train": [row("train", i, f"{100 + i}+1=", answer="?") for i in range(50)]})
    first, remedy = verdict.message().splitlines()
    assert first.startswith(
        "  answer_parses in train, 50 failed: train-0 (source row 0: '?'); train-1 ("
    )
    assert first.endswith("train-19 (source row 19: '?'); and 30 more")
    assert first.count("source row") == 20
    assert remedy.strip() == CHECKS["answer_parses"].remedy.removesuffix(".")
    assert list(verdict.failure_table()["id"]) == [f"train-{i}" for i in range(50)]
