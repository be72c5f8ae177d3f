"""How fast a large model is released and verified, beside sha256sum over the same bytes.

    python benchmarks/release_speed.py [--mib 2048] [--rounds 3] [--folder DIR]

Writes a finished pipeline of stand-ins whose model is random weights, one file, and takes turns:
sha256sum over the weights; `regrpo release` (audited, copied, hashed; MLflow left out) into a
folder that is removed again; `regrpo verify` of it. Printed are the ratios of the medians, and the
seconds. Exit code 1 where one is above MOST.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import seconds

sys.path.insert(0, str(Path(__file__).parents[1]))

from regrpo.records.find import Finder
from regrpo.release.release import Options, release
from regrpo.release.verify import verify
from tests.support import finished

MOST = 4.0
"""Times as long as sha256sum takes that each may take."""


def make(root: Path, mib: int) -> Path:
    """A finished pipeline whose trained model has weights of that many MiB; returns its folder."""
    fill = finished._fill

    def filled(made: Path, stage: str, path: str) -> None:
        fill(made, stage, path)
        if path == "models/grpo":
            with (made / path / "model.safetensors").open("wb") as file:
                for _ in range(mib):
                    file.write(os.urandom(2**20))

    finished._fill = filled
    store = root / "store"
    store.mkdir()
    finished.make_store(store)
    finished.finish(root, store / "mlflow.db")
    return root / "finished"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=2048, help="size of the weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    taken: dict[str, list[float]] = {"sha256sum": [], "release": [], "verify": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        run, out = make(Path(temporary), args.mib), Path(temporary) / "model"
        weights = run / "models/grpo/model.safetensors"
        command = ["sha256sum", str(weights)]
        works: dict[str, Callable[[], object]] = {
            "sha256sum": lambda: subprocess.run(command, check=True, capture_output=True),  # noqa: S603  (no shell, and the command is ours)
            "release": lambda: release(Finder(run).find(None), out, Options(mlflow=False)),
            "verify": lambda: verify(out),
        }
        with contextlib.chdir(run):
            for _ in range(args.rounds):
                for name, work in works.items():
                    taken[name].append(seconds(work))
                shutil.rmtree(out)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    plain = medians["sha256sum"]
    print(f"{args.mib} MiB, {args.rounds} rounds: sha256sum {plain:.2f} s")
    for name in ("release", "verify"):
        print(f"{name}: {medians[name]:.2f} s, {medians[name] / plain:.2f} times sha256sum's")
    return 1 if max(medians["release"], medians["verify"]) > MOST * plain else 0


if __name__ == "__main__":
    raise SystemExit(main())
