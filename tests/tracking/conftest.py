"""One MLflow database for all of these tests, an experiment of its own for each."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regrpo.tracking import passes
from regrpo.tracking.address import sqlite_uri

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    """One database for these tests; each has an experiment of its own in it."""
    return sqlite_uri(shutil.copyfile(empty_store, tmp_path_factory.mktemp("mlflow") / "mlflow.db"))


@pytest.fixture
def root(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository that is told to that database."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "REGRPO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    return tmp_path


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    opened = passes.open_store()
    with contextlib.closing(opened):
        yield opened
