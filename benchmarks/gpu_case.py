"""One case of gpu_shapes.py, in a process of its own.

python benchmarks/gpu_case.py STAGE-VARIANT[-real][-saved][-bare]
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu_meter import GENERATION, SYNC, TRAINING, Meter, Phases, TrainingEnded, mfu
from gpu_shapes import BASE, DEVICE, RAW, ROOT, profile_of
from training_case import bare_settings

STEPS = {"sft": 6, "grpo": 3}
QUESTIONS = 64
"""What evaluate asks."""
GSM8K = r"#### *([-\d,.]+)"
"""Where a completion states its answer."""
SAVED = Path("cases/sft-lora-saved/models/sft")


def main() -> None:
    """Import everything, say "ready", wait for a line on stdin, work, and print the result.

    While one case computes, the next one can thus import.
    """
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    name = sys.argv[1]
    stage, variant, *how = name.split("-")
    sys.path.insert(0, str(ROOT))
    from regrpo.core import profiles

    profile = profiles.read_profile(profile_of(variant))
    section, lengths = settings_of(stage, profile)
    prepare = {"evaluate": evaluation, "sft": training, "grpo": training}[stage]
    work = prepare(stage, section, lengths, how)
    prepare_folder(ROOT / "cases" / name, lengths, "real" in how)
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        sys.exit(1)
    began = time.perf_counter()
    result = work()
    seconds_in_all = round(time.perf_counter() - began, 1)
    result = {"case": name, "seconds": seconds_in_all, "lengths": lengths} | result
    print("RESULT " + json.dumps(result), flush=True)


def training(
    stage: str, section: dict[str, Any], lengths: tuple[int, int], how: list[str]
) -> Callable[[], dict[str, Any]]:
    """Import what sft or grpo needs; returns what trains, measured."""
    import bare_trl
    import trl

    from regrpo.core import profiles
    from stages import grpo, sft

    module = {"sft": sft, "grpo": grpo}[stage]
    trainer = {"sft": trl.SFTTrainer, "grpo": trl.GRPOTrainer}[stage]
    params = profiles.parse_section(module.Params, section, stage)
    sequences = params.per_device_train_batch_size * params.gradient_accumulation_steps
    run = types.SimpleNamespace(
        params=params,
        stage=stage,
        reports=Path("reports"),
        log=lambda values, step=0: None,
        checkpoint_folder=lambda device: Path("checkpoints"),
    )

    def work() -> dict[str, Any]:
        meter = Meter(DEVICE)
        meter.watch(trainer, saves="saved" in how)
        with contextlib.suppress(TrainingEnded):
            if "bare" in how:
                bare_trl.train(stage, bare_settings(stage, params, DEVICE, GSM8K))
            else:
                module.train(run)
        result = meter.times() | meter.phases.memory()
        result |= speeds(result, sequences, lengths, "real" in how)
        result["mfu"] = utilization(result, section, sum(lengths))
        return result | {
            "weights": meter.weights,
            "numbers": meter.numbers,
            "sequences": sequences,
        }

    return work


def evaluation(
    stage: str, section: dict[str, Any], lengths: tuple[int, int], how: list[str]
) -> Callable[[], dict[str, Any]]:
    """Import what evaluate needs; returns what loads a model and asks it, measured."""
    from regrpo.core import conversation
    from regrpo.evaluate import harness, tasks

    surroundings = contextlib.ExitStack()
    surroundings.enter_context(harness.surroundings())
    import lm_eval.tasks  # noqa: F401  # takes seconds, and comes after its surroundings

    def work() -> dict[str, Any]:
        phases = Phases(DEVICE)
        with surroundings:
            config = conversation.generation_config(ROOT / SAVED)
            stops = conversation.as_ids(config.eos_token_id)
            [task] = tasks.find_tasks(["heldout"], "final_number")
            model = harness.load_model(
                ROOT / SAVED,
                backend=section.get("backend", "hf"),
                device=DEVICE,
                batch_size=section["batch_size"],
                seed=0,
                model_args=section.get("model_args", {}),
                stops=stops,
            )
            loading = sum(phases.take_seconds().values())
            with phases.phase(GENERATION):
                harness.ask(
                    task,
                    model,
                    chat=False,
                    max_gen_toks=section["max_gen_toks"],
                    limit=QUESTIONS,
                    seed=0,
                    decoding=harness.decoding_by(section.get("backend", "hf"), stops),
                )
        seconds = phases.take_seconds()[GENERATION]
        return phases.memory() | {
            "loading_seconds": round(loading, 1),
            "generate_seconds": round(seconds, 3),
            "questions_per_second": round(QUESTIONS / seconds, 1),
        }

    return work


def settings_of(stage: str, profile: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
    """The stage's section for a few steps, and the tokens of its prompts and completions."""
    prompt = profile["validate"]["max_prompt_tokens"]
    if stage == "evaluate":
        return profile[stage], (prompt, profile[stage]["max_gen_toks"])
    section = profile[stage] | {"max_steps": STEPS[stage], "logging_steps": 1}
    if stage == "grpo":
        completion = section["max_completion_length"]
        longest = {"min_new_tokens": completion}
        if section["use_vllm"]:
            longest = {"min_tokens": completion, "ignore_eos": True}
        section |= {"generation_kwargs": longest, "sample_every": 1000}
        return section, (prompt, completion)
    half = section["max_length"] // 2  # the plan counts half of the window for each
    return section, (section["max_length"] - half, half)


