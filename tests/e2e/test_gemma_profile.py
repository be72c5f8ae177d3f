"""profiles/gemma-3-1b-pt.yaml end to end on the CPU.

On tiny folders of three architectures and GSM8K-shaped files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files, profiles
from tests.support import stand_ins
from tests.support.projects import edit_yaml, make_project, run

pytestmark = pytest.mark.slow
PROFILE = "profiles/gemma-3-1b-pt.yaml"
STAND_INS: dict[str, dict[str, Any]] = {
    "prepare": {
        "source": {"kind": "local", "train": "train.jsonl", "eval": "test.jsonl", "license": "MIT"},
        "dev": 8,
    },
    "validate": {"min_rows": 8},
    "sft": {
        "device": "cpu",
        "threads": 1,
        "bf16": False,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
    },
    "grpo": {
        "device": "cpu",
        "threads": 1,
        "bf16": False,
        "use_vllm": False,
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 24,
        "sample_every": 1,
    },
    "evaluate": {
        "device": "cpu",
        "threads": 1,
        "backend": "hf",
        "max_gen_toks": 24,
        "bootstrap": 200,
        "tasks": ["heldout", "heldout_answer_prefilled", "heldout_reasoning_prefilled"],
    },
}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma": {"base_model": {"source": {"kind": "local", "path": "gemma", "license": "gemma"}}},
    # As Llama 3's, its tokenizer names no padding token: the profile does.
    "gemma_with_images": {
        "base_model": {"source": {"kind": "local", "path": "gemma_with_images", "license": "gemma"}}
    },
    "llama": {
        "base_model": {
            "source": {"kind": "local", "path": "llama", "license": "llama3"},
            "pad_token": "<pad>",
        }
    },
    "qwen": {
        "base_model": {"source": {"kind": "local", "path": "qwen", "license": "Apache-2.0"}},
        "prepare": {
            "prompt_style": "chat",
            "system_prompt": "Be brief.",
            "prompt_template": "{question}",
        },
    },
}
"""What the profile says of each model folder."""


@pytest.fixture(
    scope="module",
    params=["gemma", "gemma_with_images", "llama", "qwen"],
)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile's run on a tiny folder of an architecture and files with GSM8K's columns.

    The code is the same.
    """
    folder = make_project(tmp_path_factory.mktemp(request.param) / "project", {})
    stand_ins.gsm8k(folder / "data/raw")
    stand_ins.causal(
        folder / "models/raw" / request.param, request.param, template=request.param == "qwen"
    )
    if request.param == "llama":
        config = files.read_json(folder / "models/raw/llama/tokenizer_config.json")
        files.write_json(
            folder / "models/raw/llama/tokenizer_config.json", config | {"pad_token": None}
        )
    edit_yaml(folder / PROFILE, STAND_INS)
    edit_yaml(folder / PROFILE, ARCHITECTURES[request.param])
    run(
        folder,
        "dvc",
        "exp",
        "run",
        "-n",
        request.param,
        "-S",
        f"profile={PROFILE}",
        REGRPO_TRACKING="off",
    )
    return folder


def test_the_profile_runs_end_to_end_by_changing_data_and_model_only(finished: Path) -> None:
    lock = profiles.read_yaml(finished / "dvc.lock")["stages"]
    assert set(lock) == set(profiles.STAGES)
    assert all(list(entry["params"]) == [PROFILE] for entry in lock.values()), (
        "dvc.lock records the profile that was used"
    )


def test_adapters_are_kept_and_the_card_names_their_base(finished: Path) -> None:
    for stage in ("sft", "grpo"):
        assert (finished / f"models/{stage}/adapter/adapter_model.safetensors").exists()
        text = (finished / f"models/{stage}/adapter/README.md").read_text()
        assert f"(folder {finished.parent.name[:-1]} under models/raw/)" in text, (
            "no path, and never None"
        )
        assert "None" not in text
    card = (finished / "reports/model_card/README.md").read_text()
    assert "adapter" in card
    assert "None" not in card.split("---")[1], "the metadata names no None"


def test_the_verifier_of_gsm8k_was_used_for_reward_and_evaluation(finished: Path) -> None:
    assert (
        json.loads((finished / "data/prepared/dataset.json").read_text())["verifier"]
        == "final_number"
    )
    assert (
        json.loads((finished / "reports/evaluate/metrics.json").read_text())["verifier"]
        == "final_number"
    )
    header = (finished / "reports/grpo/history.csv").read_text().splitlines()[0]
    assert "rewards/exact_answer/mean" in header
    assert "rewards/answer_format/mean" in header
