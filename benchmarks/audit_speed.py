"""How fast an audit reads a large model: its hashing beside sha256sum over the same files.

    python benchmarks/audit_speed.py [--gib 2] [--rounds 3] [--folder DIR]

Writes random weights in four files and then in one, as workspace and as DVC's cache hold them (a
copy), and takes turns: sha256sum over them; the audit's reading (SHA-256 in the workspace, MD5 and
SHA-256 in the cache, and in the workspace too where it shares its inodes with the cache). Printed
is the ratio of the medians; 1 means equally fast. Exit code 1 below LEAST.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from timing import seconds

from regrpo.records import hashing

FILES = 4
LEAST = 0.8
"""The share of sha256sum's speed that the audit has to reach."""


def write(folder: Path, size: int, count: int) -> list[Path]:
    """`count` files of random bytes, `size` bytes in all."""
    folder.mkdir()
    paths = [folder / f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]
    for path in paths:
        with path.open("wb") as f:
            for _ in range(size // count // 2**20):
                f.write(os.urandom(2**20))
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gib", type=float, default=2.0, help="size of the model folder (default: 2)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    ratios = []
    for count in (FILES, 1):
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            model = write(Path(temporary) / "model", int(args.gib * 2**30), count)
            cached = [Path(temporary) / f"object{index}" for index in range(count)]
            for path, copy in zip(model, cached, strict=True):
                shutil.copyfile(path, copy)
            # True asks for MD5 beside SHA-256.
            cases = {
                "model": dict.fromkeys(model, False),
                "model, both hashes": dict.fromkeys(model, True),
                "model and DVC's cache": dict.fromkeys(model, False) | dict.fromkeys(cached, True),
            }
            size = f"{count} x {args.gib / count:g} GiB"
            for name, wanted in cases.items():
                ratios.append(compare(f"{size}, {name}", wanted, args.rounds))
    return 0 if min(ratios) >= LEAST else 1


def compare(name: str, wanted: dict[Path, bool], rounds: int) -> float:
    """Print and return the audit's speed as a share of sha256sum's."""
    command = ["sha256sum", *map(str, wanted)]
    plain, ours = [], []
    for _ in range(rounds):
        plain.append(seconds(lambda: subprocess.run(command, check=True, capture_output=True)))  # noqa: S603  (no shell, and the command is ours)
        ours.append(seconds(lambda: hashing.of_files(wanted)))
    theirs, audit = statistics.median(plain), statistics.median(ours)
    ratio = theirs / audit
    seconds_each = f"sha256sum {theirs:.2f} s, audit {audit:.2f} s"
    print(f"{name}: {seconds_each}, audit's speed {ratio:.2f} of sha256sum's", flush=True)
    return ratio


if __name__ == "__main__":
    raise SystemExit(main())
