"""A folder in which sft and grpo can train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from regrpo.core import conversation, files
from stages import base_model, prepare, sft
from tests.support.trainings import run_for, section


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with prepared data, a base model and a short warm start."""
    path = tmp_path_factory.mktemp("training")
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
        yield path
