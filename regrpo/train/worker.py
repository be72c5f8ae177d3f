"""A stage's module in a worker: trains with the others, and leaves metrics and errors in files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files, hardware, processes
from regrpo.core.errors import Refused, RegrpoError, system_refusal
from regrpo.core.profiles import parse_section
from regrpo.core.settings import Training
from regrpo.core.text import shown_output


class WorkerRun:
    """A stage's run as a worker has it; rank 0 alone logs."""

    def __init__(self, model: type[Training], exchange: Path) -> None:
        task = files.read_json(exchange / "task.json")
        self.stage = str(task["stage"])
        self.reports = Path(task["reports"])
        self.params: Any = parse_section(model, task["params"], self.stage)
        self._checkpoints = Path(task["checkpoints"])
        self._metrics = exchange / "log.jsonl"

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Hand metrics to the stage's process."""
        if processes.is_main():
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps([step, dict(values)]) + "\n")

    def checkpoint_folder(self, device: str) -> Path:
        """The folder that the stage's process holds."""
        return self._checkpoints


@shown_output(progress=True)
def work(model: type[Training], train: Callable[[Any], None]) -> None:
    """What a stage's `main` does in a worker; `model` is its `Params`, `train` as it trains alone.

    An error is left for the stage's process to raise, and ends this one at once.
    """
    processes.end_with_parent()
    # Sent where a neighbour failed: leave the evidence, then go.
    processes.exit_on(signal.SIGTERM)
    if not processes.is_main():
        _silence()
    hardware.log_what_no_user_can_mend()
    exchange = Path(os.environ[processes.FOLDER])
    try:
        run = WorkerRun(model, exchange)
        require_world(run.stage, run.params)
        train(run)
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk takes no word more
            _leave(error, exchange)
            sys.stdout.flush()
        # Not sys.exit: torch would wait for the other processes.
        os._exit(getattr(error, "exit_code", 2))
    if processes.is_main():
        (exchange / "done").touch()
    import torch.distributed

    if torch.distributed.is_initialized():
        # Without these, teardown was seen to abort.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def require_world(stage: str, params: Training) -> None:
    """Raises Refused for fewer processes than asked: accelerate was seen to start one, silently."""
    assert params.launch  # noqa: S101  (tells mypy a type, checks no input)
    if processes.world_size() != params.processes:
        raise Refused(
            f"{stage}.launch",
            expected=f"{params.processes} processes",
            found=str(processes.world_size()),
            remedy="The launcher did not start what it was asked for: "
            f"correct {params.launch.config}.",
        )


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _leave(error: Exception, exchange: Path) -> None:
    """Write the error to `error-<rank>.json`; one that a user can mend with its parts."""
    rank = processes.rank()
    content = {"rank": rank, "time": time.time(), "traceback": traceback.format_exc()}
    refusal = error if isinstance(error, RegrpoError) else system_refusal(error)
    if refusal:
        for part in ("where", "expected", "found", "remedy", "exit_code"):
            content[part] = getattr(refusal, part)
    files.write_json(exchange / f"error-{rank}.json", content)
