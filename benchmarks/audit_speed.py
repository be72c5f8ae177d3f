"""How fast an audit reads a large model: its hashing against sha256sum over the same files, in one run.

Writes SIZE bytes of random weights in four files, as workspace and as DVC's cache hold them (a copy), then takes turns:
sha256sum over all of them; the audit's reading (SHA-256 in the workspace, MD5 and SHA-256 in the cache). The ratio of
the medians is printed; 1 means equally fast.
Run it: python benchmarks/audit_speed.py [--gib 2] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from regrpo import digests

FILES = 4
LEAST = 0.8
"""Of sha256sum's speed."""


def write(folder: Path, size: int) -> list[Path]:
    """FILES files of random bytes, `size` bytes in all."""
    folder.mkdir()
    paths = [folder / f"model-{index + 1:05d}-of-{FILES:05d}.safetensors" for index in range(FILES)]
    for path in paths:
        with path.open("wb") as f:
            for _ in range(size // FILES // 2**20):
                f.write(os.urandom(2**20))
    return paths


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the model folder (default: 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        model = write(Path(temporary) / "model", int(args.gib * 2**30))
        cached = [Path(temporary) / f"object{index}" for index in range(FILES)]
        for path, copy in zip(model, cached, strict=True):
            copy.write_bytes(path.read_bytes())
        cases = {
            "model folder": dict.fromkeys(model, False),
            "model folder and DVC's cache": dict.fromkeys(model, False) | dict.fromkeys(cached, True),
        }
        worst = float("inf")
        for name, wanted in cases.items():
            plain, ours = [], []
            for _ in range(args.rounds):
                command = ["sha256sum", *map(str, wanted)]
                plain.append(seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True)))  # type: ignore[misc]
                ours.append(seconds(lambda wanted=wanted: digests.of_files(wanted)))  # type: ignore[misc]
            ratio = statistics.median(plain) / statistics.median(ours)
            worst = min(worst, ratio)
            print(
                f"{name}: sha256sum {statistics.median(plain):.2f} s, audit {statistics.median(ours):.2f} s, "
                f"audit's speed {ratio:.2f} of sha256sum's"
            )
    return 0 if worst >= LEAST else 1


if __name__ == "__main__":
    raise SystemExit(main())
