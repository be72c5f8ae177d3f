"""Questions that go on to grpo: all as they are, or by answers of the warm-started model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core import files, profiles, verifiers
from regrpo.core.errors import Refused
from regrpo.train import generation
from stages import select
from tests.support.trainings import PROFILE, run_for, section

QUESTIONS = 60
EASY = {"samples": 2, "low": 0.0, "high": 0.5, "batch_size": 16}
"""A band that holds something of a model after so short a warm start."""


def choose(**changes: Any) -> list[dict[str, Any]]:
    """Run the stage on samples; what grpo reads then."""
    select.select(run_for(section(select.Params, "select", **EASY | changes), "select"))
    return files.read_rows(select.OUT / "train.parquet")


@pytest.fixture(scope="module")
def few(folder: Path) -> Path:
    """The working folder with few questions, which have a column that was kept."""
    table = pq.read_table(select.TRAIN).slice(0, QUESTIONS)
    table = table.append_column("level", pa.array([n % 3 for n in range(QUESTIONS)]))
    pq.write_table(table, select.TRAIN)
    described = files.read_json(select.DATA / "dataset.json")
    files.write_json(select.DATA / "dataset.json", described | {"keep": ["level"]})
    return folder


@pytest.fixture
def small(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate and a step that so few questions are enough for."""
    step = {"per_device_train_batch_size": 16, "num_generations": 4}
    small_profile = {"validate": {"min_rows": 10}, "grpo": PROFILE["grpo"] | step}
    monkeypatch.setattr(profiles, "active_profile", lambda: Path("params.yaml"))
    monkeypatch.setattr(profiles, "read_profile", lambda path: small_profile)


def test_without_samples_the_split_goes_on_byte_by_byte(folder: Path) -> None:
    select.pass_through(run_for(section(select.Params, "select"), "select"))
    assert [path.name for path in select.OUT.iterdir()] == ["train.parquet"]
    assert (select.OUT / "train.parquet").read_bytes() == select.TRAIN.read_bytes()
    metrics = files.read_json(Path("reports/select/metrics.json"))
    assert metrics["questions"] == metrics["kept"]
    assert metrics["inside"] is None


def test_the_band_of_sampled_answers_goes_on_and_again_the_same(small: None) -> None:
    every = files.read_rows(select.TRAIN)
    kept = choose()
    rates = files.read_rows(select.OUT / "pass_rates.parquet")
    assert [row["id"] for row in rates] == [row["id"] for row in every]
    assert {row["pass_rate"] for row in rates} <= {0.0, 0.5, 1.0}
    inside = [row["id"] for row in rates if row["pass_rate"] <= 0.5]
    assert kept == [row for row in every if row["id"] in inside]
    assert [row["id"] for row in rates if row["kept"]] == inside
    metrics = files.read_json(Path("reports/select/metrics.json"))
    assert (metrics["questions"], metrics["kept"]) == (QUESTIONS, len(inside))
    before = [files.sha256(path) for path in sorted(select.OUT.iterdir())]
    assert choose() == kept
    assert [files.sha256(path) for path in sorted(select.OUT.iterdir())] == before


def test_the_rate_is_the_verifiers_share_of_right_answers(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = files.read_rows(select.TRAIN)
    verifier = verifiers.get_verifier("exact_int")
    assert verifier is not None
    asked: list[dict[str, Any]] = []

    def complete(*_: Any, **settings: Any) -> Any:
        """The first of two answers to each question is right, to each third question both."""
        asked.append(settings)
        for index, row in enumerate(rows):
            right = verifier.render(row["answer"])
            yield [right, right if index % 3 == 0 else "nothing"]

    monkeypatch.setattr(generation, "complete", complete)
    kept = choose(temperature=0.7, top_k=5, min_p=0.1, generation_kwargs={"typical_p": 0.9})
    assert kept == [row for index, row in enumerate(rows) if index % 3]
    assert asked == [
        {
            "max_new_tokens": 14,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.0,
            "typical_p": 0.9,
            "num_return_sequences": 2,
        }
    ]
    control = choose(choose="random", stratify="level")
    levels = [row["level"] for row in control]
    assert (len(control), levels.count(0)) == (40, 0), "the band holds none of level 0"


def test_a_band_that_no_step_can_be_made_of_is_refused(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [0.0] * (QUESTIONS - 3) + [0.5] * 3
    monkeypatch.setattr(select, "pass_rates", lambda *_: rates)
    before = files.sha256(select.OUT / "train.parquet")
    with pytest.raises(Refused, match=r"at least 10 questions \(validate\.min_rows 10; a step of"):
        choose(low=0.2, high=0.8)
    assert files.sha256(select.OUT / "train.parquet") == before


def test_data_without_a_verifier_have_no_rate(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "of_dataset", lambda dataset: None)
    with pytest.raises(Refused, match=r"select\.samples: expected data with a verifier"):
        choose()
