"""A task of reasoning-gym other than chain_sum, by its own scorer, from the source to the card."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from regrpo.core import files
from tests.support.projects import commit, make_project, run, run_pipeline
from tests.support.trainings import LEARNER

REGRPO = ("python", "-m", "regrpo.cli")
FORMAT = '''

def legs(row):
    """Reasoning-gym's leg_counting with one kind of animal, in few words."""
    [(animal, count)] = row["metadata"]["animals"].items()
    return {
        "question": f"{count} {animal}:",
        "answer": row["answer"],
        "solution": f"<think>{count}*{int(row['answer']) // count}</think>"
        f"<answer>{row['answer']}</answer>",
    }
'''
SECTIONS = {
    "prepare": {
        "format": "custom.formats:legs",
        "verifier": "reasoning_gym",
        "source": {
            "kind": "reasoning_gym",
            "task": "leg_counting",
            "size": 3000,
            "config": {"min_animals": 1, "max_animals": 1},
            "license": "Apache-2.0",
        },
        "eval": 60,
        "dev": 30,
        "sft": 0.75,
    },
    "validate": {"min_rows": 20},
    "base_model": LEARNER["base_model"],
    "sft": LEARNER["sft"]
    | {"max_steps": 220, "warmup_steps": 20, "logging_steps": 50, "save_steps": 500},
    "grpo": LEARNER["grpo"]
    | {
        "max_steps": 24,
        "per_device_train_batch_size": 128,
        "num_generations": 8,
        "warmup_steps": 3,
        "dev_every": 12,
        "save_steps": 500,
    },
    "evaluate": {"batch_size": 60, "bootstrap": 500},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("gym") / "project", SECTIONS)
    formats = folder / "custom/formats.py"
    formats.write_text(formats.read_text() + FORMAT)
    commit(folder, "format")
    run_pipeline(folder)
    return folder


def test_the_model_learned_by_the_tasks_own_scorer(finished: Path) -> None:
    with (finished / "reports/grpo/history.csv").open() as file:
        reward = [float(row["reward"]) for row in csv.DictReader(file) if row["reward"]]
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.2, reward
    metrics = files.read_json(finished / "reports/evaluate/metrics.json")
    models = metrics["tasks"]["heldout"]["models"]
    assert models["grpo"]["value"] > models["sft"]["value"] + 0.2, models
    assert metrics["verifier"] == "reasoning_gym"


def test_it_ran_to_an_audited_card(finished: Path) -> None:
    verdict = files.read_json(finished / "reports/validate/verdict.json")
    assert verdict["passed"]
    assert verdict["not_applicable"] == []
    samples = files.read_parquet(finished / "reports/grpo/samples.parquet")
    assert set(samples["entry"].map(lambda text: '"leg_counting"' in text)) == {True}
    card = " ".join((finished / "reports/model_card/README.md").read_text().split())
    assert "asked to answer with the task's answer between" in card
    audit = run(finished, *REGRPO, "audit").stdout.splitlines()[-1]
    assert audit.startswith("complete: ")
    assert "faults: 0, unchecked: 0, notes: 0" in audit
