"""profiles/gemma-3-1b-pt.yaml end to end on stand-ins: a tiny Gemma 3 folder and GSM8K-shaped files, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrpo import params
from tests.conftest import make_project, run

PROFILE = "profiles/gemma-3-1b-pt.yaml"
STAND_INS: dict[str, dict[str, Any]] = {
    "prepare": {"source": {"kind": "local", "train": "train.jsonl", "eval": "test.jsonl", "license": "MIT"}, "dev": 8},
    "base_model": {"source": {"kind": "local", "path": "tiny-gemma", "license": "gemma"}},
    "validate": {"min_rows": 8},
    "sft": {"device": "cpu", "threads": 1, "bf16": False, "max_steps": 3, "per_device_train_batch_size": 4},
    "grpo": {"device": "cpu", "threads": 1, "bf16": False, "use_vllm": False, "max_steps": 2, "num_generations": 4,
             "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 24,
             "sample_every": 1},
    "evaluate": {"device": "cpu", "threads": 1, "backend": "hf", "max_gen_toks": 24, "bootstrap": 200,
                 "tasks": ["heldout", "heldout_answer_prefilled", "heldout_reasoning_prefilled"]},
}  # fmt: skip


def gsm8k_row(index: int) -> dict[str, str]:
    """One row as GSM8K writes it: calculator notes, #### and the number."""
    bought, price = index % 17 + 2, index // 17 + 3
    total = bought * price
    return {
        "question": f"Mia buys {bought} pens at {price} dollars each in shop {index}. How many dollars does she pay?",
        "answer": f"She pays {bought} * {price} = <<{bought}*{price}={total}>>{total} dollars.\n#### {total:,}",
    }


def bring_stand_ins(folder: Path) -> None:
    """GSM8K-shaped files under data/raw/, a tiny Gemma 3 of the real class under models/raw/."""
    for name, rows in (("train", range(0, 80)), ("test", range(100, 116))):
        lines = (json.dumps(gsm8k_row(index)) + "\n" for index in rows)
        (folder / f"data/raw/{name}.jsonl").write_text("".join(lines))
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from regrpo.tokenizers import character_tokenizer

    tokenizer = character_tokenizer([])
    tokenizer.chat_template = None  # a pretrained base has none
    config = Gemma3TextConfig(
        vocab_size=112, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=64, max_position_embeddings=1024,
        layer_types=["sliding_attention", "full_attention"], pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder / "models/raw/tiny-gemma")
    tokenizer.save_pretrained(folder / "models/raw/tiny-gemma")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("gemma") / "project", {})
    bring_stand_ins(folder)
    from tests.conftest import edit_yaml

    edit_yaml(folder / PROFILE, STAND_INS)
    run(folder, "dvc", "exp", "run", "-n", "gemma", "-S", f"profile={PROFILE}", REGRPO_TRACKING="off")
    return folder


def test_the_profile_runs_end_to_end_by_changing_data_and_model_only(finished: Path) -> None:
    lock = params.read_yaml(finished / "dvc.lock")["stages"]
    assert set(lock) == set(params.STAGES)
    assert all(list(entry["params"]) == [PROFILE] for entry in lock.values()), (
        "dvc.lock records the profile that was used"
    )


def test_adapters_are_kept_and_the_card_names_their_base(finished: Path) -> None:
    for stage in ("sft", "grpo"):
        assert (finished / f"models/{stage}/adapter/adapter_model.safetensors").exists()
    card = (finished / "reports/model_card/README.md").read_text()
    assert "adapter" in card
    assert "None" not in card.split("---")[1], "the metadata names no None"


def test_the_verifier_of_gsm8k_was_used_for_reward_and_evaluation(finished: Path) -> None:
    assert json.loads((finished / "data/prepared/dataset.json").read_text())["verifier"] == "final_number"
    assert json.loads((finished / "reports/evaluate/metrics.json").read_text())["verifier"] == "final_number"
    header = (finished / "reports/grpo/history.csv").read_text().splitlines()[0]
    assert "rewards/exact_answer/mean" in header
    assert "rewards/answer_format/mean" in header
