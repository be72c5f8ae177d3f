"""A project without git, planned on a machine without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.plans import GEMMA
from tests.support.projects import edit_yaml


@pytest.fixture
def here(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = project({}, with_git=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.import_module("torch").cuda, "is_available", lambda: False)
    return folder


@pytest.fixture
def gemma(here: Path) -> Path:
    """Gemma's profile, asked our task only: lm-eval's own are looked up in 14,000 files."""
    edit_yaml(here / GEMMA, {"evaluate": {"tasks": ["heldout"]}})
    return here / GEMMA