def prepare_folder(folder: Path, lengths: tuple[int, int], real: bool) -> None:
    """Make `folder` the working directory: models of random weights, and data to train on."""
    for place in ("models", "data", "reports"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "reports/base_model").mkdir(exist_ok=True)
    shutil.copyfile(ROOT / BASE, folder / "reports/base_model/source.json")
    (folder / "models/base").symlink_to((ROOT / RAW).resolve())
    if not folder.name.startswith("sft"):
        (folder / "models/sft").symlink_to((ROOT / RAW).resolve())
    for name in ("stages", "custom"):
        (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    if real:
        Path("data/prepared").symlink_to(ROOT / "data/prepared")
    else:
        write_rows(Path("data/prepared"), *lengths)
    Path("data/selected").mkdir()
    Path("data/selected/train.parquet").symlink_to(Path("data/prepared/train.parquet").resolve())


def write_rows(folder: Path, prompt: int, completion: int) -> None:
    """Rows of one comma a token; the tokenizer adds <bos> to the prompt, the trainer <eos>."""
    import pandas as pd

    folder.mkdir()
    texts = {"prompt": "," * (prompt - 1), "solution": "," * (completion - 1)}
    rows = [
        {"id": str(index), "question": "", "answer": "1", "source_row": index, **texts}
        for index in range(256)
    ]
    for split in ("sft", "train", "eval"):
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    dataset = {"verifier": "final_number", "prompt_style": "text"}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def speeds(
    result: dict[str, Any], sequences: int, lengths: tuple[int, int], real: bool
) -> dict[str, Any]:
    """Tokens a second; what generates counts apart from what trains."""
    step, phases = result["step_seconds"], result["phases"]
    generation = phases[GENERATION] + phases[SYNC]
    tokens = trained = generated = whole = None
    if not real:  # real rows have lengths of their own
        tokens = sequences * sum(lengths)
        trained = round(tokens / (step - generation))
        whole = round(tokens / step)
    if generation:
        generated = round(sequences * lengths[1] / generation)
    return {
        "generate_seconds": round(generation, 3),
        "train_seconds": round(step - generation, 3),
        "tokens_a_step": tokens,
        "tokens_per_second": whole,
        "tokens_per_second_trained": trained,
        "tokens_per_second_generated": generated,
    }


def utilization(result: dict[str, Any], section: dict[str, Any], sequence: int) -> float | None:
    """MFU of loss and backward; None on a CPU, in another type than bf16, for an unknown card."""
    import torch
    from transformers import AutoConfig

    if DEVICE != "cuda" or not section["bf16"] or not result["tokens_a_step"]:
        return None
    seconds = result["phases"][TRAINING]
    config, card = AutoConfig.from_pretrained(ROOT / RAW), torch.cuda.get_device_name()
    adapter = section["lora"] is not None
    return mfu(config, result["tokens_a_step"] / seconds, sequence, adapter, card)


if __name__ == "__main__":
    main()
