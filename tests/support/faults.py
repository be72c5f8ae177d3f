"""Faults that are done to a running pipeline, each at a moment that was drawn before.

A fault gets a Victim (a repository in which `dvc repro` runs) and a generator of random numbers;
it returns what it did, as JSON. Only processes that carry the victim's mark are touched.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.proxy import Proxy

MARK = "FAULT_CAMPAIGN_TRIAL"
"""The environment variable by which a trial's processes are known, children included."""
LONGEST = 300.0
"""Seconds that a pipeline may take to end after a fault."""
ROOMY = 4 * 10**9
"""Bytes of the file system that becomes full; `regrpo check` wants 2 GB. It takes what it holds."""
Details = dict[str, Any]


@dataclass
class Victim:
    """A pipeline at work: its repository, its dvc, and what stands around it."""

    folder: Path
    mark: str
    dvc: subprocess.Popen[bytes]
    proxy: Proxy | None = None
    mounted: bool = False

    def processes(self) -> list[psutil.Process]:
        """Every living process of this trial."""
        return marked(self.mark)

    def stage(self) -> psutil.Process | None:
        """The stage that runs now."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if is_stage(process):
                    return process
        return None

    def wait_for_stage(self, name: str | None = None) -> psutil.Process | None:
        """The stage (of this name) as soon as there is one; None if dvc ends before."""
        while self.dvc.poll() is None:
            found = self.stage()
            if found and (name is None or f"stages.{name}" in found.cmdline()):
                return found
            time.sleep(0.02)
        return None

    def end(self) -> int:
        """Wait until dvc has ended; returns its exit code."""
        return self.dvc.wait(LONGEST)


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_stage(process: psutil.Process) -> bool:
    """Whether a process is `python -m stages.NAME` (not the shell around it)."""
    words = process.cmdline()
    return "-m" in words and any(word.startswith("stages.") for word in words)


# --- signals --------------------------------------------------------------------------------------


def _signal_dvc(number: signal.Signals) -> Callable[[Victim, random.Random], Details]:
    def fault(victim: Victim, draw: random.Random) -> Details:
        victim.dvc.send_signal(number)
        return {"dvc_ended": victim.end()}

    return fault


def _signal_stage(number: signal.Signals) -> Callable[[Victim, random.Random], Details]:
    def fault(victim: Victim, draw: random.Random) -> Details:
        stage = victim.wait_for_stage()
        if stage is None:
            return {"missed": True}
        name = stage.cmdline()[-1]
        stage.send_signal(number)
        return {"hit": name, "dvc_ended": victim.end()}

    return fault


def _signal_group(number: signal.Signals) -> Callable[[Victim, random.Random], Details]:
    def fault(victim: Victim, draw: random.Random) -> Details:
        os.killpg(victim.dvc.pid, number)
        return {"dvc_ended": victim.end()}

    return fault


def stop(victim: Victim, draw: random.Random) -> Details:
    """SIGSTOP; then it goes on, is killed, or its dvc is killed while it stands still."""
    whom = draw.choice(["dvc", "stage", "group"])
    then = draw.choice(["goes on", "is killed", "dvc is killed"])
    seconds = draw.uniform(0.5, 5)
    stage = victim.wait_for_stage()
    if stage is None:
        return {"missed": True}
    signals: dict[str, Callable[[int], Any]] = {
        "dvc": victim.dvc.send_signal,
        "stage": stage.send_signal,
        "group": lambda number: os.killpg(victim.dvc.pid, number),
    }
    signals[whom](signal.SIGSTOP)
    time.sleep(seconds)
    if then == "goes on":
        signals[whom](signal.SIGCONT)
    elif then == "is killed":
        signals[whom](signal.SIGKILL)
    else:
        victim.dvc.kill()
    done = {"stopped": whom, "seconds": round(seconds, 1), "then": then}
    return done | {"dvc_ended": victim.end()}


# --- disk, network, bytes -------------------------------------------------------------------------


def disk_full(victim: Victim, draw: random.Random) -> Details:
    """No byte more can be written until dvc has ended.

    A file system of the trial's own shrinks to what it holds; elsewhere no process of the trial may
    write (RLIMIT_FSIZE of 0: EFBIG).
    """
    if victim.mounted:
        shrink(victim.folder.parent)
        how = "tmpfs"
    else:
        for process in victim.processes():
            with contextlib.suppress(OSError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        how = "RLIMIT_FSIZE"
    code = victim.end()
    until = time.monotonic() + 30
    while victim.stage() and time.monotonic() < until:
        time.sleep(0.1)
    if victim.mounted:
        resize(victim.folder.parent, ROOMY)
    return {"how": how, "dvc_ended": code}


def resize(mounted: Path, size: int) -> bool:
    """Give a mounted tmpfs this size in bytes; False if it holds more."""
    command = ["mount", "-o", f"remount,size={size}", str(mounted)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def shrink(mounted: Path) -> None:
    """Leave a tmpfs without room, while others write to it."""
    for extra in range(1000):
        room = os.statvfs(mounted)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        if resize(mounted, used + extra * room.f_frsize):
            return
    raise RuntimeError(f"{mounted} cannot be made smaller")


def network_cut(victim: Victim, draw: random.Random) -> Details:
    """MLflow's server is out of reach for some seconds, or until the pipeline has ended."""
    assert victim.proxy is not None
    how = draw.choice(["refuses", "hangs", "garbage"])
    seconds = draw.choice([draw.uniform(1, 10), LONGEST])
    victim.proxy.cut(how)
    try:
        code = victim.dvc.wait(seconds)
    except subprocess.TimeoutExpired:
        victim.proxy.restore()
        code = victim.end()
    victim.proxy.restore()
    return {"how": how, "seconds": round(seconds, 1), "dvc_ended": code}


