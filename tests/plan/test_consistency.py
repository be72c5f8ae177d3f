"""A profile's numbers against each other and the rows that there are."""

from __future__ import annotations

import json
from pathlib import Path

from ruamel.yaml import YAML

from regrpo.commands import plan as command
from tests.support.plans import HERE
from tests.support.projects import edit_yaml


def test_steps_are_held_against_the_rows_that_prepare_left(here: Path) -> None:
    section = YAML(typ="safe").load((here / "params.yaml").read_text())["prepare"]
    (here / "reports/prepare").mkdir(parents=True)
    (here / "reports/prepare/run.json").write_text(
        json.dumps([{"parameters": {"params.yaml": {"prepare": section}}}])
    )
    (here / "reports/prepare/metrics.json").write_text(
        json.dumps({"sft": {"rows": 1000}, "train": {"rows": 10}})
    )
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (wrong,) = [one for one in found if one["level"] == "wrong"]
    assert wrong["key"] == "grpo.per_device_train_batch_size"
    assert wrong["why"] == "a step needs 16 different prompts, and train has 10"
    assert wrong["would_do"] == "at most 160"


def test_save_points_that_move_are_told(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"grpo": {"save_steps": 30, "logging_steps": 8}})
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (one,) = [one for one in found if one["key"] == "grpo.save_steps"]
    assert one["level"] == "warning"
    assert "checkpoints fall on every 32 steps" in one["why"]
    assert one["would_do"] == "32, or 24"
