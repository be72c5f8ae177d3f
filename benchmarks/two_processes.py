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
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from regrpo.core.processes import clean_environment

ROOT = Path(__file__).parents[1]
LEAST = 1.6
"""How many times one process's tokens per second two have to reach."""
SFT_BATCH = 128
"""Sequences a process and step: twice the default's, as gradients are summed once a step."""
NEEDED = (
    "stages",
    "regrpo",
    "custom",
    "profiles",
    "dvc.yaml",
    "params.yaml",
    "pyproject.toml",
    "constraints.txt",
)


def make_workspace(folder: Path) -> None:
    """The project's code with data and base model."""
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    for raw in ("data/raw", "models/raw"):
        (folder / raw).mkdir(parents=True)
    for stage in ("prepare", "base_model", "select"):
        run(folder, stage)


def run(folder: Path, stage: str) -> None:
    """One stage, alone and unwatched."""
    environment = clean_environment(
        REGRPO_TRACKING="off", HF_HUB_OFFLINE="1", PYTHONPATH=str(folder)
    )
    command = [sys.executable, "-m", f"stages.{stage}"]
    done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{stage} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def tokens_per_second(folder: Path, stage: str, processes: int, steps: int) -> float:
    """Train `steps` steps with so many processes."""
    set_section(folder, stage, processes, steps)
    run(folder, stage)
    journal = max((folder / ".regrpo/journal").glob(f"*-{stage}"))
    rows: list[dict[str, Any]] = [json.loads(line) for line in (journal / "metrics.jsonl").open()]
    first, *_, last = [row for row in rows if "num_tokens" in row["values"]]
    tokens = last["values"]["num_tokens"] - first["values"]["num_tokens"]
    return float(tokens / (last["time"] - first["time"]))


def set_section(folder: Path, stage: str, processes: int, steps: int) -> None:
    yaml = YAML()
    profile = yaml.load((folder / "params.yaml").read_text())
    launch = None
    if processes > 1:
        launch = {"processes": processes, "backend": "gloo"}
    profile[stage] |= {"launch": launch, "max_steps": steps, "save_steps": steps, "threads": 1}
    if stage == "grpo":
        profile[stage]["dev_every"] = 0
    else:
        profile[stage]["per_device_train_batch_size"] = SFT_BATCH
    with (folder / "params.yaml").open("w") as f:
        yaml.dump(profile, f)


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
        make_workspace(folder)
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