def corrupt_byte(victim: Victim, draw: random.Random) -> Details:
    """One byte is another one: of DVC's cache, an output, a checkpoint or a journal.

    In the first two the pipeline runs on; in the others it is killed before.
    """
    place = draw.choice(["cache", "output", "checkpoint", "journal"])
    if place == "checkpoint":
        _wait_for(victim, ".checkpoints/*/checkpoint-*/manifest.json")
    elif place == "journal":
        _wait_for(victim, ".regrpo/journal/*/open.json")
    if place in ("checkpoint", "journal"):
        os.killpg(victim.dvc.pid, signal.SIGKILL)
        victim.end()
    paths = sorted(_files(victim.folder, place))
    if not paths:
        victim.end()
        return {"missed": True}
    path = draw.choice(paths)
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at] ^= draw.randrange(1, 256)
    path.chmod(0o644)
    path.write_bytes(data)
    name = path.relative_to(victim.folder).as_posix()
    return {"place": place, "file": name, "byte": at, "dvc_ended": victim.end()}


def _wait_for(victim: Victim, pattern: str) -> None:
    while victim.dvc.poll() is None and not list(victim.folder.glob(pattern)):
        time.sleep(0.02)


def _files(folder: Path, place: str) -> Iterator[Path]:
    """The files with content of a place."""
    patterns = {
        "cache": [".dvc/cache/files/md5/*/*"],
        "output": ["data/prepared/*", "models/*/*", "reports/*/*"],
        "checkpoint": [".checkpoints/*/checkpoint-*/*"],
        "journal": [".regrpo/journal/*/*"],
    }
    for pattern in patterns[place]:
        for path in folder.glob(pattern):
            if path.is_file() and path.stat().st_size and path.name != ".gitignore":
                yield path


FAULTS: dict[str, Callable[[Victim, random.Random], Details]] = {
    "kill -9 dvc": _signal_dvc(signal.SIGKILL),
    "kill -9 stage": _signal_stage(signal.SIGKILL),
    "kill -9 group": _signal_group(signal.SIGKILL),
    "SIGTERM dvc": _signal_dvc(signal.SIGTERM),
    "SIGTERM stage": _signal_stage(signal.SIGTERM),
    "SIGTERM group": _signal_group(signal.SIGTERM),
    "SIGSTOP": stop,
    "disk full": disk_full,
    "network cut": network_cut,
    "corrupt byte": corrupt_byte,
}
"""Every kind of fault, by name."""
