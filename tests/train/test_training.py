"""sft and grpo in miniature, in this process: order, seeds, dev accuracy, LoRA, what is saved."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrpo.core import files, hardware, settings
from regrpo.core.errors import Refused
from regrpo.train import curriculum, saving, trainers
from stages import grpo, sft
from tests.support.projects import MODEL_FILES
from tests.support.trainings import run_for, section


def weights(name: str) -> str:
    return hashlib.sha256(Path(f"models/{name}/model.safetensors").read_bytes()).hexdigest()


def train_grpo(**changes: Any) -> str:
    grpo.train(run_for(section(grpo.Params, "grpo", **changes), "grpo"))
    return weights("grpo")


def test_grpo_moves_the_weights_and_its_seed_alone_decides_them_and_the_order_of_the_prompts(
    folder: Path,
) -> None:
    """The same weights again without dev accuracy, and logged otherwise."""

    def trained(seed: int, **changes: Any) -> tuple[str, list[tuple[int, str]]]:
        moved = train_grpo(seed=seed, sample_every=1, **changes)
        samples = files.read_parquet(Path("reports/grpo/samples.parquet"))
        return moved, list(zip(samples["step"], samples["id"], strict=True))

    first, order = trained(0, dev_every=1)
    assert first != weights("sft")
    assert len({id for _, id in order}) > 4, "several steps' prompts"
    assert "dev_accuracy" in Path("reports/grpo/history.csv").read_text()
    other, other_order = trained(1)
    assert other != first
    assert other_order != order
    assert [step for step, _ in other_order] == [step for step, _ in order]
    assert trained(0, dev_every=0, logging_steps=10) == (first, order)
    (row,) = csv.DictReader(Path("reports/grpo/history.csv").read_text().splitlines())
    assert (row["step"], "dev_accuracy" in row) == ("4", False), "the last step is logged always"
    assert {file.name for file in Path("models/grpo").rglob("*")} == MODEL_FILES


def test_sft_keeps_the_order_of_the_curriculum() -> None:
    phases = [{"share": 0.84, "worked": 1.0}, {"share": 0.16, "worked": 0.25}]
    values = section(sft.Params, "sft", curriculum=phases, max_steps=100)
    order = values.draw_order(100)
    batch = values.per_device_train_batch_size
    cut = round(0.84 * values.max_steps) * batch
    assert len(order) == values.max_steps * batch
    bare = [index % 2 for index in order]
    assert not any(bare[:cut]), "the first phase is all worked solutions"
    worked = bare[cut:].count(0) / len(bare[cut:])
    assert 0.1 < worked < 0.4, "the second phase shows a quarter worked"


def test_every_second_example_states_the_bare_answer() -> None:
    from regrpo.core.verifiers import VERIFIERS

    examples = curriculum.Examples(VERIFIERS["exact_int"], Path("sft.parquet"))
    row = {"prompt": "1+1+1=", "answer": "3", "solution": "<think>2</think><answer>3</answer>"}
    bare = "<answer>3</answer>"
    shown = examples.of([row, row | {"solution": None}])
    assert [one["completion"] for one in shown] == [row["solution"], bare, bare, bare]
    assert examples.unsolved == 1
    chat = [{**row, "prompt": [{"role": "user", "content": "1+1+1="}]}]
    assert examples.of(chat)[1]["completion"] == [{"role": "assistant", "content": bare}]


def test_no_steps_pass_the_base_through(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("models/base", tmp_path / "models/base")
    shutil.copytree("data/prepared", tmp_path / "data/prepared")
    shutil.copytree("reports/base_model", tmp_path / "reports/base_model")
    monkeypatch.chdir(tmp_path)
    sft.pass_through(run_for(section(sft.Params, "sft", max_steps=0), "sft"))
    assert files.read_json(Path("reports/sft/metrics.json"))["steps"] == 0
    assert {f.name: files.sha256(f) for f in Path("models/sft").iterdir()} == {
        f.name: files.sha256(f) for f in Path("models/base").iterdir()
    }


def test_lora_is_merged_its_adapter_kept_sorted_and_equal_to_base_plus_adapter(
    folder: Path,
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = {"r": 4, "lora_alpha": 8}
    train_grpo(lora=lora, learning_rate=1e-2)
    config = json.loads(Path("models/grpo/adapter/adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("models/sft"), "models/grpo/adapter"
    ).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained("models/grpo")
    start = AutoModelForCausalLM.from_pretrained("models/sft").state_dict()
    moved = 0
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, adapted.state_dict()[name])
        moved += int(not torch.equal(tensor, start[name]))
    assert moved > 0
    card = Path("models/grpo/adapter/README.md").read_bytes()
    assert (
        b"Gemma3ForCausalLM of 231,424 parameters (made from scratch), "
        b"after this pipeline's warm start" in card
    )


def test_an_adapter_of_an_unchanged_hub_base_names_repository_and_commit(
    folder: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained("models/base"),
        LoraConfig(target_modules=["v_proj", "q_proj"]),
    )
    base = files.read_json(saving.SOURCE) | {
        "kind": "hub",
        "repo": "google/gemma-3-1b-pt",
        "revision": "f" * 40,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "SOURCE", tmp_path / "source.json")
        files.write_json(tmp_path / "source.json", base)
        for start in ("base", "sft"):
            saving.save_adapter(
                model, Path("models") / start, tmp_path / start, Path("models/x/adapter")
            )
    config = {
        start: files.read_json(tmp_path / start / "adapter_config.json")
        for start in ("base", "sft")
    }
    assert config["base"]["base_model_name_or_path"] == "google/gemma-3-1b-pt"
    assert config["base"]["revision"] == "f" * 40
    assert config["sft"]["base_model_name_or_path"] == "models/sft", (
        "its weights are another model's"
    )
    assert config["sft"]["revision"] is None
    assert "base_model: google/gemma-3-1b-pt\n" in (tmp_path / "sft/README.md").read_text()


def test_a_run_without_a_better_reward_stops_and_is_the_run_that_was_that_long(
    folder: Path,
) -> None:
    rule = {"reward_patience": 1, "smoothing": 1}
    stopped = train_grpo(early_stopping=rule, max_steps=30, dev_every=50, learning_rate=1e-6)
    metrics = files.read_json(Path("reports/grpo/metrics.json"))
    step = metrics["stopped_early"]["step"]
    assert metrics["steps"] == step < 30
    assert "no reward (mean of 1) above" in metrics["stopped_early"]["reason"]
    rows = list(csv.DictReader(Path("reports/grpo/history.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["dev_accuracy"]] == [0, step], (
        "measured where it ended"
    )
    assert train_grpo(max_steps=step, learning_rate=1e-6, dev_every=0, warmup_steps=1) == stopped
    assert files.read_json(Path("reports/grpo/metrics.json"))["stopped_early"] is None


def test_a_kl_ceiling_ends_the_run_and_needs_beta(folder: Path) -> None:
    with pytest.raises(
        Refused, match=r"`early_stopping\.kl_ceiling`: needs `beta` above 0: TRL measures `kl`"
    ):
        section(grpo.Params, "grpo", early_stopping={"kl_ceiling": 0.1})
    train_grpo(
        early_stopping={"kl_ceiling": 1e-6},
        beta=0.05,
        max_steps=12,
        learning_rate=1e-2,
        dev_every=0,
    )
    metrics = files.read_json(Path("reports/grpo/metrics.json"))
    assert metrics["steps"] == metrics["stopped_early"]["step"] < 12
    assert "KL divergence" in metrics["stopped_early"]["reason"]


def test_bitsandbytes_is_asked_for_by_name_where_it_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    # Only what regrpo sees: transformers remembers what it found.
    absent = SimpleNamespace(
        find_spec=lambda name: None if name == "bitsandbytes" else find_spec(name)
    )
    monkeypatch.setattr(settings, "importlib", SimpleNamespace(util=absent))
    four = {"quantization": {"load_in_4bit": True}, "lora": {"r": 4, "lora_alpha": 8}}
    with pytest.raises(
        Refused, match=r"grpo\.quantization: expected the package bitsandbytes.*set it to null"
    ):
        train_grpo(**four)
    with pytest.raises(Refused, match="`quantization`: needs `lora`"):
        section(grpo.Params, "grpo", quantization={"load_in_4bit": True})
    with pytest.raises(Refused, match="one of `load_in_4bit` and `load_in_8bit`"):
        section(
            grpo.Params,
            "grpo",
            **four | {"quantization": {"load_in_4bit": True, "load_in_8bit": True}},
        )


@pytest.mark.filterwarnings(
    "ignore:bitsandbytes"
)  # some of its CPU kernels have no gradient: CUDA's have
def test_a_quantised_runs_adapter_is_merged_into_the_weights_as_they_were(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="of the extra cuda")
    import torch
    from safetensors.torch import load_file

    nf4 = {
        "load_in_4bit": True,
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float32",
    }
    train_grpo(quantization=nf4, lora={"r": 4, "lora_alpha": 8}, learning_rate=1e-2)
    before, after = (load_file(f"models/{name}/model.safetensors") for name in ("sft", "grpo"))
    adapter = load_file("models/grpo/adapter/adapter_model.safetensors")
    assert "quantization_config" not in files.read_json(Path("models/grpo/config.json"))
    moved = 0
    for name, weight in before.items():
        low = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{low}A.weight" in adapter:
            delta = 2 * adapter[f"{low}B.weight"].float() @ adapter[f"{low}A.weight"].float()
            moved += bool(delta.abs().max() > 0)
            weight = weight + delta
        torch.testing.assert_close(after[name], weight)
    assert moved > 0


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(
        Refused, match=r"sft\.bf16: .*found Tesla T4 \(capability 7\.5\)\. Set `bf16: false`"
    ):
        hardware.require_bf16("sft", True, "cuda")
    hardware.require_bf16("sft", False, "cuda")
    hardware.require_bf16("sft", True, "cpu")
    asked = [
        section(grpo.Params, "grpo", **one).wants_bf16
        for one in ({"bf16": None}, {"bf16": None, "fp16": True})
    ]
    assert asked == [True, False], "TRL's own default"


def test_vllm_that_is_not_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "find_device", lambda wanted, where: "cuda")
    monkeypatch.setattr(hardware, "require_bf16", lambda *_: None)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name)
    )
    with pytest.raises(
        Refused,
        match=r"^grpo\.use_vllm: expected .*found device cuda, vllm not installed.*\[cuda\]",
    ):
        grpo.train(run_for(section(grpo.Params, "grpo", use_vllm=True), "grpo"))


def test_a_vllm_that_this_torch_cannot_load_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL imports an installed vLLM, wanted or not, and raises this."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(
                "Failed to import trl.trainer.grpo_trainer because of the following error (look up "
                "to see its traceback):\nvllm/_C.abi3.so: undefined symbol: _ZN3c10"
            )

    monkeypatch.setitem(sys.modules, "trl", Broken())
    with pytest.raises(
        Refused, match=r"^grpo: .*found Failed to import .* undefined symbol"
    ) as told:
        train_grpo()
    assert "\n" not in str(told.value)


def test_a_package_that_the_trainer_misses_is_one_line() -> None:
    words = (
        r"^grpo: expected settings that the trainer accepts; found flash_attn is missing.*an extra"
    )
    with pytest.raises(Refused, match=words), trainers.refuse_on(ImportError, "grpo"):
        raise ImportError("flash_attn is missing")
    with pytest.raises(ImportError), trainers.refuse_on(ValueError, "grpo"):
        raise ImportError("of a custom reward, in training")


@pytest.mark.parametrize("train", ["sft", "grpo"])
def test_memory_that_runs_out_in_a_step_is_one_line_and_the_checkpoint_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    """A stand-in for the GPU: the third forward pass of the training finds no room."""
    import torch
    from transformers import Trainer

    real, calls = Trainer.training_step, iter(range(100))

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", full)
    monkeypatch.setattr(hardware, "planned_memory", lambda stage: "the plan")
    stage = {"sft": sft, "grpo": grpo}[train]
    values = section(stage.Params, train, save_steps=1, logging_steps=1, max_steps=4)
    words = (
        rf"^{train}: expected the step to fit into memory; found CUDA out of memory.*2\.00 GiB; it "
        r"held [\d,]+ MB of memory at most, and the plan\. Set per_device_train_batch_size: 8 with "
        r"gradient_accumulation_steps: 2 \(the same batch a step\), or activation_checkpointing"
    )
    with pytest.raises(Refused, match=words):
        stage.train(run_for(values, train))
    assert Path(f".checkpoints/{train}/checkpoint-2").exists()
    monkeypatch.undo()
    stage.train(run_for(values, train))
    assert not Path(f".checkpoints/{train}").exists(), "it went on from there, to its end"


def test_what_lowers_the_peak_is_what_the_section_has_not() -> None:
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    alone = section(grpo.Params, "grpo", **small, activation_checkpointing=True)
    assert trainers.memory_changes("grpo", alone)[0] == "a lower max_completion_length"
    with_vllm = section(grpo.Params, "grpo", use_vllm=True)
    assert trainers.memory_changes("grpo", with_vllm)[0] == "vllm_enable_sleep_mode: true"
    server = section(grpo.Params, "grpo", use_vllm=True, vllm_mode="server")
    assert "sleep" not in str(trainers.memory_changes("grpo", server))


def test_nan_stops_the_run_and_leaves_its_evidence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrpo.train import rewards

    real = rewards.Samples.watching

    def poisoned(self: Any, functions: Any) -> Any:
        watched = real(self, functions)
        calls = iter(range(100))

        def reward(**kwargs: Any) -> Any:
            values = watched[0](**kwargs)
            return [float("inf")] * len(values) if next(calls) == 1 else values

        reward.__name__ = "exact_answer"
        return [reward]

    monkeypatch.setattr(rewards.Samples, "watching", poisoned)
    with pytest.raises(Refused, match=r"grpo, step \d: .*NaN or infinity.*Change learning_rate"):
        train_grpo()
    health = files.read_json(Path("reports/grpo/health.json"))
    assert health["verdict"] == "fatal"
    assert Path("reports/grpo/history.csv").exists()


def test_doctor_stop_ends_the_run_at_a_warning(folder: Path) -> None:
    with pytest.raises(Refused, match=r"gradient norm above 10|completions cut"):
        train_grpo(doctor="stop", max_completion_length=2)


def test_cuda_asked_for_where_there_is_none_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=r"^grpo\.device: expected a CUDA device.*found none"):
        train_grpo(device="cuda")


def test_random_states_are_put_back() -> None:
    import random

    import numpy as np
    import torch

    from regrpo.train.callbacks import random_states_kept

    hardware.set_up(3, 1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    hardware.set_up(3, 1)
    with random_states_kept():
        random.random(), np.random.rand(), torch.rand(5)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_the_last_step_is_logged_and_dev_accuracy_has_its_own_step(folder: Path) -> None:
    train_grpo(max_steps=5, logging_steps=3, dev_every=2)
    rows = list(csv.DictReader(Path("reports/grpo/history.csv").read_text().splitlines()))
    assert files.read_json(Path("reports/grpo/metrics.json"))["steps"] == 5
    assert [int(row["step"]) for row in rows if row["reward"]] == [3, 5]
    assert [int(row["step"]) for row in rows if row["dev_accuracy"]] == [0, 2, 4, 5]


def test_the_saved_tokenizer_does_not_tell_how_it_was_loaded(folder: Path, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE, or the hub cache's tokenizer, must not change a model folder's bytes."""
    from transformers import AutoTokenizer

    from regrpo.core.tokenizers import save

    digests = set()
    for index, local_files_only in enumerate((True, False)):
        tokenizer = AutoTokenizer.from_pretrained("models/base", local_files_only=local_files_only)
        save(tokenizer, tmp_path / str(index))
        digests.add(files.sha256(tmp_path / str(index) / "tokenizer_config.json"))
    assert len(digests) == 1


