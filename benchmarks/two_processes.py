"""Tokens per second of two processes beside one, for sft and grpo of the default model.

    python benchmarks/two_processes.py [--rounds 3] [--sft-steps 200] [--grpo-steps 40]

One thread a process, and the same batch for each, so that two do twice the work a step (weak
scaling). The rounds take turns, and the ratio of the medians is printed: 2 is perfect. Tokens are
TRL's `num_tokens`, the seconds those between the first and the last logged step, so that neither
start nor compilation counts. It wants two idle cores. Exit code 1 below LEAST.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import workspace

LEAST = 1.6
"""How many times one process's tokens per second two have to reach."""
SFT_BATCH = 128
"""Sequences a process and step: twice the default's, as gradients are summed once a step."""


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sft-steps", type=int, default=200)
    parser.add_argument("--grpo-steps", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workspace.make(folder)
        for stage in ("prepare", "base_model", "select"):
            workspace.run_stage(folder, stage)
        sft = gain(folder, "sft", args.sft_steps, args.rounds)
        grpo = gain(folder, "grpo", args.grpo_steps, args.rounds)
    holds = min(sft, grpo) >= LEAST
    print(f"least {LEAST}: {'holds' if holds else 'does not hold'}")
    return 0 if holds else 1


def gain(folder: Path, stage: str, steps: int, rounds: int) -> float:
    """Print and return how many times as fast two processes are."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, measured in rates.items():
            measured.append(tokens_per_second(folder, stage, processes, steps))
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    print(
        f"{stage}: {one:,.0f} tokens/s with one process ({spread(rates[1])}), "
        f"{two:,.0f} with two ({spread(rates[2])}): {two / one:.2f}"
    )
    return two / one


def spread(rates: list[float]) -> str:
    return f"{min(rates):,.0f} to {max(rates):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
