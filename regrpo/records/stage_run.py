"""Observer: the frame around each executed stage, and its record (reports/<stage>/run.json).

Nothing here changes what a stage computes; a test runs the pipeline without it and compares every
other output.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

from regrpo.core import files, hardware, hub, processes, profiles
from regrpo.core.dvc import (
    declared_outputs,
    dvc_root,
    entry_now,
    files_in,
    path_of,
    state_folder,
)
from regrpo.core.errors import CannotCheck, RegrpoError, system_refusal
from regrpo.core.files import Json
from regrpo.core.git import git
from regrpo.core.pipeline import CODE, record_path, stage_key
from regrpo.core.settings import Section
from regrpo.core.text import shown_output
from regrpo.records import follower_process, lock_copy, output_lock, watcher
from regrpo.records.journal import Journal

SCHEMA_VERSION = 1
DIFF_BYTES = 2**20
"""Uncommitted code beyond this is not kept, but its SHA-256, its size and the files' names are."""
MOST_NAMES = 1000
P = TypeVar("P", bound=Section)


@functools.cache
def _packages() -> dict[str, str]:
    """The installed distributions and their versions; a process looks them up once."""
    packages: dict[str, str] = {}
    for distribution in metadata.distributions():
        facts = distribution.metadata  # each look at it parses its file
        if facts["Name"]:
            # Of a package that is there twice the first is imported.
            packages.setdefault(facts["Name"].lower().replace("_", "-"), facts["Version"])
    return packages


