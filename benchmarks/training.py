"""sft and grpo beside TRL alone (bare_trl.py), and a stage with MLflow's tracking on and off.

    python benchmarks/training.py [--rounds 5] [--full]

The default profile, its steps shortened unless --full. TRL alone gets the same model, rows, steps
and settings, saves as many checkpoints and measures dev as often, and must end in the same weights,
bit for bit: else this raises. Compared are the seconds of trainer.train() and those of the whole
process, which are itemised.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import workspace
from timing import Row, alone, compared, run_alone, take_turns
from training_case import STARTS, bare_settings

from regrpo.core import files, profiles, verifiers
from regrpo.train import curriculum
from stages import grpo, sft

SUBJECT = "training"
SHORT = {"sft": 100, "grpo": 10}
"""Optimizer steps that fit five rounds of each into a few minutes."""
TRAIN_AT_MOST = 1.03
"""Times the seconds of TRL alone that trainer.train() may take."""
CASE = Path(__file__).with_name("training_case.py")
MODULES = {"sft": sft, "grpo": grpo}
INTEGER = r"<answer>\s*((?:[-+]?\d+\.?\s*)?<(?!/answer>)|[-+]?\d+(?=\.?\s*</answer>))"
"""Where a completion of the default's states its answer; one left open is found as no number."""
ITEMS = {
    "imports": "from the start of the process",
    "load": "model and tokenizer",
    "rows": "read, tokenized, the trainer made",
    "save": "the trained model",
    "rest": "profile, locks, record, journal, reports, curves; the end of the process",
}


def measure(full: bool, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        steps = make(folder, full)
        rows = []
        for stage, count in steps.items():
            how = "the profile's own steps" if full else f"{count} steps"
            rows += stage_rows(folder, stage, f"{stage}, {how}", rounds)
        return rows


def make(folder: Path, full: bool) -> dict[str, int]:
    """A workspace whose data, base model and MLflow's database are made; the steps by stage."""
    workspace.make(folder)
    profile = profiles.read_profile(folder / "params.yaml")
    steps = {stage: profile[stage]["max_steps"] for stage in SHORT}
    if not full:
        steps = {stage: min(count, SHORT[stage]) for stage, count in steps.items()}
        workspace.set_sections(folder, {stage: {"max_steps": n} for stage, n in steps.items()})
    workspace.run_stage(folder, "prepare", REGRPO_TRACKING="on")
    workspace.run_stage(folder, "base_model")
    workspace.run_stage(folder, "select")
    workspace.wait_for_tracker(folder)
    return steps


def stage_rows(folder: Path, stage: str, name: str, rounds: int) -> list[Row]:
    """Run the stage and TRL alone in turns; grpo starts from what sft left."""
    settings = write_bare_settings(folder, stage)
    works = {
        "stage": lambda: run(folder, stage, "stage", REGRPO_TRACKING="on"),
        "TRL alone": lambda: run(folder, stage, settings),
    }
    if stage == "sft":
        works["untracked"] = lambda: run(folder, stage, "stage")
    taken = take_turns(works, rounds)
    require_same_weights(folder, stage)
    ours, bare = by_item(taken["stage"]), by_item(taken["TRL alone"])
    found = [
        compared(
            SUBJECT,
            f"{name}: trainer.train()",
            ours["train"],
            bare["train"],
            note="tracked; TRL alone ends in the same weights, bit for bit",
            most=TRAIN_AT_MOST,
        ),
        compared(
            SUBJECT,
            f"{name}: trainer.train(), processor time",
            ours["processor"],
            bare["processor"],
            note="what others on the machine do not lengthen",
        ),
        compared(SUBJECT, f"{name}: whole process", ours["whole"], bare["whole"]),
    ]
    for item, note in ITEMS.items():
        row = alone(SUBJECT, f"{name}: {item}", ours[item], note=note)
        found.append(replace(row, peer=statistics.median(bare[item])))
    if stage == "sft":
        off = by_item(taken["untracked"])
        note = "MLflow's writer runs beside it; the peer has tracking off"
        for item, what in (("train", "trainer.train()"), ("whole", "whole process")):
            what = f"{name}, tracking on and off: {what}"
            found.append(compared(SUBJECT, what, ours[item], off[item], note=note))
    return found


def run(folder: Path, stage: str, work: str, **variables: str) -> dict[str, float]:
    """One training in a process of its own: its seconds by item.

    Besides these `whole`, `rest`, and `processor`: train()'s on a processor.
    """
    out = folder / "case.json"
    if work != "stage":
        shutil.rmtree(folder / "bare", ignore_errors=True)
    began = time.time()
    command = (sys.executable, str(CASE), stage, work, str(out), "--began", str(began))
    workspace.run(folder, *command, **variables)
    whole = time.time() - began
    workspace.wait_for_tracker(folder)  # the next one has the machine for itself
    found = json.loads(out.read_text())
    seconds: dict[str, float] = found["seconds"]
    rest = whole - sum(seconds.values())
    return seconds | {"whole": whole, "rest": rest, "processor": found["processor"]["train"]}


def by_item(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Seconds by item, of each round."""
    return {item: [seconds[item] for seconds in rounds] for item in rounds[0]}


# --- the same training for bare_trl.py ------------------------------------------------------------


def write_bare_settings(folder: Path, stage: str) -> str:
    """Settings in the workspace that train what its profile says; returns the file's name."""
    module: Any = MODULES[stage]
    section = profiles.read_profile(folder / "params.yaml")[stage]
    params = profiles.parse_section(module.Params, section, stage)
    dev = None
    if stage == "grpo" and params.dev_every:
        dev = {"data": "data/prepared/dev.parquet", "every": params.dev_every}
    settings = bare_settings(stage, params, "cpu", INTEGER, dev)
    settings["trainer"] |= {"output_dir": "bare", "save_total_limit": 2}
    if stage == "sft":
        settings["data"] = "laid_out.parquet"
        lay_out(folder, params)
    (folder / f"{stage}.json").write_text(json.dumps(settings))
    return f"{stage}.json"


def lay_out(folder: Path, params: sft.Params) -> None:
    """sft's examples as a file, in the order in which its curriculum shows them."""
    import pandas as pd

    path = folder / "data/prepared/sft.parquet"
    dataset = files.read_json(folder / "data/prepared/dataset.json")
    shown = curriculum.Examples(verifiers.of_dataset(dataset), path).of(files.read_rows(path))
    rows = len(shown) // 2
    order = params.draw_order(rows) if params.curriculum else range(0, 2 * rows, 2)
    table = pd.DataFrame([shown[index] for index in order])
    table.rename(columns={"completion": "solution"}).to_parquet(folder / "laid_out.parquet")


def require_same_weights(folder: Path, stage: str) -> None:
    """Raise if the stage's weights and TRL's are not equal bit for bit, or none have moved."""
    start, ours, bare = (
        weights(folder / place) for place in (STARTS[stage], f"models/{stage}", "bare")
    )
    if ours != bare:
        names = [name for name in ours if ours[name] != bare.get(name)]
        raise RuntimeError(f"{stage} and TRL alone end in other weights: {', '.join(names)}")
    if ours == start:
        raise RuntimeError(f"{stage} moved no weight, so that equal ones say nothing")


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of each tensor of a model folder."""
    from safetensors.numpy import load_file

    found = load_file(folder / "model.safetensors")
    return {name: hashlib.sha256(tensor.tobytes()).hexdigest() for name, tensor in found.items()}


if __name__ == "__main__":
    raise SystemExit(run_alone(measure, __doc__))
