"""A node's agent: starts this node's workers by torchrun or accelerate, and waits for them.

A stage's process starts it (regrpo.train.launch): `python -m regrpo.train.agent`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files, processes
from regrpo.core.settings import Launch


def run(exchange: Path) -> int:
    """Start this node's workers and wait for them; 1 if one failed, which `ended.json` names."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed", "torch.distributed.elastic", "torch.distributed.run"):
        # The stage says in one line what they would say in pages.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    task = files.read_json(exchange / "task.json")
    launch = Launch(**task["params"]["launch"])
    try:
        if launch.config is None:
            _by_torchrun(launch, task, exchange.name)
        else:
            _by_accelerate(launch, task)
    except ChildFailedError as error:
        # A killed process makes its neighbours fail: it is the cause, whoever was seen to end
        # first. Exit codes of kills are negative.
        number, failure = min(error.failures.items(), key=lambda item: item[1].exitcode)
        killed = failure.exitcode < 0
        how = failure.signal_name() if killed else f"exit code {failure.exitcode}"
        ended = {"found": f"process {number} ended by {how}", "killed": killed}
        files.write_json(exchange / "ended.json", ended)
        return 1
    except subprocess.CalledProcessError as error:
        ended = {"found": f"a process ended with {error.returncode}", "killed": False}
        files.write_json(exchange / "ended.json", ended)
        return 1
    return 0


def _by_torchrun(launch: Launch, task: Mapping[str, Any], name: str) -> None:
    from torch.distributed import run as torchrun

    shape = [f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.processes // launch.nodes}"]
    where = ["--standalone", "--local-addr=127.0.0.1"]
    if launch.nodes > 1:
        endpoint = f"{task['host']}:{task['port']}"
        where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={name}"]
    command = [*shape, *where, "-m", f"stages.{task['stage']}"]
    torchrun.run(torchrun.parse_args(command))  # type: ignore[no-untyped-call]


def _by_accelerate(launch: Launch, task: Mapping[str, Any]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser  # type: ignore[import-untyped]

    command = ["--config_file", str(launch.config)]
    command += ["--num_processes", str(launch.processes), "--num_machines", str(launch.nodes)]
    command += ["--main_process_port", str(task["port"])]
    if launch.nodes > 1:
        number = os.environ.get("SLURM_NODEID", "0")
        command += ["--main_process_ip", task["host"], "--machine_rank", number]
    command += ["--module", f"stages.{task['stage']}"]
    launch_command(launch_command_parser().parse_args(command))


def main() -> int:
    if not processes.is_worker():
        sys.exit(
            "usage: set `launch:` in the profile's sft or grpo section, and run the stage "
            "(docs/scale.md)"
        )
    processes.end_with_parent()
    # For the workers, whose parent this is.
    os.environ[processes.PARENT] = str(os.getpid())
    return run(Path(os.environ[processes.FOLDER]))


if __name__ == "__main__":
    sys.exit(main())
