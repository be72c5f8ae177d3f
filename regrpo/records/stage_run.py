"""Observer: the frame around each executed stage, and its record (reports/<stage>/run.json).

Nothing here changes what a stage computes; a test runs the pipeline without it and compares every
other output.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from regrpo.core import files, hardware, profiles
from regrpo.core.dvc import dvc_root, entry_now, files_in
from regrpo.core.errors import CannotCheck, RegrpoError
from regrpo.core.git import git
from regrpo.core.pipeline import CODE, stage_key
from regrpo.core.settings import Section
from regrpo.records import follower_process
from regrpo.records.journal import Journal, is_dvc

SCHEMA_VERSION = 1
P = TypeVar("P", bound=Section)


def environment() -> dict[str, Any]:
    """Every installed distribution, Python, system and device, with a SHA-256 over them (`sha256`)."""
    facts = {
        "packages": {
            d.name.lower().replace("_", "-"): d.version for d in metadata.distributions() if d.name
        },
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": hardware.cpu_model(),
        "cuda": hardware.cuda_devices(),
    }
    return facts | {"sha256": files.sha256_json(facts)}


def code_state() -> tuple[dict[str, Any], str]:
    """({revision, dirty, diff_sha256}, diff) of the code against the commit the experiment started from.

    Untracked files count as changes. Without a git repository the revision and the flag are None.
    """
    revision = git(
        "rev-parse", "--verify", os.environ.get("DVC_EXP_BASELINE_REV", "HEAD") + "^{commit}"
    )
    if revision is None:
        return {"revision": None, "dirty": None, "diff_sha256": None}, ""
    parts = [git("--no-optional-locks", "diff", revision, "--", *CODE) or ""]
    untracked = git("ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or ""
    for name in filter(None, untracked.split("\0")):
        # `git diff --no-index` answers 1 for "differs".
        shown = subprocess.run(
            ["git", "diff", "--no-index", "/dev/null", name], capture_output=True, check=False
        )
        parts.append(shown.stdout.decode(errors="replace").strip())
    diff = "\n".join(part for part in parts if part)
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return {"revision": revision, "dirty": bool(diff), "diff_sha256": digest}, diff


def fingerprint(path: str) -> dict[str, Any]:
    """{path, sha256, size}, and for a folder `files`, {path.

    SHA-256}; its own SHA-256 is over their canonical JSON.
    """
    root = Path(path)
    listing = [
        (file.relative_to(root).as_posix(), files.sha256(file), file.stat().st_size)
        for file in files_in(root)
    ]
    size = sum(item[2] for item in listing)
    if root.is_file():
        return {"path": path, "sha256": listing[0][1], "size": size}
    content = {name: digest for name, digest, _ in listing}
    return {"path": path, "sha256": files.sha256_json(content), "size": size, "files": content}


def ancestor_dvc() -> tuple[int, float] | None:
    """(process id, start time) of the nearest ancestor `dvc` process: one pipeline execution."""
    import psutil

    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if is_dvc(process.cmdline()):
                return process.pid, process.create_time()
    return None


class Run(Generic[P]):
    """What a stage's `main` holds: its parameters, and two ways to be watched."""

    def __init__(self, stage: str, values: P, journal: Journal, key: str) -> None:
        self.stage, self.params, self._journal, self._key = stage, values, journal, key
        self.reports = Path("reports") / stage
        self.reports.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Show metrics while the stage runs (and keep them for MLflow)."""
        self._journal.metrics(values, step)

    def checkpoint_folder(self, device: str) -> Path:
        """Where this very stage key leaves checkpoints to resume from.

        In this environment, on this device.
        """
        identity = files.sha256_json([self._key, environment()["sha256"], device])
        return dvc_root() / ".checkpoints" / f"{self.stage}-{identity[:24]}"

    def attach(self, path: Path, name: str | None = None) -> None:
        """Give MLflow a file or folder that is no DVC output."""
        self._journal.keep(path, name or path.name)


def require_checked_profile() -> None:
    """Run `regrpo check` once per state of profile and code, before anything of a pipeline runs."""
    digest = hashlib.sha256(sys.executable.encode())
    for path in sorted(
        [
            Path("params.yaml"),
            Path("dvc.yaml"),
            profiles.active_profile(),
            *Path("stages").glob("*.py"),
            *Path("regrpo").rglob("*.py"),
        ]
    ):
        digest.update(path.read_bytes())
    stamp = dvc_root() / ".regrpo" / "checked"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    done = subprocess.run([sys.executable, "-m", "regrpo.cli", "check", "--quiet"], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    files.write_text(stamp, digest.hexdigest())


@contextlib.contextmanager
def stage(name: str, model: type[P]) -> Iterator[Run[P]]:
    """A stage's frame.

    Profile checked, parameters parsed, run journalled, run.json written, errors told in one line.

    Exits with the error's own code for a RegrpoError; any other exception is a fault of ours and
    keeps its traceback.
    """
    journal: Journal | None = None
    # DVC passes SIGTERM on by leaving the stage alive; one that reaches us ends the run as KILLED,
    # not as an orphan.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    status = "FAILED"
    try:
        if not Path("dvc.yaml").exists():
            raise CannotCheck(
                f"stages.{name}",
                expected="to be started in the repository's root",
                found=f"no dvc.yaml in {Path.cwd().name}/",
                remedy=f"Change to the root and run `python -m stages.{name}`, or `dvc repro`.",
            )
        require_checked_profile()
        profile = profiles.active_profile()
        sections = profiles.read_profile(profile)
        values = profiles.parse_section(model, sections[name], f"{profile}: {name}")
        facts = _opening_facts(name, str(profile), sections)
        journal = Journal(facts)
        follower_process.start_following()
        run = Run(name, values, journal, facts["key"])
        yield run
        record = _record(facts, journal)
        files.write_json(run.reports / "run.json", [record])
        _keep_reports(journal, name)
        journal.close("FINISHED", record)
        status = "FINISHED"
    except RegrpoError as error:
        print(error if error.where.startswith(name) else f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            traceback.print_exc()
        else:
            found = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
            print(
                f"{name}: expected room on the disk; found {found}. Free some, and run `dvc repro`.",
                file=sys.stderr,
            )
        sys.exit(CannotCheck.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(2)
    finally:
        if journal is not None and status != "FINISHED":
            with contextlib.suppress(OSError):
                _keep_reports(journal, name)
            journal.close(status, None)


def _opening_facts(name: str, profile: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    import psutil

    entry = entry_now(name)
    code, diff = code_state()
    dvc = ancestor_dvc()
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


def _record(facts: Mapping[str, Any], journal: Journal) -> dict[str, Any]:
    """run.json's one element.

    What may differ from the next execution, and what this one read and wrote.
    """
    entry, name = facts["entry"], facts["stage"]
    own = f"reports/{name}/run.json"
    declared = profiles.read_yaml(Path("dvc.yaml"))["stages"][name]
    outputs = [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "metrics", "plots")
        for out in declared.get(kind, [])
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": name,
        "run": facts["run"],
        "key": facts["key"],
        "command": entry["cmd"],
        "parameters": entry["params"],
        "inputs": [fingerprint(dep["path"]) for dep in entry["deps"]],
        "outputs": [fingerprint(out) for out in outputs if out != own],
        "code": facts["code"],
        "environment": environment(),
        "started": _utc(facts["started"]),
        "ended": _utc(time.time()),
        "seconds": round(time.time() - facts["started"], 3),
        "peak_memory_mb": hardware.peak_memory_mb(),
        "mlflow_run_id": journal.mlflow_run_id(follower_process.is_following),
    }


def _keep_reports(journal: Journal, name: str) -> None:
    """Copy the stage's report files to the journal.

    A temporary experiment workspace is gone when MLflow is told.
    """
    folder = Path("reports") / name
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if file.is_file() and file.name not in (".gitignore", "run.json"):
            journal.keep(file, file.relative_to(folder).as_posix())
