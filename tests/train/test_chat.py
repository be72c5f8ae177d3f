"""sft and grpo on chats: with each family's template a model learns, and ends its turns itself."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regrpo.core import conversation, files, rendering
from regrpo.core.verifiers import VERIFIERS
from regrpo.train import callbacks
from stages import base_model, grpo, sft
from tests.support import templates
from tests.support.splits import stops_of, trip_on
from tests.support.templates import GEMMA, LLAMA, OURS, QWEN, Family
from tests.support.trainings import LEARNER, run_for, section

EXACT = VERIFIERS["exact_int"]
SFT = LEARNER["sft"] | {
    "curriculum": None,
    "max_steps": 48,
    "per_device_train_batch_size": 50,
    "warmup_steps": 10,
    "max_length": 128,
    "logging_steps": 12,
}
GRPO = LEARNER["grpo"] | {
    "max_steps": 30,
    "per_device_train_batch_size": 160,
    "learning_rate": 5e-4,
    "num_generations": 8,
    "max_completion_length": 8,
    "warmup_steps": 5,
    "dev_every": 30,
    "weight_decay": 0.0,
}


def rows() -> list[dict[str, Any]]:
    """The 100 sums of two digits, asked in a chat."""
    made = []
    for index in range(100):
        question = f"{index // 10}+{index % 10}="
        made.append(
            {
                "id": f"q{index}",
                "prompt": [{"role": "user", "content": question}],
                "question": question,
                "answer": str(index // 10 + index % 10),
                "solution": None,
                "source_row": index,
            }
        )
    return made


def write_project(family: Family) -> None:
    """data/prepared/ and models/base/ in the current folder."""
    from transformers import Gemma3ForCausalLM, set_seed

    frame = pd.DataFrame(rows())
    for split in ("sft", "train", "dev"):
        files.write_parquet(Path(f"data/prepared/{split}.parquet"), frame)
    files.write_parquet(grpo.TRAIN, frame)
    dataset = {"verifier": "exact_int", "prompt_style": "chat", "prompt_template": "{question}"}
    files.write_json(Path("data/prepared/dataset.json"), dataset)
    made = templates.tokenizer(family)
    source = section(base_model.Params, "base_model", **LEARNER["base_model"]).source
    config = source.configuration()
    config.vocab_size = -(-len(made) // 8) * 8
    config.eos_token_id = made.eos_token_id
    set_seed(0)
    Gemma3ForCausalLM(config).save_pretrained("models/base")
    made.save_pretrained("models/base")
    decided = conversation.settle(Path("models/base"))
    source = {"window": config.max_position_embeddings, "conversation": decided}
    files.write_json(Path("reports/base_model/source.json"), source)


@pytest.mark.slow
@pytest.mark.parametrize("family", [OURS, QWEN, LLAMA], ids=["gemma", "qwen", "llama"])
def test_a_model_learns_by_a_familys_template_and_ends_its_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    """The default's own template, which is Gemma's, ends a turn with another token than a text."""
    monkeypatch.chdir(tmp_path)
    write_project(family)
    trip = trip_on(Path("models/base"), "chat")
    for columns in trip.columns("sft", rows()):
        del columns["prompt_tokens"], columns["answer_tokens"]
        assert not any(columns.values()), "the gate has nothing against it"
    sft.train(run_for(section(sft.Params, "sft", **SFT), "sft"))
    stops = stops_of(Path("models/base"), "chat")
    saved = conversation.generation_config(Path("models/sft"))
    assert set(conversation.as_ids(saved.eos_token_id)) == set(stops)
    grpo.train(run_for(section(grpo.Params, "grpo", **GRPO), "grpo"))
    metrics = files.read_json(Path("reports/grpo/metrics.json"))
    history = list(csv.DictReader(Path("reports/grpo/history.csv").read_text().splitlines()))
    assert metrics["reward_last"] > metrics["reward_first"] + 0.03
    assert metrics["dev_accuracy_last"] > metrics["reward_first"], "greedy, and stopped alike"
    assert float(history[-1]["completions/clipped_ratio"]) < 0.1, "completions end by themselves"


def test_the_defaults_template_writes_what_gemmas_does() -> None:
    prompts = [row["prompt"] for row in rows()]
    written = []
    for family in (OURS, GEMMA):
        renderer = rendering.in_process(templates.tokenizer(family), "models/base")
        written.append(conversation.render(prompts, renderer))
    assert written[0] == written[1]


def caught(monkeypatch: pytest.MonkeyPatch, train: Any, values: Any, stage: str) -> Any:
    """The trainer that a stage makes, before its first step."""
    from regrpo.train import trainers

    class Enough(Exception):
        pass

    made = []

    def stop(trainer: Any, *_: Any) -> None:
        made.append(trainer)
        raise Enough

    monkeypatch.setattr(trainers, "fit", stop)
    with pytest.raises(Enough):
        train(run_for(values, stage))
    return made[0]


@pytest.mark.parametrize("family", [OURS, QWEN], ids=["ours", "qwen"])
def test_the_gate_encodes_what_the_trainers_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(family)
    base = Path("models/base")
    trainer = caught(monkeypatch, sft.train, section(sft.Params, "sft", **SFT), "sft")
    pairs = [(row["prompt"], EXACT.render(row["answer"])) for row in rows()]
    trip = trip_on(base, "chat")
    ours = conversation.encode(trip.tokenizer, trip._completed(pairs), True)
    assert [row["input_ids"] for row in trainer.train_dataset] == ours
    sft.pass_through(run_for(section(sft.Params, "sft", max_steps=0), "sft"))
    trainer = caught(monkeypatch, grpo.train, section(grpo.Params, "grpo", **GRPO), "grpo")
    prompts = [row["prompt"] for row in rows()]
    with rendering.RenderingProcess(trip.tokenizer, str(base)) as renderer:  # as validate has it
        texts = conversation.render(prompts, renderer)
    ours = conversation.encode(trip.tokenizer, texts, True)
    assert trainer._tokenize_prompts(prompts)[0] == ours
    assert set(trainer.eos_token_ids) == trip.stops == set(trainer.generation_config.eos_token_id)


def test_what_a_base_would_do_to_sampling_is_done_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repetition penalty and forbidden tokens change greedy dev accuracy, unless set aside."""
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    write_project(OURS)
    base = Path("models/base")
    tokenizer = conversation.load_tokenizer(base)
    prompts = [row["prompt"] for row in rows()[:8]]

    def completions() -> list[str]:
        model = AutoModelForCausalLM.from_pretrained(base)
        return callbacks.greedy(model, tokenizer, prompts, 6)

    plain = completions()
    brought = files.read_json(base / conversation.GENERATION)
    brought |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 6}
    files.write_json(base / conversation.GENERATION, brought)
    assert completions() != plain, "they would have"
    assert len(conversation.settle(base)["set_aside"]) == 3
    assert completions() == plain
    sft.pass_through(run_for(section(sft.Params, "sft", max_steps=0), "sft"))
    trainer = caught(monkeypatch, grpo.train, section(grpo.Params, "grpo", **GRPO), "grpo")
    config = trainer.model.generation_config
    assert not config.repetition_penalty
    assert not config.min_new_tokens
