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


def test_the_rows_of_grpo_are_those_that_select_kept(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"select": {"samples": 8}})
    profile = YAML(typ="safe").load((here / "params.yaml").read_text())
    for stage, counts in (("prepare", {"train": {"rows": 1000}}), ("select", {"kept": 12})):
        found = command.make(Path("params.yaml"), HERE)["findings"]
        unknown = [one["why"] for one in found if one["key"] == "grpo.max_steps"]
        assert unknown == [f"epochs: rows unknown until {stage} has run"]
        folder = here / "reports" / stage
        folder.mkdir(parents=True)
        record = [{"parameters": {"params.yaml": {stage: profile[stage]}}}]
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.json").write_text(json.dumps(counts))
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (wrong,) = [one for one in found if one["level"] == "wrong"]
    assert wrong["why"] == "a step needs 16 different prompts, and train has 12"


def test_the_answers_that_select_samples_take_memory(here: Path) -> None:
    assert "select" not in [
        one["phase"] for one in command.make(Path("params.yaml"), HERE)["phases"]
    ]
    caches = []
    for samples in (2, 8):
        edit_yaml(here / "params.yaml", {"select": {"samples": samples}})
        phases = command.make(Path("params.yaml"), HERE)["phases"]
        (phase,) = [one for one in phases if one["phase"] == "select"]
        caches.append(phase["terms"]["key-value cache"])
    assert caches[1] == 4 * caches[0]
