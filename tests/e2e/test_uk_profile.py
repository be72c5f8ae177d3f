"""profiles/uk-summarize-detox.yaml end to end.

Every remote model and dataset as a tiny local one of the same class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files, profiles
from tests.support import stand_ins
from tests.support.projects import commit, edit_yaml, make_project, run
from tests.support.releases import quick_start_output

PROFILE = "profiles/uk-summarize-detox.yaml"
LIMIT = 220
LABELS = {"ukr_toxicity": ("LABEL_0", "LABEL_1"), "xlmr_toxicity": ("LABEL_0", "LABEL_1")}
CPU = {"device": "cpu", "threads": 1}
TRAINER = CPU | {"bf16": False, "quantization": None, "optim": "adamw_torch", "logging_steps": 1}
STAND_INS: dict[str, dict[str, Any]] = {
    "prepare": {
        "source": {
            "kind": "local",
            "train": "train.parquet",
            "eval": "test.parquet",
            "license": "CC-BY-NC-SA-4.0",
        },
        "max_prompt_tokens": LIMIT,
        "eval": 10,
        "dev": 4,
        "sft": 0.7,
        "train": 16,
    },
    "base_model": {
        "source": {
            "kind": "local",
            "path": "tiny",
            "license": "gemma",
            "published_as": "google/gemma-3-1b-pt",
        }
    },
    "validate": {"min_rows": 4, "max_prompt_tokens": LIMIT},
    "sft": TRAINER
    | {
        "max_steps": 3,
        "max_prompt_tokens": 300,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    },
    "grpo": TRAINER
    | {
        "max_steps": 8,
        "max_completion_length": 16,
        "sample_every": 1,
        "learning_rate": 0.05,
        "beta": 0.02,
        "early_stopping": {"reward_patience": 2, "smoothing": 1},
    },
    "evaluate": CPU
    | {"backend": "hf", "model_args": {}, "max_gen_toks": 16, "bootstrap": 200, "batch_size": 10},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("uk") / "project", {})
    stand_ins.xlsum(folder / "data/raw", train=80, evaluation=12)
    stand_ins.causal(folder / "models/raw/tiny", letters=stand_ins.UKRAINIAN, template=False)
    judges = {}
    shipped = profiles.read_profile(folder / PROFILE)["grpo"]["classifiers"]
    for seed, (name, labels) in enumerate(LABELS.items()):
        stand_ins.classifier(folder / "models/raw" / name, labels, seed)
        judges[name] = {
            key: shipped[name][key] for key in ("positive", "negative", "max_length", "batch_size")
        }
        judges[name] |= {"path": name, "license": "OpenRAIL++"}
    changes = {
        stage: values | ({"classifiers": judges} if stage in ("grpo", "evaluate") else {})
        for stage, values in STAND_INS.items()
    }
    edit_yaml(folder / PROFILE, changes)
    run(folder, "dvc", "exp", "run", "-n", "uk", "-S", f"profile={PROFILE}", REGRPO_TRACKING="off")
    return folder


def report(folder: Path, name: str) -> Any:
    return json.loads((folder / "reports" / name).read_text())


def test_every_stage_ran_and_the_gate_says_what_it_could_not_test(finished: Path) -> None:
    assert set(profiles.read_yaml(finished / "dvc.lock")["stages"]) == set(profiles.STAGES)
    verdict = report(finished, "validate/verdict.json")
    assert verdict["passed"]
    assert "gold_scores_1" in verdict["not_applicable"]
    assert (
        "the\n  self-test of the reward is skipped"
        in (finished / "reports/validate/report.html").read_text()
    )


def test_long_articles_are_cut_alike_for_training_and_evaluation_and_keep_their_instruction(
    finished: Path,
) -> None:
    from transformers import AutoTokenizer

    verdict = report(finished, "validate/verdict.json")
    assert verdict["cut_prompts"] > 5
    tokenizer = AutoTokenizer.from_pretrained(finished / "models/base")
    before, after = "Стисло перекажи новину", "\n\nСтисло:\n"
    for name in ("grpo", "evaluate"):
        shown = files.read_parquet(finished / f"reports/{name}/samples.parquet")["prompt"].unique()
        lengths = [len(tokenizer(one)["input_ids"]) for one in shown]
        assert max(lengths) <= LIMIT
        assert max(lengths) > LIMIT - 15, "a cut prompt is nearly as long as the limit"
        assert all(one.startswith(before) and one.endswith(after) for one in shown)
    whole = files.read_parquet(finished / "data/prepared/eval.parquet")["prompt"]
    assert max(map(len, whole)) > 2 * LIMIT, "the data keep the whole article"


def test_the_reward_is_the_sum_of_both_classifiers_and_the_run_stopped_early(
    finished: Path,
) -> None:
    samples = files.read_parquet(finished / "reports/grpo/samples.parquet")
    assert samples["reward"].to_list() == pytest.approx(
        (samples["ukr_toxicity"] + samples["xlmr_toxicity"]).to_list()
    )
    metrics = report(finished, "grpo/metrics.json")
    assert metrics["steps"] == metrics["stopped_early"]["step"] < 8
    assert metrics["classifiers"]["ukr_toxicity"]["files"]["model.safetensors"] == files.sha256(
        finished / "models/raw/ukr_toxicity/model.safetensors"
    )
    assert "kl" in (finished / "reports/grpo/history.csv").read_text().splitlines()[0].split(",")


def test_what_the_classifiers_think_of_the_summaries_is_measured_question_by_question(
    finished: Path,
) -> None:
    metrics = report(finished, "evaluate/metrics.json")
    assert metrics["headline"] == "heldout_text_classifiers"
    tasks = metrics["tasks"]
    both = [f"heldout_text_{name}" for name in LABELS]
    assert set(tasks) == {"heldout_text", "heldout_text_chrf", "heldout_text_classifiers", *both}
    assert all(task["kind"] == "continuous" and task["n"] == 10 for task in tasks.values())
    samples = files.read_parquet(finished / "reports/evaluate/samples.parquet")
    values = samples.pivot(index=["model", "id"], columns="task", values="value")
    assert values["heldout_text_classifiers"].to_list() == pytest.approx(
        values[both].mean(axis=1).to_list()
    )
    assert samples["correct"].isna().all(), "nothing here is right or wrong"


def test_merged_weights_are_the_start_plus_the_adapter(finished: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for stage, start, scale in (("sft", "base", 32 / 16), ("grpo", "sft", 16 / 8)):
        before = load_file(finished / f"models/{start}/model.safetensors")
        after = load_file(finished / f"models/{stage}/model.safetensors")
        adapter = load_file(finished / f"models/{stage}/adapter/adapter_model.safetensors")
        changed = 0
        for name, weight in before.items():
            low = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            delta = torch.zeros_like(weight)
            if f"{low}A.weight" in adapter:
                delta = (
                    scale * adapter[f"{low}B.weight"].float() @ adapter[f"{low}A.weight"].float()
                )
                changed += bool(delta.abs().max() > 0)
            assert torch.allclose(after[name], weight + delta, atol=1e-6), name
        assert changed == sum(name.endswith("lora_A.weight") for name in adapter) > 0


def test_the_adapters_card_names_its_real_base(finished: Path) -> None:
    for stage, start in (("sft", "base"), ("grpo", "sft")):
        text = (finished / f"models/{stage}/adapter/README.md").read_text()
        assert "base_model: google/gemma-3-1b-pt\n" in text
        assert files.sha256(finished / f"models/{start}/model.safetensors") in text
        assert "None" not in text
        assert str(finished) not in text
        assert files.read_json(finished / f"models/{stage}/adapter/adapter_config.json")[
            "base_model_name_or_path"
        ] == (f"models/{start}")
    assert (
        "after this pipeline's warm start"
        in (finished / "models/grpo/adapter/README.md").read_text()
    )


def test_it_is_released_verified_and_used_from_its_folder(finished: Path, tmp_path: Path) -> None:
    commit(finished, "results")
    out = str(tmp_path / "model")
    command = ("python", "-m", "regrpo.cli")
    run(finished, *command, "release", "workspace", "--out", out, "--no-mlflow")
    run(tmp_path, *command, "verify", "model", PYTHONPATH=str(finished))
    assert (tmp_path / "model/adapter/adapter_model.safetensors").exists()
    assert "google/gemma-3-1b-pt" in (tmp_path / "model/NOTICE").read_text()
    assert quick_start_output(tmp_path / "model").strip()


def test_the_card_tells_the_judges_the_cut_and_the_early_end(finished: Path) -> None:
    text = (finished / "reports/model_card/README.md").read_text()
    assert "base_model: google/gemma-3-1b-pt" in text.split("---")[1]
    assert (
        "`ukr_toxicity`: P(`LABEL_0`) − P(`LABEL_1`) by the `folder ukr_toxicity under models/raw/`"
        in text
    )
    assert f"cut to {LIMIT} tokens (300 in SFT)" in text
    assert "**stopped early** at step" in text
    assert "Every reward is a classifier's opinion" in text
    assert "not available" not in text.partition("## Quick start")[0]
