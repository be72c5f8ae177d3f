"""A stage's training in several processes.

Torchrun's agent or accelerate's launcher, under the stage's own process.

The stage's process keeps its frame: parameters, the lock on the checkpoints, the journal, run.json.
It starts one agent a node (`python -m regrpo.train.launch`), which starts the workers: the stage's
module again, told by REGRPO_LAUNCH in which folder they talk: `task.json` (what to do), `log.jsonl`
(rank 0's metrics), `error-<rank>.json`, `result.json`. Linux only: without its parent-death signal,
workers whose stage is killed would train on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from regrpo.core import files, hardware
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.processes import FOLDER, is_main, is_worker, rank, world_size
from regrpo.core.profiles import parse_section, read_yaml
from regrpo.core.settings import LAUNCH_CONFIGS, Launch, Training
from regrpo.train import checkpoints

PARENT = "REGRPO_LAUNCH_PARENT"
PATIENCE = 40.0
"""Seconds for agents and workers to end by themselves; torchrun's agent gives its workers 30."""
T = TypeVar("T")


class Running(Protocol):
    """What a training function needs of its stage's run (regrpo.records.stage_run.Run, or a worker's)."""

    stage: str
    params: Any
    reports: Path

    def log(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def checkpoint_folder(self, device: str) -> Path: ...


# --- what is asked --------------------------------------------------------------------------------


def accelerate_config(launch: Launch) -> dict[str, Any] | None:
    """The accelerate configuration that `launch.config` names, as a mapping.

    None where it names none.

    Raises CannotCheck where the file is not there, Refused where it is no accelerate configuration.
    """
    if launch.config is None:
        return None
    content = read_yaml(Path(launch.config))
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise Refused(
            launch.config,
            expected="an accelerate configuration (`accelerate config` writes one)",
            found="no `distributed_type`",
            remedy=f"Start from a copy of one in {LAUNCH_CONFIGS}/.",
        )
    return content


def asked(launch: Launch) -> str:
    """How `launch` asks the model to be spread.

    DDP (a whole copy a process), FSDP1, FSDP2 or ZeRO-<stage>.
    """
    config = accelerate_config(launch) or {}
    if config.get("distributed_type") == "FSDP":
        return f"FSDP{(config.get('fsdp_config') or {}).get('fsdp_version', 1)}"
    if config.get("distributed_type") == "DEEPSPEED":
        return f"ZeRO-{(config.get('deepspeed_config') or {}).get('zero_stage', 2)}"
    return "DDP"


# --- the stage's process --------------------------------------------------------------------------


def run(train: Callable[[Any], T], run: Running) -> T:
    """`train(run)`.

    Here, or in as many processes as the profile's `launch` asks, of which rank 0's value comes
    back.

    Raises what a worker raised; CannotCheck where workers end without a word.
    """
    launch: Launch | None = run.params.launch
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Refused(
            f"{run.stage}.launch",
            expected="to be started as one process, which starts the others",
            found=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            remedy=f"Run `python -m stages.{run.stage}` without torchrun, and set {run.stage}.launch in the profile.",
        )
    if launch is None or launch.processes == 1:
        return train(run)
    asked(launch)  # a configuration that is none is refused before anything starts
    device = require_devices(run.stage, launch, hardware.find_device(run.params.device))
    with checkpoints.held(run.checkpoint_folder(device)) as folder:
        checkpoints.newest_complete(folder)  # removes what workers must not go on from
        talk = folder.with_suffix(".launch")
        shutil.rmtree(talk, ignore_errors=True)
        talk.mkdir()
        task = {
            "stage": run.stage,
            "params": run.params.model_dump(mode="json"),
            "reports": str(run.reports),
            "checkpoints": str(folder),
            "head": [socket.gethostname(), _free_port()],
        }
        files.write_json(talk / "task.json", task)
        try:
            code = _watch(_start_agents(launch, run.params.threads, talk), talk, run.log)
            value: T = _outcome(run.stage, launch, talk, code)
            return value
        finally:
            shutil.rmtree(talk, ignore_errors=True)


def require_devices(stage: str, launch: Launch, device: str) -> str:
    """The device, where this machine can do what `launch` asks. Raises Refused otherwise."""
    found = f"{device} on {sys.platform}"
    if device == "cuda":
        import torch

        found = f"{torch.cuda.device_count()} CUDA devices"
    here = launch.processes // launch.nodes
    gpus = int(found.partition(" ")[0]) if device == "cuda" else 0
    if sys.platform != "linux" or (launch.backend == "nccl" and gpus < here):
        raise Refused(
            f"{stage}.launch",
            expected=f"Linux{f' and {here} CUDA devices a node' * (launch.backend == 'nccl')}",
            found=found,
            remedy="Set launch.processes to what is there, backend: gloo on CPUs, or launch: null.",
        )
    return device


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def _start_agents(launch: Launch, threads: int, talk: Path) -> subprocess.Popen[bytes]:
    """One agent here, or under SLURM's srun one on each node."""
    srun = [
        "srun",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
    ]
    command = [*(srun if launch.nodes > 1 else []), sys.executable, "-m", "regrpo.train.launch"]
    environment = os.environ | {FOLDER: str(talk), "OMP_NUM_THREADS": str(threads)}
    if launch.nodes == 1:
        environment = {"GLOO_SOCKET_IFNAME": "lo", **environment, PARENT: str(os.getpid())}
    try:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise CannotCheck(
            "launch.nodes",
            expected="srun, which starts one agent on each node of a SLURM job",
            found="no such command",
            remedy="Run inside a SLURM job (docs/scale.md), or set launch.nodes: 1.",
        ) from error


def _watch(
    agent: subprocess.Popen[bytes], talk: Path, log: Callable[[Mapping[str, float], int], None]
) -> int:
    """Pass rank 0's metrics on until the agent ends; its exit code.

    Whatever interrupts this ends the agent too.
    """
    offset = 0
    try:
        while True:
            code = agent.poll()
            offset = _forward(talk / "log.jsonl", offset, log)
            if code is not None:
                return code
            time.sleep(0.1)
    finally:
        if agent.poll() is None:
            agent.terminate()
            try:
                agent.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                agent.kill()  # its workers follow it


def _forward(path: Path, offset: int, log: Callable[[Mapping[str, float], int], None]) -> int:
    if not path.exists():
        return offset
    with path.open("rb") as f:
        f.seek(offset)
        whole, newline, _ = f.read().rpartition(b"\n")
    for line in whole.splitlines():
        step, values = json.loads(line)
        log(values, step)
    return offset + len(whole) + len(newline)


def _outcome(stage: str, launch: Launch, talk: Path, code: int) -> Any:
    """Rank 0's value, or the error that best tells why there is none.

    A refusal, then a kill, then a fault.
    """
    errors = [files.read_json(path) for path in sorted(talk.glob("error-*.json"))]
    told = [error for error in errors if "where" in error]
    if told:
        error = min(told, key=lambda one: one["rank"])
        kind = Refused if error["exit_code"] == Refused.exit_code else CannotCheck
        raise kind(error["where"], **{key: error[key] for key in ("expected", "found", "remedy")})
    ended = files.read_json(talk / "ended.json") if (talk / "ended.json").exists() else {}
    if errors and not ended.get("killed"):
        error = min(errors, key=lambda one: one["time"])
        raise RuntimeError(
            f"process {error['rank']} of {launch.processes} failed:\n{error['traceback']}"
        )
    if code == 0 and (talk / "result.json").exists():
        return files.read_json(talk / "result.json")["value"]
    raise CannotCheck(
        f"{stage}.launch",
        expected=f"{launch.processes} processes to end well",
        found=ended.get("found", f"the agent's exit code {code}"),
        remedy="Out of memory, perhaps (a kill by the system leaves no word); `dvc repro` goes on from the newest "
        "checkpoint.",
    )


# --- the agent, one a node ------------------------------------------------------------------------


def end_with_parent() -> None:
    """Be killed as soon as the process that started this one dies, however it dies (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):  # it died before the call
        os._exit(1)


def agent(talk: Path) -> int:
    """Start this node's workers and wait for them.

    Exit code 1 where one failed, which `ended.json` names.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed", "torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    task = files.read_json(talk / "task.json")
    launch = Launch(**task["params"]["launch"])
    module = f"stages.{task['stage']}"
    try:
        if launch.config is None:
            _by_torchrun(launch, task["head"], talk.name, module)
        else:
            _by_accelerate(launch, task["head"], module)
    except ChildFailedError as error:
        # A killed process makes its neighbours fail: it is the cause, whoever was seen to end
        # first.
        failures = sorted(error.failures.items(), key=lambda item: item[1].exitcode)
        [(number, failure), *_] = failures
        killed = failure.exitcode < 0
        how = failure.signal_name() if killed else f"exit code {failure.exitcode}"
        files.write_json(
            talk / "ended.json", {"found": f"process {number} ended by {how}", "killed": killed}
        )
        return 1
    except subprocess.CalledProcessError as error:
        files.write_json(talk / "ended.json", {"found": f"a process ended with {error.returncode}"})
        return 1
    return 0


def _by_torchrun(launch: Launch, head: list[Any], name: str, module: str) -> None:
    from torch.distributed import run as torchrun

    where = ["--standalone", "--local-addr", "127.0.0.1"]
    if launch.nodes > 1:
        where = [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"{head[0]}:{head[1]}",
            "--rdzv-id",
            name,
        ]
    shape = [
        "--nnodes",
        str(launch.nodes),
        "--nproc-per-node",
        str(launch.processes // launch.nodes),
    ]
    torchrun.run(torchrun.parse_args([*shape, *where, "-m", module]))  # type: ignore[no-untyped-call]


def _by_accelerate(launch: Launch, head: list[Any], module: str) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser  # type: ignore[import-untyped]

    shape = ["--num_processes", str(launch.processes), "--num_machines", str(launch.nodes)]
    where = ["--main_process_port", str(head[1])]
    if launch.nodes > 1:
        where += [
            "--main_process_ip",
            head[0],
            "--machine_rank",
            os.environ.get("SLURM_NODEID", "0"),
        ]
    command = ["--config_file", str(launch.config), *shape, *where, "--module", module]
    launch_command(launch_command_parser().parse_args(command))


# --- the workers ----------------------------------------------------------------------------------


class Worker:
    """A stage's run as a worker has it: only rank 0 is heard."""

    def __init__(self, model: type[Training], task: Mapping[str, Any], talk: Path) -> None:
        self.stage, self.reports = str(task["stage"]), Path(task["reports"])
        self.params: Any = parse_section(model, task["params"], self.stage)
        self._checkpoints, self._log = Path(task["checkpoints"]), talk / "log.jsonl"

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Tell the stage's process (rank 0's only)."""
        if is_main():
            with self._log.open("a", encoding="utf-8") as f:
                f.write(json.dumps([step, dict(values)]) + "\n")

    def checkpoint_folder(self, device: str) -> Path:
        """The folder that the stage's process holds."""
        return self._checkpoints


def work(model: type[Training], train: Callable[[Any], Any]) -> None:
    """What a stage's `main` does in a worker: train with the others, and leave rank 0's value."""
    end_with_parent()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # a failed neighbour: leave the evidence, then go
    talk = Path(os.environ[FOLDER])
    if not is_main():
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    with _told(talk):
        run = Worker(model, files.read_json(talk / "task.json"), talk)
        require_world(run.stage, run.params.processes, run.params.launch.config)
        value = train(run)
        if is_main():
            files.write_json(talk / "result.json", {"value": value})
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # without it, teardown was seen to abort


@contextlib.contextmanager
def _told(talk: Path) -> Iterator[None]:
    """Leave an error for the stage's process to tell, and end at once.

    No other process is waited for.
    """
    try:
        yield
    except Exception as error:
        content: dict[str, Any] = {
            "rank": rank(),
            "time": time.time(),
            "traceback": traceback.format_exc(),
        }
        if isinstance(error, RegrpoError):
            parts = ("where", "expected", "found", "remedy", "exit_code")
            content |= {name: getattr(error, name) for name in parts}
        files.write_json(talk / f"error-{rank()}.json", content)
        sys.stdout.flush()
        os._exit(getattr(error, "exit_code", 2))


def require_world(stage: str, expected: int, config: str | None) -> None:
    """As many processes as the profile asks: accelerate was seen to start one without a word.

    Raises Refused.
    """
    if world_size() != expected:
        raise Refused(
            f"{stage}.launch",
            expected=f"{expected} processes",
            found=f"{world_size()}",
            remedy=f"The launcher did not start what it was asked for{f': correct {config}' if config else ''}.",
        )


def main() -> int:
    if not is_worker():
        sys.exit(
            "usage: set `launch:` in the profile's sft or grpo section, and run the stage (docs/scale.md)"
        )
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())  # the workers' parent
    return agent(Path(os.environ[FOLDER]))


if __name__ == "__main__":
    sys.exit(main())
