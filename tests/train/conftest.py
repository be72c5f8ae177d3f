"""A folder in which sft and grpo can train."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrpo.core import conversation, files
from stages import base_model, prepare, select, sft
from tests.support.finished import made_once
from tests.support.trainings import run_for, section


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a base model and a short warm start, made once; nothing changes them."""
    return made_once(tmp_path_factory, "training", warm_up)


def warm_up(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        prepare.prepare(section(prepare.Params, "prepare"))
        source = section(base_model.Params, "base_model").source
        with files.replacing(base_model.OUT) as temporary:
            facts = source.bring(temporary, 0) | base_model.inspect(temporary)
            facts["conversation"] = conversation.settle(temporary)
        digests = [
            {"file": file.name, "sha256": files.sha256(file)} for file in base_model.OUT.iterdir()
        ]
        files.write_json(
            Path("reports/base_model/source.json"), facts | {"kind": source.kind, "files": digests}
        )
        sft.train(run_for(section(sft.Params, "sft"), "sft"))
        select.pass_through(run_for(section(select.Params, "select"), "select"))


@pytest.fixture(scope="module")
def folder(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of it for a module, as the working folder."""
    path = tmp_path_factory.mktemp("training") / "copy"
    shutil.copytree(warm, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path
