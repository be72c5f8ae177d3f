"""Where a step's time goes, and how a grpo step grows with what a profile can change.

    python benchmarks/step_time.py [--rounds 5] [--full]

A step of sft and of grpo by phase, of the default profile. Then grpo steps of TRL on the default's
model made from scratch, one value changed: completions a step, their length (every completion is
as long as it may be), parameters; to each the law that fits. --full takes more points.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import laws
import training
import workspace
from timing import Row, alone, run_alone, take_turns

from regrpo.core import profiles

SUBJECT = "step_time"
METER = Path(__file__).with_name("gpu_meter.py")
STEPS = 3
"""Steps of each point and round; the first one warms up and does not count."""
COMPLETIONS, LENGTH, WIDTH = 64, 14, 128
"""What stays while another value changes: completions a step, tokens each, the hidden size."""
POINTS = {"completions": (32, 64, 128), "length": (8, 16, 32), "width": (64, 128, 256)}
MORE = {
    "completions": (32, 64, 128, 256, 512),
    "length": (8, 16, 32, 64, 128),
    "width": (64, 128, 256, 512, 768),
}
GROUP = 16


def measure(full: bool, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        rows = phase_rows(Path(temporary), full)
    with tempfile.TemporaryDirectory() as temporary:
        return rows + law_rows(Path(temporary), MORE if full else POINTS, rounds)


# --- a step by phase ------------------------------------------------------------------------------


def phase_rows(folder: Path, full: bool) -> list[Row]:
    """Seconds of a step by phase, for sft and then grpo of the default profile."""
    rows = []
    for stage in training.make(folder, full):
        workspace.run(folder, sys.executable, str(METER), stage, "meter.json")
        found = json.loads((folder / "meter.json").read_text())
        whole = found["step_seconds"]
        count = len(found["steps"]) - 1
        rows.append(alone(SUBJECT, f"{stage} step", [whole], note=f"median of {count} steps"))
        for name, seconds in found["phases"].items():
            if seconds:
                share = f"{seconds / whole:.0%} of the step"
                rows.append(alone(SUBJECT, f"{stage} step: {name}", [seconds], note=share))
    return rows


# --- growth ---------------------------------------------------------------------------------------


def law_rows(folder: Path, points: Mapping[str, Sequence[int]], rounds: int) -> list[Row]:
    """The growth laws of a grpo step: by completions, length and parameters."""
    widths = {WIDTH, *points["width"]}
    sizes = {width: make_model(folder / f"model{width}", width) for width in widths}
    usual = {"completions": COMPLETIONS, "length": LENGTH, "width": WIDTH}
    works: dict[str, Callable[[], float]] = {}
    for name, values in points.items():
        for value in values:
            works[f"{name} {value}"] = partial(step_seconds, folder, **usual | {name: value})
    taken = take_turns(works, rounds)
    found = []
    for name, values in points.items():
        xs = [sizes[value] if name == "width" else value for value in values]
        seconds = [taken[f"{name} {value}"] for value in values]
        found.append(law_row(NAMES[name], xs, seconds))
    return found


NAMES = {"completions": "completions", "length": "tokens a completion", "width": "parameters"}


def law_row(of: str, xs: Sequence[float], seconds: Sequence[Sequence[float]]) -> Row:
    """The law of the medians; its figure is how many times as long the largest takes."""
    law = laws.fit(xs, [statistics.median(taken) for taken in seconds])
    times = [last / first for first, last in zip(seconds[0], seconds[-1], strict=True)]
    what = f"grpo step, {xs[-1] / xs[0]:.3g} times as many {of}"
    note = f"{law.sentence(of)}, {xs[0]:,} to {xs[-1]:,}"
    return alone(SUBJECT, what, times, unit="times as long", note=note)


def make_model(folder: Path, width: int) -> int:
    """The default's model from scratch at another width; returns its parameters."""
    from regrpo.inputs.model_folders import count_weights
    from stages.base_model import Params

    section = profiles.read_profile(workspace.ROOT / "params.yaml")["base_model"]
    config = section["source"]["config"] | {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "head_dim": width // 4,
        "query_pre_attn_scalar": width // 4,
    }
    source = section["source"] | {"config": config}
    params = profiles.parse_section(Params, section | {"source": source}, "base_model")
    folder.mkdir()
    params.source.bring(folder, 0)
    return count_weights(folder)


def step_seconds(folder: Path, completions: int, length: int, width: int) -> float:
    """The median of a few grpo steps, every completion of exactly this length."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from regrpo.core import conversation, hardware
    from stages.grpo import Params

    section = profiles.read_profile(workspace.ROOT / "params.yaml")["grpo"]
    changes = {
        "per_device_train_batch_size": completions,
        "num_generations": GROUP,
        "max_completion_length": length,
        "max_steps": STEPS,
        "logging_steps": STEPS,
        "generation_kwargs": {"min_new_tokens": length},
    }
    params = profiles.parse_section(Params, section | changes, "grpo")
    hardware.set_up(params.seed, params.threads)
    model = folder / f"model{width}"
    prompts = [f"{index // 10}+{index % 10}-1=" for index in range(100)]
    settings = params.trainer_settings("cpu") | {"save_strategy": "no", "reward_weights": None}
    taken: list[float] = []

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            taken.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            taken[-1] = time.perf_counter() - taken[-1]

    trainer = GRPOTrainer(
        model=str(model),
        processing_class=conversation.load_tokenizer(model),
        reward_funcs=[letters],
        args=GRPOConfig(output_dir=str(folder / "out"), **settings),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return statistics.median(taken[1:])


def letters(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs within a group, so that there is something to learn."""
    return [float(len(set(completion))) for completion in completions]


if __name__ == "__main__":
    raise SystemExit(run_alone(measure, __doc__))
