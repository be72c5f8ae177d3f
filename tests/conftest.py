"""Fixtures for every folder of tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.finished import copy, finished, told, undisturbed
from tests.support.projects import MINIATURE, make_project

__all__ = ["copy", "finished", "told", "undisturbed"]


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
