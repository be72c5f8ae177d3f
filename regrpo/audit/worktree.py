"""The temporary git worktree in which a run is made again, with a DVC workspace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.dvc import object_path, parse_listing
from regrpo.core.errors import CannotCheck
from regrpo.core.git import git
from regrpo.core.pipeline import Snapshot, out_md5s
from regrpo.records import record as record_module
from regrpo.records import stage_run

Json = dict[str, Any]
Say = Callable[[str], None]


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process as Ctrl-C does, so that what is temporary is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _worktree(root: Path, commit: str, keep: bool) -> Iterator[tuple[Path, Path]]:
    """(temporary folder, the project's root in a detached worktree of `commit`).

    Both removed in the end.
    """
    with _terminated():
        folder = Path(tempfile.mkdtemp(prefix="regrpo-reproduce-")).resolve()
        tree = folder / root.name
        (folder / "tmp").mkdir()
        try:
            prefix = git("-C", str(root), "rev-parse", "--show-prefix") or ""
            # No hooks: DVC's own would check the results out.
            command = ["git", "-C", str(root), "-c", "core.hooksPath=/dev/null"]
            command += ["worktree", "add", "--quiet", "--detach", str(tree), commit]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                found = (done.stderr.strip().splitlines() or ["git refused"])[-1]
                remedy = "Mend the repository (`git fsck`), or free disk space."
                raise CannotCheck(
                    commit[:10], expected="a worktree of the commit", found=found, remedy=remedy
                )
            yield folder, tree / prefix
        finally:
            if not keep:
                # Not `worktree prune`, which would forget worktrees of the user's on a disk that is
                # not mounted.
                git("-C", str(root), "worktree", "remove", "--force", "--force", str(tree))
                shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Workspace:
    """The temporary worktree with its own DVC workspace, and what the original's files are known to hold."""

    folder: Path
    tree: Path
    root: Path
    snapshot: Snapshot
    originals: Mapping[str, Json]
    python: str = sys.executable
    caches: list[Path] = field(default_factory=list)

    def configure(self) -> None:
        """Its own DVC configuration.

        The user's cache and remotes, whichever way their paths are written there.
        """
        from dvc.config import Config
        from dvc.exceptions import DvcException

        if not (self.root / ".dvc").is_dir() or not (self.tree / ".dvc").is_dir():
            found = "no .dvc folder " + (
                "here" if not (self.root / ".dvc").is_dir() else "in that commit"
            )
            raise CannotCheck(
                "dvc",
                expected="a DVC repository",
                found=found,
                remedy="Run `dvc init` and commit it.",
            )
        try:
            theirs = Config(str(self.root / ".dvc"))
            self.caches = [Path(str(theirs["cache"].get("dir") or self.root / ".dvc/cache"))]
            with Config(str(self.tree / ".dvc")).edit("local") as ours:
                # Copies: a link into the cache is one `open(…, "w")` away from damaging it.
                ours["cache"] = {"dir": str(self.caches[0]), "type": ["reflink", "copy"]}
                ours["remote"] = theirs["remote"] | {_SHARED: {"url": str(self.caches[0])}}
                ours["core"] = {"analytics": False, "check_update": False}
                if theirs["core"].get("remote"):
                    ours["core"]["remote"] = theirs["core"]["remote"]
        except (DvcException, UnicodeDecodeError) as error:
            raise CannotCheck(
                ".dvc/config",
                expected="DVC's configuration",
                found=" ".join(str(error).split())[:200],
                remedy="Mend it (or .dvc/config.local), or restore it with git.",
            ) from error

    def variables(self) -> dict[str, str]:
        """The environment of everything that runs there.

        Its own code first, nothing of an outer DVC or git.
        """
        not_its_own = (
            "DVC_",
            "REGRPO_",
            "MLFLOW_RUN_ID",
            "GIT_DIR",
            "GIT_WORK_TREE",
            "GIT_INDEX_FILE",
            "GIT_PREFIX",
        )
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(not_its_own)
        }
        return kept | {
            "PATH": f"{Path(self.python).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "REGRPO_TRACKING": "off",
            "REGRPO_NO_RESUME": "1",
            # DVC's memory of hashes: none, so that it hashes everything, and none is left behind.
            "DVC_SITE_CACHE_DIR": str(self.folder / "site"),
            "TMPDIR": str(self.folder / "tmp"),
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there and catch what it says."""
        return subprocess.run(
            command,
            cwd=self.tree,
            env=self.variables(),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    # --- what the run read ------------------------------------------------------------------------

    def restore_inputs(self, chosen: Mapping[str, Json]) -> None:
        """Everything that the chosen stages read and do not make.

        From git, DVC's cache or its remote, verified.
        """
        owners = {
            out["path"]: stage
            for stage, record in self.originals.items()
            for out in record["outputs"]
        }
        owners |= {f"reports/{stage}/run.json": stage for stage in self.originals}

        def owner(path: str) -> str | None:
            return next((out for out in owners if path == out or path.startswith(f"{out}/")), None)

        wanted: dict[str, str] = {}
        external: list[tuple[str, Json, Json]] = []
        for stage, record in chosen.items():
            for item in record["inputs"]:
                out = owner(item["path"])
                if out is None or owners[out] not in chosen:
                    external.append((stage, item, record))
                    if out is not None and self.snapshot.read(out) is None:
                        wanted[out] = out
        brought = [
            name
            for name in (git("-C", str(self.tree), "ls-files", "*.dvc") or "").splitlines()
            if any(_touch(name.removesuffix(".dvc"), item["path"]) for _, item, _ in external)
        ]
        if targets := [*wanted, *brought]:
            self._checkout(targets)
        for stage, item, record in external:
            self._verify(stage, item, record)

    def _checkout(self, targets: list[str]) -> None:
        """From the user's cache, or where that lacks something from the remote."""
        if self.dvc("checkout", *targets).returncode == 0:
            return
        fetched = self._fetch(*targets)
        if self.dvc("checkout", *targets).returncode:
            paths = [name.removesuffix(".dvc") for name in targets]
            said = [line for line in fetched.stderr.splitlines() if line.startswith("ERROR")] or [
                "ERROR: missing"
            ]
            raise CannotCheck(
                ", ".join([path for path in paths if not (self.tree / path).exists()] or paths),
                expected="the run's data in DVC's cache or on its remote",
                found=said[0].removeprefix("ERROR: ").partition(" - ")[0],
                remedy="Add the remote that holds it (`dvc remote add -d`), or `dvc push` where the data still is.",
            )

    def _fetch(self, *targets: str) -> subprocess.CompletedProcess[str]:
        """From the remote into a temporary cache (new objects in the user's would change what `dvc status` says)."""
        if len(self.caches) == 1:
            self.caches.append(self.folder / "cache")
            self.dvc("config", "--local", "cache.dir", str(self.caches[1]))
        self.dvc("fetch", "--remote", _SHARED, *targets)
        return self.dvc("fetch", *targets)

    def _verify(self, stage: str, item: Json, record: Json) -> None:
        found = self.fingerprint(item["path"])
        if found["sha256"] == item["sha256"]:
            return
        names = _unequal_files(item, found)
        code, remedy = (
            record["code"],
            "Name the commit (or DVC experiment) that holds the run's code and data.",
        )
        here = (
            f"{len(names)} with another SHA-256 or missing: "
            + ", ".join(names[:3])
            + " …" * (len(names) > 3)
        )
        if code.get("dirty") and _touch(item["path"], *_CODE):
            here += f" (uncommitted when {stage} ran: its diff, SHA-256 {code['diff_sha256'][:12]}…, is not in git)"
            remedy = "MLflow keeps the diff (code.diff of the stage's run): apply it, run the stages again, commit."
        raise CannotCheck(
            item["path"],
            expected=f"the files that {stage} read when it ran",
            found=here,
            remedy=remedy,
        )

    def fingerprint(self, path: str) -> Json:
        """As the record has it, of what lies in the worktree now."""
        with contextlib.chdir(self.tree):
            if not Path(path).exists():
                return {"path": path, "sha256": None, "size": 0}
            return stage_run.fingerprint(path)

    # --- running ----------------------------------------------------------------------------------

    def install(self, say: Say) -> None:
        """A virtual environment of that commit's constraints.txt, in the temporary folder."""
        venv = self.folder / "venv"
        packages = {
            name for record in self.originals.values() for name in record["environment"]["packages"]
        }
        extras = [
            extra
            for extra, sign in (("cuda", "vllm"), ("s3", "dvc-s3"), ("dev", "pytest"))
            if sign in packages
        ]
        say("installing the environment of constraints.txt (this takes minutes) ...")
        project = f".[{','.join(extras)}]" if extras else "."
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [
                str(venv / "bin/python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-c",
                "constraints.txt",
                "-e",
                project,
            ],
        ):
            done = self.run(*command)
            if done.returncode:
                found = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
                remedy = "Look at pip's message; without --install the environment at hand is used."
                raise CannotCheck(
                    "constraints.txt", expected="to be installable", found=found, remedy=remedy
                )
        self.python = str(venv / "bin/python")

    def environment(self) -> Json:
        """What the stages will run in, as a record has it (CUDA devices excepted.

        Torch is not loaded for this).
        """
        if self.python == sys.executable:
            return stage_run.environment()
        done = self.run(
            self.python,
            "-c",
            "import json; from regrpo import records; print(json.dumps(records.environment()))",
        )
        return dict(json.loads(done.stdout))

    def execute(self, only: Sequence[str], say: Say) -> None:
        """`dvc repro` of all stages, or of these alone.

        All computed, nothing restored, nothing put in the cache.
        """
        before = {stage: record["run"] for stage, record in self.originals.items()}
        command = [self.python, "-m", "dvc", "repro", "--force", "--no-run-cache", "--no-commit"]
        command += ["--single-item", *only] if only else []
        # A session of its own, so that all of it can be ended; its lines go where progress goes.
        process = subprocess.Popen(
            command,
            cwd=self.tree,
            env=self.variables() | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _pass_on(process)
            status = process.wait()
        finally:
            _end(process)
        after = {stage: self.made(stage).get("run") for stage in only or before}
        idle = [stage for stage, run in after.items() if run in (None, before[stage])]
        if status or idle:
            raise CannotCheck(
                idle[0] if idle else "dvc repro",
                expected="to run to its end, as it did",
                found=f"exit code {status} of dvc (its own lines are above)",
                remedy="If it is the environment, use --install; --keep leaves the worktree to look at.",
            )

    def made(self, stage: str) -> Json:
        """The record that the stage wrote there; empty where there is none."""
        data = Snapshot(self.tree).read(f"reports/{stage}/run.json")
        return (
            {} if data is None else record_module.parse_record(data, f"reports/{stage}/run.json")[1]
        )

    # --- the original's files ---------------------------------------------------------------------

    def original(self, path: str, name: str = "") -> Path | None:
        """The recorded bytes of an output (of file `name` in it, if a folder), verified.

        None where no one has them.
        """
        stage, out = next(
            (stage, out)
            for stage, record in self.originals.items()
            for out in record["outputs"]
            if out["path"] == path
        )
        expected = out["files"].get(name) if name else out["sha256"]
        target = self.folder / "original" / path / name
        if not target.is_file():
            data = self.snapshot.read(f"{path}/{name}" if name else path)
            source = (
                None
                if data is not None
                else self._cached(stage, path, name) or self._fetched(stage, path, name)
            )
            if data is None and source is None:
                return None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data) if data is not None else shutil.copyfile(str(source), target)
        return target if files.sha256(target) == expected else None

    def _cached(self, stage: str, path: str, name: str) -> Path | None:
        outs = out_md5s(self.snapshot.lock()["stages"][stage])
        found = self._object(outs.get(path, ""))
        if found is None or not name:
            return found
        listing = parse_listing(found.read_bytes()) or {}
        return self._object(listing.get(name, ""))

    def _object(self, md5: str) -> Path | None:
        objects = [object_path(cache / "files/md5", md5) for cache in self.caches]
        return next((file for file in objects if md5 and file.is_file()), None)

    def _fetched(self, stage: str, path: str, name: str) -> Path | None:
        lock = self.tree / "dvc.lock"
        ours = lock.read_bytes()
        lock.write_bytes(self.snapshot.read("dvc.lock") or b"")
        self._fetch(path)
        lock.write_bytes(ours)
        return self._cached(stage, path, name)


_CODE = ("stages", "regrpo", "custom")


_SHARED = "regrpo-shared-cache"
"""The user's cache under the name of a remote: DVC lays both out alike."""


def _touch(path: str, *others: str) -> bool:
    """Whether one of two paths lies in the other."""
    return any(
        f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/") for other in others
    )


def _unequal_files(recorded: Json, found: Json) -> list[str]:
    """The paths of files that differ, between two fingerprints of one path."""
    if "files" not in recorded or "files" not in found:
        return [recorded["path"]]
    before, after = recorded["files"], found["files"]
    names = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return [f"{recorded['path']}/{name}" for name in names]


_HINTS = (
    b"Use `dvc push`",
    b"To track the changes with git",
    b"To enable auto staging",
    b"\tgit add ",
    b"\tdvc config core.autostage",
)
"""What DVC advises to do next: there is nothing to do in a worktree that is about to go."""


def _pass_on(process: subprocess.Popen[bytes]) -> None:
    """Write a process's lines to stderr as they come, without DVC's hints and the blank lines about them."""
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            if line.strip() and not line.startswith(_HINTS):
                os.write(2, line)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: politely, then for good."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
