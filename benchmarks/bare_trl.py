"""sft and grpo with TRL alone: what a run costs without regrpo around it.

    python benchmarks/bare_trl.py sft|grpo SETTINGS.json

SETTINGS.json names the folder of a model, a Parquet file (columns prompt, solution, answer), a
regular expression that finds the answer in a completion, LoRA's arguments or null, torch's threads,
and under `trainer` the arguments of SFTConfig or GRPOConfig. `dev`, if it is not null, has a file
of questions for a greedy accuracy during grpo, and `every`, the steps from one to the next.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer


class Rewards:
    """The two reward functions, by a pattern whose first group is the answer."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def exact_answer(self, completions: list[str], answer: list[str], **_: Any) -> list[float]:
        pairs = zip(map(self.stated, completions), answer, strict=True)
        return [float(found == {number(gold)}) for found, gold in pairs]

    def answer_format(self, completions: list[str], **_: Any) -> list[float]:
        return [float(len(self.pattern.findall(completion)) == 1) for completion in completions]

    def stated(self, completion: str) -> set[int | str]:
        return {number(text) for text in self.pattern.findall(completion)}


def number(text: str) -> int | str:
    try:
        return int(text.replace(",", "").rstrip("."))
    except ValueError:
        return text


class DevAccuracy(TrainerCallback):
    """Greedy accuracy on questions held out, at the start, every so many steps and at the end."""

    def __init__(self, data: str, every: int, rewards: Rewards) -> None:
        self.rows = pd.read_parquet(data)
        self.every = every
        self.rewards = rewards

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.measure(args, state, **parts)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(args, state, **parts)

    def measure(self, args: Any, state: Any, model: Any, processing_class: Any, **_: Any) -> None:
        prompts = list(self.rows["prompt"])
        batch = processing_class(prompts, return_tensors="pt", padding=True, padding_side="left")
        length = args.max_completion_length
        model.eval()
        ids = model.generate(**batch.to(model.device), max_new_tokens=length, do_sample=False)
        model.train()
        completions = ids[:, batch["input_ids"].shape[1] :]
        texts = processing_class.batch_decode(completions, skip_special_tokens=True)
        scores = self.rewards.exact_answer(texts, list(self.rows["answer"]))
        accuracy = sum(scores) / len(scores)
        state.log_history.append({"step": state.global_step, "dev_accuracy": accuracy})


def train(stage: str, settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    set_seed(settings["trainer"]["seed"])
    rows = Dataset.from_pandas(pd.read_parquet(settings["data"]))
    lora = settings["lora"]
    shared = {
        "model": settings["model"],
        "processing_class": AutoTokenizer.from_pretrained(settings["model"]),
        "peft_config": LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None,
    }
    if stage == "sft":
        rows = rows.rename_column("solution", "completion").select_columns(["prompt", "completion"])
        arguments = SFTConfig(**settings["trainer"])
        trainer = SFTTrainer(args=arguments, train_dataset=rows, **shared)
    else:
        arguments = GRPOConfig(**settings["trainer"])
        judge = Rewards(settings["answer"])
        rewards = [judge.exact_answer, judge.answer_format][: len(arguments.reward_weights or "1")]
        trainer = GRPOTrainer(reward_funcs=rewards, args=arguments, train_dataset=rows, **shared)
        if settings["dev"]:
            trainer.add_callback(DevAccuracy(**settings["dev"], rewards=judge))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    train(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
