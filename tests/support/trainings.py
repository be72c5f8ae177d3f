"""What sft and grpo need to train in this process.

A section of the default profile, and a run that records nothing.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrpo.core import conversation, files, profiles
from tests.support.projects import MINIATURE, ROOT

PROFILE = profiles.read_profile(ROOT / "params.yaml")


def section(model: Any, name: str, **changes: Any) -> Any:
    return profiles.parse_section(
        model, {**PROFILE[name], **MINIATURE.get(name, {}), **changes}, name
    )


def run_for(values: Any, stage: str) -> Any:
    reports = Path("reports") / stage
    reports.mkdir(parents=True, exist_ok=True)
    folder = Path(".checkpoints") / stage
    return SimpleNamespace(
        params=values,
        reports=reports,
        log=lambda values, step: None,
        checkpoint_folder=lambda device: folder,
    )


def warm_up(path: Path, **changes: Any) -> None:
    """Prepared data, a base model and a warm start in a folder; `changes` by section."""
    from stages import base_model, prepare, select, sft

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        prepare.prepare(section(prepare.Params, "prepare", **changes.get("prepare", {})))
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
        sft.train(run_for(section(sft.Params, "sft", **changes.get("sft", {})), "sft"))
        select.pass_through(run_for(section(select.Params, "select"), "select"))
