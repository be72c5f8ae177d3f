"""A stage's training in several processes, started and watched by the stage's own process.

The stage's process keeps its frame: parameters, the lock on the checkpoints, the journal, run.json.
It starts one agent a node (regrpo.train.agent), which starts the workers (regrpo.train.worker): the
stage's module again. All know one folder, by REGRPO_LAUNCH: `task.json` (what to do), `log.jsonl`
(rank 0's metrics), `error-<rank>.json` and `ended.json` (what went wrong), `done`. Linux only:
without its parent-death signal, workers whose stage is killed would train on.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files, hardware
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.processes import FOLDER, PARENT, TIME_TO_END
from regrpo.core.settings import Launch
from regrpo.train import checkpoints, sharding

PATIENCE = 0.6 * TIME_TO_END
"""Seconds for agents and workers to end by themselves; the rest is the stage's, for its record.

torchrun's agent would give its workers 30: then the stage would be killed meanwhile.
"""
Log = Callable[[Mapping[str, float], int], None]


def run(train: Callable[[Any], None], run: Any) -> None:
    """Train here, or in as many processes as the profile's `launch` asks.

    `run` is the stage's (regrpo.records.stage_run.Run); of it `train` uses what a WorkerRun has.
    Raises what a worker raised; CannotCheck if workers end without a word.
    """
    launch: Launch | None = run.params.launch
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Refused(
            f"{run.stage}.launch",
            expected="to be started as one process, which starts the others",
            found=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            remedy=f"Run `python -m stages.{run.stage}` without torchrun, and set "
            f"{run.stage}.launch in the profile.",
        )
    if launch is None or launch.processes == 1:
        train(run)
        return
    # Refuses a configuration that is none, before anything starts.
    sharding.requested(launch)
    device = hardware.find_device(run.params.device, f"{run.stage}.device")
    require_devices(run.stage, launch, device)
    if run.params.deterministic and device == "cuda":
        hardware.turn_on_determinism()  # the workers inherit the variables
    with checkpoints.held(run.checkpoint_folder(device)) as folder:
        # Removes what workers must not go on from.
        checkpoints.newest_complete(folder)
        exchange = folder.with_suffix(".launch")
        shutil.rmtree(exchange, ignore_errors=True)
        exchange.mkdir()
        task = {
            "stage": run.stage,
            "params": run.params.model_dump(mode="json"),
            "reports": str(run.reports),
            "checkpoints": str(folder),
            "host": socket.gethostname(),
            "port": _free_port(),
        }
        files.write_json(exchange / "task.json", task)
        try:
            agent = _start_agents(launch, run.params.threads, exchange)
            code = _wait_for(agent, exchange / "log.jsonl", run.log)
            require_success(run.stage, launch, exchange, code)
        finally:
            shutil.rmtree(exchange, ignore_errors=True)


def require_devices(stage: str, launch: Launch, device: str) -> None:
    """Raises Refused if this machine cannot do what `launch` asks."""
    expected = "Linux"
    found = f"{device} on {sys.platform}"
    gpus = 0
    if device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        found = f"{gpus} CUDA devices on {sys.platform}"
    needed = 0
    if launch.backend == "nccl":
        needed = launch.processes // launch.nodes
        expected = f"Linux and {needed} CUDA devices a node"
    if sys.platform != "linux" or gpus < needed:
        raise Refused(
            f"{stage}.launch",
            expected=expected,
            found=found,
            remedy="Set launch.processes to what is there, backend: gloo on CPUs, or launch: null.",
        )
    if launch.backend == "nccl":
        hardware.require_nccl(f"{stage}.launch.backend")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def _start_agents(launch: Launch, threads: int, exchange: Path) -> subprocess.Popen[bytes]:
    """One agent here, or under SLURM's srun one on each node."""
    command = [sys.executable, "-m", "regrpo.train.agent"]
    environment = os.environ | {FOLDER: str(exchange), "OMP_NUM_THREADS": str(threads)}
    if launch.nodes == 1:
        # gloo looks for an address of the host's name otherwise, which need not resolve.
        environment = {"GLOO_SOCKET_IFNAME": "lo", **environment, PARENT: str(os.getpid())}
    else:
        one_a_node = [f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1"]
        command = ["srun", *one_a_node, "--kill-on-bad-exit=1", *command]
    try:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603  (no shell, and the command is ours)
    except FileNotFoundError as error:
        raise CannotCheck(
            "launch.nodes",
            expected="srun, which starts one agent on each node of a SLURM job",
            found="no such command",
            remedy="Run inside a SLURM job (docs/scale.md), or set launch.nodes: 1.",
        ) from error


def _wait_for(agent: subprocess.Popen[bytes], metrics: Path, log: Log) -> int:
    """Pass rank 0's metrics on until the agent ends; its exit code.

    Whatever interrupts this ends the agent too.
    """
    offset = 0
    try:
        while True:
            code = agent.poll()
            offset = _forward(metrics, offset, log)
            if code is not None:
                return code
            time.sleep(0.1)
    finally:
        if agent.poll() is None:
            agent.terminate()
            try:
                agent.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                # Its workers follow it: the system kills them with their parent.
                agent.kill()


def _forward(metrics: Path, offset: int, log: Log) -> int:
    """Log the whole lines from that byte on; the byte at which the next one begins."""
    if not metrics.exists():
        return offset
    with metrics.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    for line in whole.splitlines():
        step, values = json.loads(line)
        log(values, step)
    return offset + len(whole) + len(newline)


def require_success(stage: str, launch: Launch, exchange: Path, code: int) -> None:
    """Raise the error that says best why training failed: a refusal, then a kill, then a fault."""
    errors = [files.read_json(path) for path in sorted(exchange.glob("error-*.json"))]
    refusals = [error for error in errors if "where" in error]
    if refusals:
        error = min(refusals, key=lambda one: one["rank"])
        kind = Refused if error["exit_code"] == Refused.exit_code else CannotCheck
        parts = {name: error[name] for name in ("expected", "found", "remedy")}
        raise kind(error["where"], **parts)
    ended: dict[str, Any] = {}
    if (exchange / "ended.json").exists():
        ended = files.read_json(exchange / "ended.json")
    if errors and not ended.get("killed"):
        error = min(errors, key=lambda one: one["time"])
        raise RuntimeError(
            f"process {error['rank']} of {launch.processes} failed:\n{error['traceback']}"
        )
    if code != 0 or not (exchange / "done").exists():
        raise CannotCheck(
            f"{stage}.launch",
            expected=f"{launch.processes} processes to end well",
            found=ended.get("found", f"the agent's exit code {code}"),
            remedy="Out of memory, perhaps (a kill by the system leaves no word); `dvc repro` goes "
            "on from the newest checkpoint.",
        )
