"""A folder in which sft and grpo can train."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from regrpo.train import curves
from tests.support.finished import made_once
from tests.support.projects import SUMS
from tests.support.trainings import warm_up


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a base model and a short warm start, made once; nothing changes them."""
    # SFTTrainer prepares every row each time; of so few the model learns enough for some reward.
    make = partial(warm_up, prepare={"source": SUMS | {"size": 1500}}, sft={"max_steps": 80})
    return made_once(tmp_path_factory, "training", make)


@pytest.fixture(scope="module")
def folder(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of it for a module, as the working folder; grpo's curves are not drawn."""
    path = tmp_path_factory.mktemp("training") / "copy"
    shutil.copytree(warm, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(curves, "draw", lambda rows, path: path.touch())
        yield path
