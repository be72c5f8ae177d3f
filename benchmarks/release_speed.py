"""How fast a large model is released and verified, beside sha256sum over the same bytes.

    python benchmarks/release_speed.py [--rounds 5] [--full]

Writes a finished pipeline of stand-ins whose model is random weights, one file (512 MiB, with
--full 2 GiB), and takes turns: sha256sum over the weights; `regrpo release` (audited, copied,
hashed; MLflow left out) into a folder that is removed again; `regrpo verify` of it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
import workspace
from timing import Row

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
            workspace.write_random(made / path / "model.safetensors", mib)

    finished._fill = filled
    return finished.make_alone(root)


def measure(full: bool, rounds: int) -> list[Row]:
    mib = 2048 if full else 512
    reason = timing.lacks_command("sha256sum")
    if reason:
        return [timing.skipped("release", f"{mib} MiB", "sha256sum", reason)]
    with tempfile.TemporaryDirectory() as temporary:
        run, out = make(Path(temporary), mib), Path(temporary) / "model"
        weights = run / "models/grpo/model.safetensors"
        spare = Path(temporary) / "released"

        def hashed() -> None:
            subprocess.run(["sha256sum", str(weights)], check=True, capture_output=True)  # noqa: S603, S607  (no shell, and the command is ours)

        def released() -> float:
            if out.exists():
                shutil.rmtree(out)
            return timing.seconds(
                lambda: release(Finder(run).find(None), out, Options(mlflow=False))
            )

        with contextlib.chdir(run):
            release(Finder(run).find(None), spare, Options(mlflow=False))
            taken = timing.take_turns(
                {
                    "release": released,
                    "verify": lambda: timing.seconds(lambda: verify(spare)),
                    "sha256sum": lambda: timing.seconds(hashed),
                },
                rounds,
            )
    return [
        timing.compared("release", f"{mib} MiB, {name}", taken[name], taken["sha256sum"], most=MOST)
        for name in ("release", "verify")
    ]


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
