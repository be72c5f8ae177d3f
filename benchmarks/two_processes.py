"""Tokens per second of two processes beside one, for the default's grpo, and sft with --full.

    python benchmarks/two_processes.py [--rounds 5] [--full]

One thread a process, and the same batch for each, so that two do twice the work a step (weak
scaling): 2 is perfect. Tokens are TRL's `num_tokens`, the seconds those between the first and the
last logged step, so that neither start nor compilation counts. It wants two idle cores.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import timing
import workspace
from timing import Row

LEAST = 1.6
"""How many times one process's tokens per second two have to reach."""
SFT_BATCH = 128
"""Sequences a process and step: twice the default's, as gradients are summed once a step."""
STEPS = {"grpo": 6}
FULL_STEPS = {"sft": 200, "grpo": 40}


def tokens_per_second(folder: Path, stage: str, processes: int, steps: int) -> float:
    """Train `steps` steps with so many processes."""
    set_section(folder, stage, processes, steps)
    workspace.run_stage(folder, stage)
    journal = max((folder / ".regrpo/journal").glob(f"*-{stage}"))
    rows: list[dict[str, Any]] = [json.loads(line) for line in (journal / "metrics.jsonl").open()]
    first, *_, last = [row for row in rows if "num_tokens" in row["values"]]
    tokens = last["values"]["num_tokens"] - first["values"]["num_tokens"]
    return float(tokens / (last["time"] - first["time"]))


def set_section(folder: Path, stage: str, processes: int, steps: int) -> None:
    launch = None
    if processes > 1:
        launch = {"processes": processes, "backend": "gloo"}
    values = {"launch": launch, "max_steps": steps, "save_steps": steps, "threads": 1}
    if stage == "grpo":
        values["dev_every"] = 0
    else:
        values["per_device_train_batch_size"] = SFT_BATCH
    workspace.set_sections(folder, {stage: values})


def measure(full: bool, rounds: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workspace.make(folder)
        workspace.set_sections(folder, workspace.SHORT)
        for stage in ("prepare", "base_model", "sft", "select"):  # grpo goes on from sft
            workspace.run_stage(folder, stage)
        for stage, steps in (FULL_STEPS if full else STEPS).items():
            works = {
                f"{stage} by {count}": partial(tokens_per_second, folder, stage, count, steps)
                for count in (1, 2)
            }
            one, two = timing.take_turns(works, rounds).values()
            what = f"{stage}, two beside one"
            rows.append(timing.compared("processes", what, two, one, "tokens/s", least=LEAST))
    return rows


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
