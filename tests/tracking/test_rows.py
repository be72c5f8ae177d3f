"""Names, values and metrics as MLflow's rows hold them, and what an experiment changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.core import files
from regrpo.core.pipeline import Snapshot
from regrpo.tracking import rows
from tests.support.tracked import evaluation

if TYPE_CHECKING:
    pass


def test_parameters_are_flattened_by_section_with_lists_and_empty_mappings_as_leaves() -> None:
    section = {
        "lr": 1e-4,
        "lora": None,
        "source": {"kind": "local", "config": {}},
        "layers": ["a", 1],
        "bf16": False,
    }
    assert rows.parameters({"grpo": section}) == {
        "grpo.lr": "0.0001",
        "grpo.lora": "null",
        "grpo.source.kind": "local",
        "grpo.source.config": "{}",
        "grpo.layers": '["a",1]',
        "grpo.bf16": "false",
    }


def test_evaluations_have_short_names_and_nothing_but_numbers_is_a_metric() -> None:
    pair = {"difference": 0.5, "ci95": [0.4, 0.6], "p_mcnemar": None}
    grpo = {"value": 0.9, "ci95": [0.8, None]}
    task = {
        "metric": "exact",
        "n": 3,
        "version": 1,
        "models": {"grpo": grpo},
        "pairs": {"sft_grpo": pair},
    }
    report = {
        "tasks": {"held|out": task},
        "gain": {"total": 0.5, "total_ci95": [0.4, 0.6]},
        "checks": [1],
        "passed": True,
    }
    assert dict(rows.numbers(report)) == {
        "held_out.n": 3.0,
        "held_out.grpo": 0.9,
        "held_out.sft_grpo.difference": 0.5,
        "held_out.sft_grpo.ci95_low": 0.4,
        "held_out.sft_grpo.ci95_high": 0.6,
        "gain.total": 0.5,
        "gain.total_ci95_low": 0.4,
        "gain.total_ci95_high": 0.6,
        "passed": 1.0,
    }


def test_the_headline_is_the_same_few_names_for_every_profile() -> None:
    report = evaluation(0.75)
    assert rows.headline_metrics(report) == {
        "headline/grpo": 0.75,
        "headline/sft": 0.5,
        "headline/base": 0.0,
        "headline/gain": 0.25,
        "headline/gain_ci95_low": 0.75 - 0.7,
        "headline/gain_ci95_high": 0.75 - 0.3,
    }
    words = "50.0 % → 75.0 %, +25.0 points [+5.0, +45.0]"
    assert rows.headline_tags(report) == {"regrpo.headline": words}
    assert rows.headline_metrics(report.model_copy(update={"headline": None})) == {}
    assert rows.headline_tags(None) == {}


@pytest.mark.parametrize(
    ("name", "sweep"),
    [
        ("lr-1", "lr"),
        ("lr-rate-12", "lr-rate"),
        ("lively-one", None),
        ("lr1", None),
        ("-1", None),
        ("lr-1a", None),
        (None, None),
    ],
)
def test_only_a_name_with_a_number_is_of_a_sweep(
    root: Path, name: str | None, sweep: str | None
) -> None:
    tags = rows.experiment_tags(name, None, "params.yaml", {}, root)
    assert tags.get("regrpo.sweep") == sweep


def test_what_an_experiment_changes_is_said_against_its_own_profile(root: Path) -> None:
    first = {"profile": "params.yaml", "grpo": {"seed": 0, "lora": {"r": 8}}}
    files.write_json(root / "params.yaml", first)
    files.write_json(root / "other.yaml", {"grpo": {"seed": 5}})
    (root / "broken.yaml").write_text("grpo: [")

    def changed(profile: str, **grpo: Any) -> str | None:
        return rows.changed_parameters(Snapshot(root), profile, {"grpo": grpo})

    assert changed("params.yaml", seed=0, lora={"r": 8}) == ""
    both = changed("params.yaml", seed=1, lora=None)
    assert both == "grpo.lora=null grpo.lora.r=null grpo.seed=1"
    assert changed("other.yaml", seed=5) == "profile=other.yaml"
    assert changed("broken.yaml", seed=5) is None
    assert changed("gone.yaml", seed=5) is None
