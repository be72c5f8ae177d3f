"""How long until the model can do it, by the project's settings and by TRL's own defaults.

    python benchmarks/defaults.py --full [--rounds 5]

Twice the same number of completions, or of rows, at most. grpo by GRPOConfig's defaults instead of
the profile's, from the project's own warm-started model; and sft by SFTConfig's defaults, then the
profile's grpo. Both run in TRL alone (bare_trl.py), so that nothing else differs. Varied is every
value of the section at once (learning rate, batch, group, length, precision, checkpointing, ...);
kept are seed, threads, reward, rows and how often dev is measured. Counted are the seconds of
trainer.train() until the greedy accuracy on dev is REACHED. Hours long: without --full nothing is
done. Where one side does not get there once is enough: the same bits would come again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import training
import workspace
from timing import Row, compared, run_alone, show, take_turns

SUBJECT = "defaults"
REACHED = 0.8
"""Greedy accuracy on dev at which the clock stops."""
KEPT = ("output_dir", "seed", "use_cpu", "report_to", "disable_tqdm", "dataloader_pin_memory")
"""What of a section's arguments is no choice of how to train."""
Outcome = Mapping[str, Any]
"""`seconds` until it was reached, else None; `trained` (seconds in all); `dev`, the last one."""


def measure(full: bool, rounds: int) -> list[Row]:
    if not full:
        show(f"{SUBJECT}: only with --full")
        return []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training.make(folder, True)
        warm_up = training.run(folder, "sft", "stage")["train"]
        ours = read_settings(folder, "grpo")
        theirs = by_defaults("grpo", ours)
        rows = [
            row_of(
                "grpo by GRPOConfig's defaults, from the project's warm start",
                lambda: outcome(folder, ours),
                lambda: outcome(folder, theirs),
                rounds,
            )
        ]
        project = read_settings(folder, "sft")
        project["trainer"]["output_dir"] = ours["model"]
        defaults = by_defaults("sft", project)

        def both(sft: dict[str, Any]) -> Outcome:
            return outcome(folder, ours, warmed(folder, sft))

        what = "sft by SFTConfig's defaults, then the profile's grpo"
        rows.append(row_of(what, lambda: both(project), lambda: both(defaults), rounds))
        show(f"the stage's own warm start took {warm_up:.0f} s")
        return rows


def row_of(
    what: str, ours: Callable[[], Outcome], theirs: Callable[[], Outcome], rounds: int
) -> Row:
    """The row of two settings; further rounds only where both get there."""
    works = {"the profile's": ours, "TRL's defaults": theirs}
    taken = take_turns(works, 1)
    first = {name: outcomes[0] for name, outcomes in taken.items()}
    notes = [f"{name}: {sentence(found)}" for name, found in first.items()]
    note = f"until dev accuracy {REACHED}. {'; '.join(notes)}"
    times = {name: found["seconds"] for name, found in first.items()}
    if None in times.values():
        mine, others = times.values()
        return Row(SUBJECT, what, ours=mine, peer=others, rounds=1, note=note)
    for name, more in take_turns(works, rounds - 1).items():
        taken[name] += more
    seconds = [[found["seconds"] for found in taken[name]] for name in works]
    return compared(SUBJECT, what, *seconds, note=note)


def sentence(found: Outcome) -> str:
    """What came of one run."""
    last = found["dev"]
    words = f"{last['dev_accuracy']:.2f} after {last['step']:,} steps and {found['trained']:.0f} s"
    return words if found["seconds"] is not None else f"not reached: {words}"


# --- one run --------------------------------------------------------------------------------------


def read_settings(folder: Path, stage: str) -> dict[str, Any]:
    """What bare_trl.py reads for the profile's own settings."""
    name = training.write_bare_settings(folder, stage)
    settings: dict[str, Any] = json.loads((folder / name).read_text())
    settings["trainer"]["save_strategy"] = "no"
    return settings


def by_defaults(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same with TRL's defaults: as many completions (grpo) or rows (sft), dev as often."""
    import trl

    ours = settings["trainer"]
    kept = {name: ours[name] for name in KEPT if name in ours} | {"save_strategy": "no"}
    config = {"sft": trl.SFTConfig, "grpo": trl.GRPOConfig}[stage](**kept)
    at_once = config.per_device_train_batch_size * config.gradient_accumulation_steps
    share = batch(ours) / at_once
    trainer = kept | {"max_steps": round(ours["max_steps"] * share)}
    dev = settings["dev"] and settings["dev"] | {"every": round(settings["dev"]["every"] * share)}
    return dict(settings) | {"trainer": trainer, "dev": dev}


def batch(trainer: Mapping[str, Any]) -> int:
    """Completions, or rows, of an optimizer step."""
    size: int = trainer["per_device_train_batch_size"]
    return size * trainer.get("gradient_accumulation_steps", 1)


def warmed(folder: Path, settings: Mapping[str, Any]) -> float:
    """Warm the model up by TRL alone; returns the seconds of trainer.train()."""
    return float(case(folder, "sft", settings)["seconds"]["train"])


def outcome(folder: Path, settings: Mapping[str, Any], before: float = 0.0) -> Outcome:
    """grpo until dev is reached; `before` are the seconds that the warm start took."""
    found = case(folder, "grpo", settings)
    last = found["dev"][-1]
    trained = before + found["seconds"]["train"]
    seconds = before + last["seconds"] if last["dev_accuracy"] >= REACHED else None
    return {"seconds": seconds, "trained": trained, "dev": last}


def case(folder: Path, stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """training_case.py by these settings."""
    (folder / "settings.json").write_text(json.dumps(settings))
    out = folder / "case.json"
    command = (sys.executable, str(training.CASE), stage, "settings.json", str(out))
    workspace.run(folder, *command, "--until", str(REACHED))
    found: dict[str, Any] = json.loads(out.read_text())
    return found


if __name__ == "__main__":
    raise SystemExit(run_alone(measure, __doc__))
