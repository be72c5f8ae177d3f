"""How fast an audit reads a large model: its hashing beside sha256sum over the same files.

    python benchmarks/audit_speed.py [--rounds 5] [--full]

Writes random weights in four files and then in one (half a GiB, with --full 2), as workspace and as
DVC's cache hold them (a copy), and takes turns: sha256sum over them; the audit's reading (SHA-256
in the workspace, MD5 and SHA-256 in the cache, and in the workspace too where it shares its inodes
with the cache).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import timing
import workspace
from timing import Row

from regrpo.records import hashing

FILES = 4
MOST = 1.25
"""Times as long as sha256sum takes that the audit may take."""


def write(folder: Path, size: int, count: int) -> list[Path]:
    """`count` files of random bytes, `size` bytes in all."""
    folder.mkdir()
    paths = [folder / f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]
    for path in paths:
        workspace.write_random(path, size // count // 2**20)
    return paths


def measure(full: bool, rounds: int) -> list[Row]:
    gib = 2.0 if full else 0.5
    rows = []
    for count in (FILES, 1):
        with tempfile.TemporaryDirectory() as temporary:
            model = write(Path(temporary) / "model", int(gib * 2**30), count)
            cached = [Path(temporary) / f"object{index}" for index in range(count)]
            for path, copy in zip(model, cached, strict=True):
                shutil.copyfile(path, copy)
            # True asks for MD5 beside SHA-256.
            cases = {
                "model": dict.fromkeys(model, False),
                "model, both hashes": dict.fromkeys(model, True),
                "model and DVC's cache": dict.fromkeys(model, False) | dict.fromkeys(cached, True),
            }
            size = f"{count} x {gib / count:g} GiB"
            for name, wanted in cases.items():
                rows.append(beside_sha256sum(f"{size}, {name}", wanted, rounds))
    return rows


def beside_sha256sum(what: str, wanted: dict[Path, bool], rounds: int) -> Row:
    """The row of the audit's reading of these files."""
    reason = timing.lacks_command("sha256sum")
    if reason:
        return timing.skipped("audit", what, "sha256sum", reason)
    command = ["sha256sum", *map(str, wanted)]
    taken = timing.interleaved(
        {
            "audit": partial(hashing.of_files, wanted),
            "sha256sum": partial(subprocess.run, command, check=True, capture_output=True),
        },
        rounds,
    )
    return timing.compared("audit", what, taken["audit"], taken["sha256sum"], most=MOST)


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
