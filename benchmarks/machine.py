"""What a figure was measured on: the machine, its versions, and what else kept it busy."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from regrpo.core import hardware
from regrpo.core.git import git, uncommitted

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "great-expectations",
    "lm-eval",
    "dvc",
    "mlflow",
)
MEASURED = ("regrpo", "stages", "custom", "params.yaml")
"""What the figures are of: the code, and the default profile."""
BUSY = 0.1
"""Share of all processors that others may use; above it figures are marked."""
LOOKED_FOR = 2.0
"""Seconds for which the machine is looked at before and after, while nothing of ours runs."""
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def facts() -> dict[str, Any]:
    """Date, commit, processor, memory, system, Python and packages."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "processor": hardware.cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """The installed version of a package, None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the code, `-dirty` behind it if code differs from it; None without git."""
    revision = git("-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if revision and uncommitted(ROOT, *MEASURED):
        return f"{revision}-dirty"
    return revision


# --- what else runs -------------------------------------------------------------------------------


@dataclass
class Load:
    """Load averages (1 minute), and the share of all processors that others used, 0 to 1."""

    average_before: float = 0.0
    average_after: float = 0.0
    before: float = 0.0
    during: float = 0.0
    after: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether others used so much that the figures say little."""
        return max(self.before, self.during, self.after) > BUSY


@contextlib.contextmanager
def watched() -> Iterator[Load]:
    """Look at the machine before, during and after what runs inside; filled in at the end.

    Processes that ours leave behind count as ours once they have ended (Linux).
    """
    adopt_orphans()
    load = Load(average_before=round(os.getloadavg()[0], 2), before=others_now())
    began = Clock.now()
    try:
        yield load
    finally:
        reap_orphans()
        load.during = began.others()
        load.after = others_now()
        load.average_after = round(os.getloadavg()[0], 2)


def others_now() -> float:
    """The share of all processors that others use while this process sleeps."""
    clock = Clock.now()
    time.sleep(LOOKED_FOR)
    return clock.others()


@dataclass(frozen=True)
class Clock:
    """Processor seconds at a moment, in sum over all processors."""

    all_time: float
    """All that passed."""
    used: float
    """Of it what was no waiting, by whomever."""
    own: float
    """Of that what this process and its children used that have ended."""

    @classmethod
    def now(cls) -> Clock:
        times = psutil.cpu_times()
        # `guest` is in `user` already.
        spent = {name: getattr(times, name, 0.0) for name in COUNTED}
        waited = times.idle + getattr(times, "iowait", 0.0)
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        used = sum(spent.values())
        return cls(used + waited, used, ours)

    def others(self) -> float:
        """The share that others used from then to now, 0 to 1."""
        return share_of_others(self, Clock.now())


COUNTED = ("user", "nice", "system", "irq", "softirq", "steal")


def share_of_others(before: Clock, after: Clock) -> float:
    """What of all processors' time between two moments was used, and not by us."""
    passed = after.all_time - before.all_time
    if passed <= 0:
        return 0.0
    others = (after.used - before.used) - (after.own - before.own)
    return round(max(0.0, others / passed), 3)


def adopt_orphans() -> None:
    """Become the parent of what our processes leave behind, as MLflow's writer (prctl(2))."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap_orphans() -> None:
    """Collect ended children, so that their time counts as ours."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
