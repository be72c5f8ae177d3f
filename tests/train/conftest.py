"""A folder in which sft and grpo can train."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrpo.train import curves
from tests.support.trainings import warmed_up


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a base model and a short warm start, made once; nothing changes them."""
    return warmed_up(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of it for a module, as the working folder; grpo's curves are not drawn."""
    path = tmp_path_factory.mktemp("training") / "copy"
    shutil.copytree(warm, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(curves, "draw", lambda rows, path: path.touch())
        yield path
