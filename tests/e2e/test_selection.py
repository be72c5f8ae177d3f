"""A pipeline that samples answers and trains on the questions in a band of pass rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrpo.core import files
from regrpo.core.pipeline import out_md5s
from regrpo.core.profiles import read_yaml
from tests.support.projects import MINIATURE, SUMS, make_project, run, run_pipeline

SECTIONS = MINIATURE | {
    "prepare": MINIATURE["prepare"] | {"source": SUMS | {"size": 2500}},
    "select": {"samples": 4, "low": 0.0, "high": 0.2},
    "evaluate": MINIATURE["evaluate"] | {"tasks": ["heldout"]},
}
"""So short a warm start gets few answers right: these are the questions that it always misses."""


@pytest.mark.slow
def test_chosen_questions_are_trained_on_carded_audited_and_chosen_again(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "chosen", SECTIONS)
    run_pipeline(folder)
    found = files.read_json(folder / "reports/select/metrics.json")
    assert 0 < found["kept"] < found["questions"]
    rows = files.read_rows(folder / "data/selected/train.parquet")
    rates = files.read_rows(folder / "data/selected/pass_rates.parquet")
    assert [row["id"] for row in rows] == [row["id"] for row in rates if row["pass_rate"] == 0]
    card = (folder / "reports/model_card/README.md").read_text()
    assert f"GRPO trained on {found['kept']:,} of {found['questions']:,} questions" in card
    run(folder, "python", "-m", "regrpo.cli", "audit")
    before = out_md5s(read_yaml(folder / "dvc.lock")["stages"]["select"])
    run(folder, "dvc", "repro", "--force", "--single-item", "select")
    after = out_md5s(read_yaml(folder / "dvc.lock")["stages"]["select"])
    record = "reports/select/run.json"
    assert before.pop(record) != after.pop(record), "it ran again"
    assert before == after