def test_rows_without_anything_to_learn_are_refused_by_id() -> None:
    rows = [
        {"id": "a", "prompt": "?", "answer": "1", "solution": "1"},
        {"id": "b", "prompt": "?", "answer": "2", "solution": None},
    ]
    with pytest.raises(Refused, match=r"sft.parquet: .*found none for b"):
        curriculum.Examples(None, Path("sft.parquet")).of(rows)


def test_no_rows_are_refused(away: Path) -> None:
    import pyarrow.parquet as pq

    path = Path("data/prepared/sft.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(Refused, match=r"found no rows \(prepare\.sft: 0\)"):
        sft.train(run_for(section(sft.Params, "sft"), "sft"))


@pytest.fixture
def away(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the working folder, to change."""
    shutil.copytree(folder, tmp_path / "away")
    monkeypatch.chdir(tmp_path / "away")
    return tmp_path / "away"


def test_a_text_longer_than_the_bases_window_is_refused_before_a_step(away: Path) -> None:
    source = files.read_json(sft.SOURCE)
    files.write_json(sft.SOURCE, source | {"window": 12})
    with pytest.raises(Refused, match=r"grpo\.max_completion_length: expected at most 12 tokens"):
        train_grpo()
    with pytest.raises(Refused, match=r"sft\.max_length: .*found \d\d for the longest"):
        sft.train(run_for(section(sft.Params, "sft"), "sft"))
    longest = max(
        len(row["prompt"]) for row in files.read_rows(Path("data/prepared/train.parquet"))
    )
    files.write_json(sft.SOURCE, source | {"window": longest + 1 + 14})
    rows = files.read_rows(Path("data/prepared/dev.parquet"))
    rewrite("dev", [rows[0] | {"prompt": "1" * (longest + 1)}, *rows[1:]])
    with pytest.raises(Refused, match=f"found {longest + 2 + 14} for the longest"):
        train_grpo(max_completion_length=14)


def test_a_reward_that_was_changed_since_the_gate_is_tried_before_the_first_step(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """validate is restored from DVC's cache where only grpo's section or custom/ differs."""
    late = SimpleNamespace(broken=lambda completions, **columns: ["one"] * len(completions))
    monkeypatch.setitem(sys.modules, "custom.late", late)
    shutil.rmtree("models/grpo", ignore_errors=True)
    with pytest.raises(Refused, match=r"custom\.late:broken: expected 3 finite .*found 'one'"):
        train_grpo(reward_funcs={"exact_answer": 1.0, "custom.late:broken": 1.0})
    assert not Path("models/grpo").exists()


def rewrite(split: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = "selected" if split == "train" else "prepared"
    pq.write_table(pa.Table.from_pylist(rows), f"data/{folder}/{split}.parquet")


def test_fewer_prompts_than_a_step_takes_are_refused_before_any_step(away: Path) -> None:
    rewrite("train", files.read_rows(Path("data/prepared/train.parquet"))[:3])
    shutil.rmtree("models/grpo", ignore_errors=True)
    with pytest.raises(Refused, match=r"it takes 4 different ones .*; found 3 in train"):
        train_grpo()
    assert not Path("models/grpo").exists()


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        (5, {"dataloader_drop_last": True}, "sft.max_steps: expected 3 steps; found 0"),
        (20, {"max_length": 4}, "20 of 20 examples whose prompt alone fills it"),
    ],
)
def test_a_warm_start_without_a_step_is_refused(
    away: Path, rows: int, changes: dict[str, Any], said: str
) -> None:
    rewrite("sft", files.read_rows(Path("data/prepared/sft.parquet"))[:rows])
    shutil.rmtree("models/sft", ignore_errors=True)
    values = section(sft.Params, "sft", curriculum=None, max_steps=3, warmup_steps=1, **changes)
    with pytest.raises(Refused, match=said):
        sft.train(run_for(values, "sft"))
    assert not Path("models/sft").exists()


def test_weights_that_are_not_finite_are_refused_where_the_logged_loss_shows_nothing(
    away: Path,
) -> None:
    import torch

    shutil.rmtree("models/sft", ignore_errors=True)
    values = section(sft.Params, "sft", max_steps=3, warmup_steps=0, learning_rate=1e30)
    with pytest.raises(Refused, match=r"sft, step 3: .*found NaN or infinity in any metric"):
        sft.train(run_for(values, "sft"))
    assert not Path("models/sft").exists()
    fine = {"a": torch.ones(2), "b": torch.ones(1, dtype=torch.int8)}
    saving.require_finite(fine, "sft")
    with pytest.raises(Refused, match=r"sft\.learning_rate: .*found NaN or infinity in c\."):
        saving.require_finite(fine | {"c": torch.tensor([0.0, math.inf])}, "sft")


def test_what_sft_cannot_show_as_the_profile_asks_is_said(
    away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = files.read_rows(Path("data/prepared/sft.parquet"))[:20]
    bare = [row | {"solution": None} for row in rows[:8]]
    rewrite("sft", [*bare, *rows[8:]])
    # <bos>1+2-3=<answer>0</answer><eos> is 11 tokens, a worked one more
    sft.train(
        run_for(section(sft.Params, "sft", max_steps=2, warmup_steps=0, max_length=12), "sft")
    )
    said = capsys.readouterr().out
    assert "sft: curriculum: 8 of 20 rows have no solution, and show their answer alone" in said
    assert "examples fill max_length (12): longer ones lost their answer's end" in said


def test_a_curriculum_is_not_laid_out_over_dropped_examples(away: Path) -> None:
    rows = files.read_rows(Path("data/prepared/sft.parquet"))[:20]
    rewrite("sft", [rows[0] | {"prompt": "1+" * 40 + "1="}, *rows[1:]])
    with pytest.raises(Refused, match=r"found 2 of \d\d examples whose prompt alone fills it \(64"):
        sft.train(run_for(section(sft.Params, "sft", max_steps=30, warmup_steps=1), "sft"))


def test_kept_columns_reach_rewards_and_samples_and_a_constant_reward_is_said(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = files.read_rows(Path("data/prepared/train.parquet"))
    for index, row in enumerate(rows):
        row["level"] = index % 3
        row["meta"] = {"tests": [row["answer"], "x"]}
    rewrite("train", rows)
    described = files.read_json(Path("data/prepared/dataset.json"))
    files.write_json(Path("data/prepared/dataset.json"), described | {"keep": ["level", "meta"]})
    levels: list[Any] = []

    def by_level(completions: list[str], level: list[int], **columns: Any) -> list[float]:
        levels.extend(zip(level, columns["meta"], columns["answer"], strict=True))
        return [float(one) for one in level]

    async def constant(completions: list[str], **columns: Any) -> list[float]:
        return [0.25] * len(completions)

    custom = SimpleNamespace(by_level=by_level, constant=constant)
    monkeypatch.setitem(sys.modules, "custom.mine", custom)
    train_grpo(reward_funcs={"custom.mine:by_level": 1.0, "custom.mine:constant": 0.5}, dev_every=0)
    assert all(meta == {"tests": [answer, "x"]} for _, meta, answer in levels)
    samples = files.read_parquet(Path("reports/grpo/samples.parquet"))
    assert list(samples.columns[-4:]) == ["by_level", "constant", "level", "meta"]
    assert samples["level"].tolist() == samples["by_level"].tolist()
    assert samples["level"].dtype == "int64"
    assert set(samples["constant"]) == {0.25}
    told = files.read_json(Path("reports/grpo/health.json"))["shortfalls"]
    # A column is the same for a whole group: it ranks no completion above another.
    never = "The reward never varied within a group of completions: GRPO learned from nothing."
    assert told == [never]


def test_rows_reach_trl_in_order_mapped_from_the_disk_read_once_and_nothing_is_left(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations and columns of every kind too, over several batches and row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for index in range(10):
        turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{index}+1="}]
        meta = None if index == 3 else {"tests": ["x"] * (index % 3), "level": index / 4}
        rows.append({"id": str(index), "prompt": turns, "answer": None, "meta": meta})
    schema = pa.Table.from_pylist(rows).schema.set(2, pa.field("answer", pa.string()))
    path = away / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=4)
    monkeypatch.setattr(files, "BATCH", 3)
    file = files.ParquetFile(path)
    reads: list[int] = []

    def counted() -> Any:
        for start, batch in file.batches(files.BATCH):
            reads.append(start)
            yield batch

    with trainers.scratch(away / "held") as own:
        found = trainers.mapped(own / "rows", counted(), file.schema)
        assert reads == [0, 3, 4, 7, 8]
        assert list(found) == [found[index] for index in range(10)] == rows
        assert [Path(one["filename"]) for one in found.cache_files] == [own / "rows"]
        doubled = found.map(lambda row: {"twice": 2 * row["id"]}, batched=False)
        assert {Path(one["filename"]).parent for one in doubled.cache_files} == {own}
        assert doubled["twice"][9] == "99"
    assert list((away / "held").iterdir()) == []


def test_a_training_leaves_no_rows_behind_nor_those_of_one_that_was_killed(away: Path) -> None:
    values = section(grpo.Params, "grpo", max_steps=1, dev_every=0)
    left = Path(".checkpoints/grpo/rows-0/rows")
    source = files.read_json(grpo.SOURCE)
    files.write_json(grpo.SOURCE, source | {"window": 3})
    with pytest.raises(Refused, match=r"grpo\.max_completion_length"):
        grpo.train(run_for(values, "grpo"))
    assert not left.parent.exists()
    left.parent.mkdir()
    left.write_bytes(b"of a run that was killed")
    files.write_json(grpo.SOURCE, source)
    grpo.train(run_for(values, "grpo"))
    assert list(Path(".checkpoints").iterdir()) == []
