"""Peak memory and time of prepare and validate, by number of rows: memory must not grow with it.

    python benchmarks/data_memory.py --rows 1000000,10000000 --stages prepare

Makes JSON lines of sums (about 60 bytes a row), a hundredth of them repeated, runs the stages in
processes of their own, and prints a line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from regrpo.core.processes import clean_environment

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "stages",
    "regrpo",
    "custom",
    "profiles",
    "dvc.yaml",
    "pyproject.toml",
    "constraints.txt",
    ".gitignore",
)


def write_source(path: Path, rows: int) -> None:
    """Sums that differ, but for the last hundredth, which repeats the first."""
    with path.open("w", encoding="utf-8") as f:
        for index in range(rows):
            number = index % (rows - rows // 100)
            other = number % 97
            row = {"question": f"What is {number} + {other}?", "answer": str(number + other)}
            f.write(json.dumps(row) + "\n")


def make_project(folder: Path, rows: int) -> None:
    """The project's code, a profile for the source, and a base model's tokenizer and window."""
    from regrpo.core.tokenizers import character_tokenizer

    for name in NEEDED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, folder / name)  # type: ignore[operator]
    profile = YAML().load((ROOT / "params.yaml").read_text())
    profile["prepare"] = {
        "seed": 1,
        "format": "question_answer",
        "drop_duplicates": True,
        "eval": 1000,
        "dev": 200,
        "sft": 0.5,
        "source": {"kind": "local", "train": "train.jsonl", "license": "CC0-1.0"},
    }
    with (folder / "params.yaml").open("w") as f:
        YAML().dump(profile, f)
    (folder / "data/raw").mkdir(parents=True)
    write_source(folder / "data/raw/train.jsonl", rows)
    base = folder / "models/base"
    character_tokenizer(["<answer>", "</answer>"]).save_pretrained(base)
    (base / "config.json").write_text('{"max_position_embeddings": 64}')


def measure(folder: Path, stage: str) -> tuple[float, float]:
    """Peak resident memory (MB, 10^6 bytes) and seconds of a stage.

    Raises RuntimeError with its last words if it fails.
    """
    started = time.monotonic()
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(  # noqa: S603  (no shell, and the command is ours)
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=folder,
            env=clean_environment(REGRPO_TRACKING="off", HF_HUB_OFFLINE="1"),
            stdout=said,
            stderr=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{stage}: {(folder / 'said.txt').read_text()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere: getrusage(2)
    return usage.ru_maxrss * unit / 1e6, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="100000,1000000")
    parser.add_argument("--stages", default="prepare,validate")
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: the system's temporary folder)"
    )
    args = parser.parse_args()
    print("| rows | stage | peak, MB | seconds |\n|---|---|---|---|")
    for rows in map(int, args.rows.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            make_project(Path(temporary), rows)
            for stage in args.stages.split(","):
                peak, seconds = measure(Path(temporary), stage)
                print(f"| {rows:,} | {stage} | {peak:,.0f} | {seconds:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
