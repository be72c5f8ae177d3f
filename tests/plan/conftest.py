"""A project without git, planned on a machine without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo.plan import model_shape
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


ADAPTERS: dict[tuple[str, str], model_shape.Adapter] = {}
MADE_BY_PEFT = model_shape.adapter


def adapter(config: Any, lora: Any, key: str) -> model_shape.Adapter:
    """PEFT's adapter, made once for a configuration: most plans ask for the same two."""
    asked = config.to_json_string(), lora.model_dump_json()
    if asked not in ADAPTERS:
        ADAPTERS[asked] = MADE_BY_PEFT(config, lora, key)
    return ADAPTERS[asked]


@pytest.fixture(autouse=True)
def adapters_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_shape, "adapter", adapter)
