"""Fixtures for every folder of tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.custom_code import custom
from tests.support.finished import copy, empty_store, finished, told, undisturbed
from tests.support.projects import MINIATURE, make_project

__all__ = ["copy", "custom", "empty_store", "finished", "told", "undisturbed"]

LONGEST = (
    "e2e/test_miniature.py",
    "train/test_training.py",
    "audit/test_audit.py",  # makes the finished pipeline while the first is still running
    "train/test_checkpoints.py",
    "compare/test_promote.py",
    "compare/test_compare.py",
    "evaluate/test_evaluate.py",
    "audit/test_reproduce.py",
    "report/test_model_card.py",
    "inputs/test_validate.py",
    "inputs/test_checks.py",
    "test_packaging.py",
    "train/test_chat.py",
    "train/test_generation.py",
    "tracking/test_follower.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules: at the end no process waits for one of them."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def no_power_loss() -> Iterator[None]:
    """Nobody waits for the disk: thousands of files would take milliseconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What earlier modules imported is looked through for garbage once.

    statsmodels and transformers collect again and again: a quarter of test_compare.py's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Makes a miniature project in the test's own folder."""

    def make(
        sections: Mapping[str, Mapping[str, Any]] = MINIATURE,
        name: str = "project",
        with_git: bool = True,
    ) -> Path:
        return make_project(tmp_path / name, sections, with_git)

    return make
