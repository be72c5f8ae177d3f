"""Models from scratch that learn by grpo what a verifier of other answers than integers rewards.

As in the default: the warm start learns to work answers out, then the habit of blurting; grpo
teaches it to think first, by the verifier's score alone.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages import grpo
from tests.support.trainings import LEARNER, run_for, section, warm_up

pytestmark = pytest.mark.slow

SFT = LEARNER["sft"] | {
    "per_device_train_batch_size": 64,
    "warmup_steps": 20,
    "logging_steps": 50,
    "save_steps": 500,
}
GRPO = LEARNER["grpo"] | {
    "max_steps": 24,
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "warmup_steps": 3,
    "dev_every": 24,
    "save_steps": 500,
    "weight_decay": 0.0,
}
Row = dict[str, Any]


def decimals() -> list[Row]:
    """`(7+6)/4=` is 3.25: every sum and difference of two digits, by 2, 4, 5 and 10."""
    rows = []
    for a, b, sign, by in itertools.product(range(10), range(10), (1, -1), (2, 4, 5, 10)):
        total = a + sign * b
        rows.append(
            {
                "question": f"({a}{'+' if sign > 0 else '-'}{b})/{by}=",
                "answer": f"{total / by:g}",
                "solution": f"<think>{total}</think><answer>{total / by:g}</answer>",
            }
        )
    return rows


def largest() -> list[Row]:
    """Which of seven digits is the largest: a letter, whatever digit it stands for."""
    draw = random.Random(0)
    rows = []
    for _ in range(2000):
        options = draw.sample(range(10), 7)
        letter = "ABCDEFG"[options.index(max(options))]
        rows.append(
            {
                "question": f"The largest of {', '.join(map(str, options))}?",
                "options": options,
                "answer": letter,
                "solution": f"<think>{max(options)}</think><answer>{letter}</answer>",
            }
        )
    return rows


NUMBER: Row = {"verifier": "number", "eval": 20, "dev": 50, "sft": 0.75}
CHOICE: Row = {
    "verifier": "choice",
    "prompt_template": "{question}\n{options}\n",
    "eval": 60,
    "dev": 100,
    "sft": 0.6,
}


@pytest.mark.parametrize(
    ("questions", "prepare", "warm"),
    [
        pytest.param(decimals, NUMBER, {"max_steps": 220}, id="number"),
        pytest.param(largest, CHOICE, {"max_steps": 110, "max_length": 96}, id="choice"),
    ],
)
def test_a_model_learns_by_the_verifiers_reward(
    questions: Callable[[], list[Row]],
    prepare: Row,
    warm: Row,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = questions()
    random.Random(0).shuffle(rows)
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "local", "train": "questions.jsonl", "license": "CC0-1.0"}
    prepare = prepare | {"format": "question_answer", "source": source, "drop_duplicates": True}
    warm_up(tmp_path, base_model=LEARNER["base_model"], prepare=prepare, sft=SFT | warm)
    grpo.train(run_for(section(grpo.Params, "grpo", **GRPO), "grpo"))
    with Path("reports/grpo/history.csv").open() as file:
        history = list(csv.DictReader(file))
    reward = [float(row["reward"]) for row in history if row["reward"]]
    dev = [float(row["dev_accuracy"]) for row in history if row["dev_accuracy"]]
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.3, reward
    assert dev[-1] > dev[0] + 0.3, dev
