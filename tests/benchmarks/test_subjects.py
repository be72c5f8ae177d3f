"""What the subjects of benchmarks/ make of what they measured; nothing is timed."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files
from tests.support import projects

BENCHMARKS = projects.ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's neighbours are beside it, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_every_subject_measures() -> None:
    for name in module("bench").SUBJECTS:
        assert callable(module(name).measure), name


# --- process_start --------------------------------------------------------------------------------

SAID = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |   _io
import time:       900 |       1000 | encodings
stage: a line of its own
import time:   1500000 |    1500000 |     torch._C
import time:    500000 |    2000000 |   torch
import time:    250000 |    2250000 | transformers.models
import time:        10 |         10 | json
"""


def test_what_a_process_imported_for_another_module_is_not_asked_for() -> None:
    assert module("process_start").asked_for(SAID) == ["encodings", "transformers.models", "json"]


def test_a_packages_own_time_is_what_is_named() -> None:
    said = module("process_start").longest(SAID)
    assert said.startswith("torch 2.0, transformers 0.2"), said


def test_modules_are_imported_again_and_what_is_gone_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("open('imported', 'w')")
    module("process_start").import_again(tmp_path, ["no_such_module", "there"])
    assert (tmp_path / "imported").exists()


# --- data -----------------------------------------------------------------------------------------


def test_a_part_that_another_calls_counts_alone() -> None:
    parts = module("data_case").Parts()

    class Work:
        def outer(self) -> int:
            time.sleep(0.01)
            return self.inner()

        def inner(self) -> int:
            time.sleep(0.05)
            return 7

        def rows(self) -> Any:
            time.sleep(0.01)
            yield 1
            yield 2

    parts.watch("outer", Work, "outer")
    parts.watch("inner", Work, "inner")
    parts.watch_rows("rows", Work, "rows")
    began = time.perf_counter()
    assert Work().outer() == 7
    for _ in Work().rows():
        time.sleep(0.02)
    parts.credit()
    passed = time.perf_counter() - began
    assert set(parts.seconds) == {"outer", "inner", "rows", "all else"}
    assert parts.seconds["inner"] >= 0.05
    assert parts.seconds["all else"] >= 0.04  # what the reader of the rows did between them
    assert parts.seconds["outer"] <= passed - 0.05
    assert sum(parts.seconds.values()) == pytest.approx(passed, abs=0.02)


def taken(seconds: float, peak: float = 300.0, **parts: float) -> list[dict[str, Any]]:
    return [{"seconds": seconds, "peak": peak, "parts": parts}] * 3


def test_the_gate_stands_beside_great_expectations_and_is_itemised() -> None:
    works = {
        "prepare": taken(2.0),
        "pyarrow, source": taken(0.5),
        "validate": taken(10.0, tokenizer=4.0, verifier=6.0),
        "pyarrow, splits": taken(0.1),
        "Great Expectations": taken(5.0),
    }
    rows = {row.what: row for row in module("data_speed").rows_of(1000, works)}
    assert rows["prepare, 1,000 rows"].ours == 500.0
    assert rows["prepare, 1,000 rows, beside pyarrow reading the source"].ratio == 4.0
    assert rows["validate, 1,000 rows, beside Great Expectations alone"].ratio == 2.0
    assert rows["1,000 rows: verifier"].ours == 6.0
    del works["Great Expectations"]
    rows = {row.what: row for row in module("data_speed").rows_of(1000, works)}
    skipped = rows["validate, 1,000 rows, beside Great Expectations alone"]
    assert skipped.ours is None
    assert skipped.note.startswith("skipped: Great Expectations: ")


def test_a_peak_is_held_to_the_one_before_from_a_hundred_thousand_rows() -> None:
    peaks = {10_000: [200.0, 210.0], 100_000: [400.0, 410.0], 1_000_000: [500.0]}
    first, second, third = module("data_speed").growth("validate", peaks)
    timing = module("timing")
    assert (first.ours, first.ratio, timing.holds(second)) == (205.0, None, None)
    assert (third.what, third.ratio) == ("validate, 1,000,000 rows, peak beside 100,000's", 1.25)
    assert timing.holds(third) is False


# --- evaluate -------------------------------------------------------------------------------------


def write_answers(out: Path, folder: Path, said: str) -> None:
    """lm_eval's answers, and the stage's, to one question of a model."""
    (out / "sft/models__sft").mkdir(parents=True)
    sample = {"doc": {"id": "a"}, "resps": [["<answer>2"]]}
    path = out / "sft/models__sft/samples_heldout_2026-11-28T00-00-00.000000.jsonl"
    path.write_text(json.dumps(sample) + "\n")
    row = {"task": "heldout", "model": "sft", "id": "a", "completion": said}
    others = [row | {"task": "heldout_sampled"}, row | {"task": "heldout:format"}]
    import pandas as pd

    path = folder / "reports/evaluate/samples.parquet"
    files.write_parquet(path, pd.DataFrame([row, *others]))


def test_answers_of_lm_eval_are_those_of_the_stage(tmp_path: Path) -> None:
    evaluate = module("evaluate_speed")
    write_answers(tmp_path / "out", tmp_path, "<answer>2")
    theirs = evaluate.answers(tmp_path / "out")
    assert theirs == {("heldout", "sft", "a"): "<answer>2"}
    assert evaluate.require_same(tmp_path, theirs) == 1
    with pytest.raises(RuntimeError, match="no question in common"):
        evaluate.require_same(tmp_path, {})


def test_another_answer_than_lm_evals_is_no_comparison(tmp_path: Path) -> None:
    evaluate = module("evaluate_speed")
    write_answers(tmp_path / "out", tmp_path, "<answer>3")
    with pytest.raises(RuntimeError, match="lm_eval '<answer>2', evaluate '<answer>3'"):
        evaluate.require_same(tmp_path, evaluate.answers(tmp_path / "out"))
