"""sft and grpo with TRL alone: what a run costs without regrpo around it.

    python benchmarks/bare_trl.py sft|grpo SETTINGS.json

SETTINGS.json names the folder of a model, a Parquet file (columns prompt, solution, answer), LoRA's
arguments or null, torch's threads, and under `trainer` the arguments of SFTConfig or GRPOConfig.
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
from transformers import AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

ANSWER = re.compile(r"#### *([-\d,.]+)")


def exact_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    stated = [ANSWER.findall(completion) for completion in completions]
    return [float(found == [gold]) for found, gold in zip(stated, answer, strict=True)]


def answer_format(completions: list[str], **_: Any) -> list[float]:
    return [float(len(ANSWER.findall(completion)) == 1) for completion in completions]


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
        rewards = [exact_answer, answer_format][: len(arguments.reward_weights)]
        trainer = GRPOTrainer(reward_funcs=rewards, args=arguments, train_dataset=rows, **shared)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    train(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