def environment() -> Json:
    """All installed distributions, Python, system, device, and a SHA-256 over them (`sha256`).

    `accepted_versions`: those that whoever ran it accepted in place of the pinned ones.
    """
    facts: Json = {
        "packages": dict(_packages()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": hardware.cpu_model(),
        "cuda": hardware.cuda_devices(),
    }
    if accepted := hardware.accepted_versions():
        facts["accepted_versions"] = accepted
    return facts | {"sha256": files.sha256_json(facts)}


def code_state() -> tuple[Json, str]:
    """({revision, dirty, diff_sha256}, diff) of the code against the experiment's first commit.

    Untracked files count as changes. Without a git repository the revision and the flag are None.
    Of more than DIFF_BYTES the diff is what `too_large` says, and the files.
    """
    baseline = os.environ.get("DVC_EXP_BASELINE_REV", "HEAD")
    revision = git("rev-parse", "--verify", f"{baseline}^{{commit}}")
    if revision is None:
        return {"revision": None, "dirty": None, "diff_sha256": None}, ""
    parts = [git("--no-optional-locks", "diff", revision, "--", *CODE) or ""]
    untracked = git("ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or ""
    for name in filter(None, untracked.split("\0")):
        # Not by git(): `git diff --no-index` answers 1 for "differs".
        shown = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
            ["git", "diff", "--no-index", "/dev/null", name],  # noqa: S607  (git is the user's, from PATH)
            capture_output=True,
            check=False,
        )
        parts.append(shown.stdout.decode(errors="replace").strip())
    diff = "\n".join(part for part in parts if part)
    digest = files.sha256_text(diff) if diff else None
    code = {"revision": revision, "dirty": bool(diff), "diff_sha256": digest}
    size = len(diff.encode())
    if digest and size > DIFF_BYTES:
        changed = git("--no-optional-locks", "diff", "-z", "--name-only", revision, "--", *CODE)
        names = list(filter(None, f"{changed}\0{untracked}".split("\0")))
        if len(names) > MOST_NAMES:
            names[MOST_NAMES:] = [f"and {len(names) - MOST_NAMES} more"]
        diff = "\n".join([f"{too_large(digest)}, {size:,} bytes; files:", *names])
    return code, diff


def too_large(digest: str) -> str:
    """How the journal's word on a diff begins that it does not keep; `digest` is its SHA-256."""
    return f"diff too large (SHA-256 {digest})"


def fingerprint(path: str) -> Json:
    """{path, sha256, size (bytes)} of a file or folder.

    A folder has `files` besides, {name: SHA-256}; its own SHA-256 is over their canonical JSON.
    """
    root = Path(path)
    if root.is_file():
        return {"path": path, "sha256": files.sha256(root), "size": root.stat().st_size}
    content, size = {}, 0
    for file in files_in(root):
        content[file.relative_to(root).as_posix()] = files.sha256(file)
        size += file.stat().st_size
    return {"path": path, "sha256": files.sha256_json(content), "size": size, "files": content}


def ancestor_dvc() -> tuple[int, float] | None:
    """(process id, start time) of the `dvc` process around this stage: one pipeline execution.

    Returns None for a stage run by hand. Raises CannotCheck if dvc has ended meanwhile: whoever
    adopted this process is not to be taken for it.
    """
    import psutil

    if "DVC_STAGE" not in os.environ:
        return None
    with contextlib.suppress(psutil.Error):  # it has just ended
        if dvc := output_lock.dvc_of(psutil.Process()):
            return dvc.pid, dvc.create_time()
    raise CannotCheck(
        "dvc",
        expected="the process that started this stage",
        found="that it has ended",
        remedy="Run `dvc repro` again.",
    )


class Run(Generic[P]):
    """What a stage's `main` holds: its parameters, and two ways to be watched."""

    def __init__(self, values: P, facts: Json) -> None:
        self.params = values
        self.facts = facts
        self.stage = str(facts["stage"])
        self.journal = Journal(facts)
        self.reports = Path("reports") / self.stage
        self.reports.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Show metrics while the stage runs (and keep them for MLflow)."""
        self.journal.metrics(values, step)

    def checkpoint_folder(self, device: str) -> Path:
        """Where this very stage key leaves checkpoints, in this environment, on this device."""
        identity = files.sha256_json([self.facts["key"], environment()["sha256"], device])
        return dvc_root() / ".checkpoints" / f"{self.stage}-{identity[:24]}"

    def attach(self, path: Path, name: str | None = None) -> None:
        """Give MLflow a file or folder that is no DVC output."""
        self.journal.keep(path, name or path.name)


def require_checked_profile() -> None:
    """Run `regrpo check` once per state of profile and code, before anything of a pipeline runs.

    custom/ is code: `check` imports it.
    """
    read = [Path("params.yaml"), Path("dvc.yaml"), profiles.active_profile()]
    code = [*Path("stages").glob("*.py"), *Path("regrpo").rglob("*.py"), *files_in(Path("custom"))]
    digest = hashlib.sha256(sys.executable.encode())
    for path in sorted(read + code):
        digest.update(path.read_bytes())
    stamp = state_folder() / "checked"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    done = subprocess.run(
        [sys.executable, "-m", "regrpo.cli", "check", "--quiet"],
        # It must not outlive the stage, though it stands still.
        env=os.environ | {processes.PARENT: str(os.getpid())},
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    files.write_text(stamp, digest.hexdigest())


@contextlib.contextmanager
def stage(name: str, model: type[P]) -> Iterator[Run[P]]:
    """A stage's frame: profile checked, parameters parsed, run journalled, run.json written.

    Exits with the error's own code, and one line, for a RegrpoError and for what the system refuses
    (room, rights, memory); any other exception is a fault of ours and keeps its traceback.
    """
    # Colours would be spelled out.
    os.environ.setdefault("NO_COLOR", "1")
    with shown_output(progress=True), _frame(name, model) as run:
        yield run


@contextlib.contextmanager
def _frame(name: str, model: type[P]) -> Iterator[Run[P]]:
    run: Run[P] | None = None
    status = "FAILED"
    processes.exit_on(signal.SIGTERM, signal.SIGHUP)
    try:
        dvc = ancestor_dvc()
        with watcher.watched(dvc[0] if dvc else None, processes.TIME_TO_END):
            run = _open(name, model, dvc)
            hardware.log_what_no_user_can_mend()
            lock_copy.keep()
            outputs = _declared(name)
            with output_lock.held(name, run.facts["process"], dvc, outputs):
                yield run
                record = _record(run.facts, run.journal, outputs)
                files.write_json(run.reports / "run.json", [record])
                _keep_reports(run.journal, name)
                run.journal.close("FINISHED", record)
                status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except Exception as error:
        sys.exit(_report(name, error))
    finally:
        if run is not None:
            _end_journal(run, status)


def _end_journal(run: Run[P], status: str) -> None:
    """Close the journal of a run that did not finish, and print what keeps it from MLflow.

    Raises nothing: what ended the stage is what its user has to see.
    """
    if status != "FINISHED":
        with contextlib.suppress(Exception):
            _keep_reports(run.journal, run.stage)
        with contextlib.suppress(Exception):
            run.journal.close(status, None)
    with contextlib.suppress(Exception):
        if trouble := run.journal.trouble():
            print(f"{run.stage}: MLflow does not take this run: {trouble}", file=sys.stderr)


def _open(name: str, model: type[P], dvc: tuple[int, float] | None) -> Run[P]:
    """Check and parse the profile, open the journal, and see to it that a tracker reads it."""
    if not Path("dvc.yaml").exists():
        raise CannotCheck(
            f"stages.{name}",
            expected="to be started in the repository's root",
            found=f"no dvc.yaml in {Path.cwd().name}/",
            remedy=f"Change to the root and run `python -m stages.{name}`, or `dvc repro`.",
        )
    hardware.require_address_space()
    hub.require_brought()
    require_checked_profile()
    profile = profiles.active_profile()
    sections = profiles.read_profile(profile)
    values = profiles.parse_section(model, sections[name], f"{profile}: {name}")
    run = Run(values, _opening_facts(name, str(profile), sections, dvc))
    follower_process.start_following()
    return run


def _report(name: str, error: Exception) -> int:
    """Print what ended a stage; returns the exit code."""
    refusal = error if isinstance(error, RegrpoError) else system_refusal(error)
    # The terminal may be a file on the full disk.
    with contextlib.suppress(OSError):
        if refusal is None:
            traceback.print_exception(error)
        elif refusal.where.startswith(name):
            print(refusal, file=sys.stderr)
        else:
            print(f"{name}: {refusal}", file=sys.stderr)
    return (refusal or CannotCheck).exit_code


def _opening_facts(
    name: str, profile: str, sections: Mapping[str, object], dvc: tuple[int, float] | None
) -> Json:
    import psutil

    entry = entry_now(name)
    code, diff = code_state()
    me = psutil.Process()
    return {
        "stage": name,
        "run": uuid.uuid4().hex,
        "key": stage_key(entry),
        "entry": entry,
        "code": code,
        "diff": diff,
        "process": [me.pid, me.create_time()],
        "execution": list(dvc) if dvc else None,
        "experiment": os.environ.get("DVC_EXP_NAME"),
        "baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "profile": profile,
        "sections": {stage: sections[stage] for stage in profiles.STAGES},
        "workspace": str(Path.cwd()),
        "started": time.time(),
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _record(facts: Json, journal: Journal, outputs: Sequence[str]) -> Json:
    """run.json's one element: how this execution went, and what it read and wrote."""
    entry, name = facts["entry"], facts["stage"]
    now = time.time()
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": name,
        "run": facts["run"],
        "key": facts["key"],
        "command": entry["cmd"],
        "parameters": entry["params"],
        "inputs": [fingerprint(dep["path"]) for dep in entry["deps"]],
        "outputs": [fingerprint(out) for out in outputs if out != record_path(name)],
        "code": facts["code"],
        "environment": environment(),
        "deterministic": hardware.switches_on(),
        "started": _utc(facts["started"]),
        "ended": _utc(now),
        "seconds": round(now - facts["started"], 3),
        "peak_memory_mb": hardware.peak_memory_mb(),
        "mlflow_run_id": journal.mlflow_run_id(follower_process.is_following),
    }


def _declared(name: str) -> list[str]:
    """The paths that dvc.yaml names as a stage's outputs."""
    stages = profiles.read_yaml(Path("dvc.yaml"))["stages"]
    return [path_of(out) for out in declared_outputs(stages[name])]


def _keep_reports(journal: Journal, name: str) -> None:
    """Copy the stage's reports to the journal: MLflow may come after the workspace is gone."""
    folder = Path("reports") / name
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in (".gitignore", "run.json"):
            journal.keep(file, file.relative_to(folder).as_posix())
