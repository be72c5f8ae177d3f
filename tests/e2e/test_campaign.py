"""Five trials of the fault campaign (docs/reliability.md has the table of sixty made by hand)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.campaign import draw, made, make_trial
from tests.support.faults import FAULTS

SEED = 7
TRIALS = [3, 6, 7, 8, 9]
"""SIGTERM to dvc, SIGSTOP, a full disk, a cut network, a corrupt byte; test_kills.py kills."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.slow
@pytest.mark.parametrize("number", TRIALS)
def test_make_repro_after_a_fault_ends_in_the_same_bytes(number: int, work: Path) -> None:
    line = make_trial(SEED, number, work)
    assert line["problems"] == [], line
    assert line["next"] == {"check": 0, "repro": 0, "sync": 0, "report": 0}


def test_a_trial_follows_from_the_seed_and_its_number() -> None:
    assert draw(1, 13)[:3] == draw(1, 13)[:3]
    assert draw(1, 13)[:3] != draw(2, 13)[:3]
    assert [draw(1, number)[0] for number in range(len(FAULTS))] == list(FAULTS)


def test_trials_that_stand_in_the_log_are_not_made_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert made(log, 1) == set()
    log.write_text('{"trial": 0, "seed": 1}\n{"trial": 4, "seed": 1}\n{"trial": 2, "seed": 2}\n')
    assert made(log, 1) == {0, 4}
