"""What sft and grpo need to train in this process.

A section of the default profile, and a run that records nothing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrpo.core import conversation, files, profiles
from tests.support.finished import made_once
from tests.support.projects import MINIATURE, ROOT, SUMS

PROFILE = profiles.read_profile(ROOT / "params.yaml")
_SOURCE = PROFILE["base_model"]["source"]
_LAYERS = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 32,
}
LEARNER: dict[str, dict[str, Any]] = {
    "base_model": {"source": {**_SOURCE, "config": {**_SOURCE["config"], **_LAYERS}}},
    "sft": {
        "curriculum": [{"share": 0.84, "worked": 1.0}, {"share": 0.16, "worked": 0.25}],
        "weight_decay": 0.01,
    },
    "grpo": {"lr_scheduler_type": "constant_with_warmup"},
}
"""What small models of other tasks than the default's learn by: their few steps were chosen so."""


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


def warmed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a base model and a short warm start, made once; nothing changes them."""
    # SFTTrainer prepares every row each time; of so few the model learns enough for some reward.
    make = partial(warm_up, prepare={"source": SUMS | {"size": 1500}}, sft={"max_steps": 80})
    return made_once(tmp_path_factory, "training", make)


def warm_up(path: Path, **changes: Any) -> None:
    """Prepared data, a base model and a warm start in a folder; `changes` by section."""
    from stages import base_model, prepare, select, sft

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        prepare.prepare(section(prepare.Params, "prepare", **changes.get("prepare", {})))
        base = section(base_model.Params, "base_model", **changes.get("base_model", {}))
        source = base.source
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
