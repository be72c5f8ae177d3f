"""A temporary git worktree in which a run is made again, with a DVC workspace of its own.

The user's workspace and DVC cache are only read: what the remote has is fetched into a cache beside
the worktree, nothing that is computed enters either cache, and no checkpoint is resumed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from regrpo.core import files
from regrpo.core.dvc import cache_folder, dvc_config
from regrpo.core.errors import CannotCheck
from regrpo.core.files import file_hashes
from regrpo.core.git import git
from regrpo.core.pipeline import CODE, Snapshot, record_path
from regrpo.core.processes import clean_environment, exit_on
from regrpo.records import stage_run

Json = dict[str, Any]

SHARED_CACHE = "regrpo-shared-cache"
"""The user's cache under the name of a remote: DVC lays both out alike."""
EXTRAS = {"cuda": "vllm", "s3": "dvc-s3", "math": "math-verify", "dev": "pytest"}
"""The project's extras, each with a package by which an environment shows that it has it."""
HINTS = (
    b"Use `dvc push`",
    b"To track the changes with git",
    b"To enable auto staging",
    b"\tgit add ",
    b"\tdvc config core.autostage",
)
"""What DVC advises to do next: there is nothing to do in a worktree that is about to go."""


@contextlib.contextmanager
def opened(
    snapshot: Snapshot, records: Mapping[str, Json], keep: bool = False
) -> Iterator[tuple[Worktree, Worktree]]:
    """Yield two worktrees of a revision: one to run it again in, one to restore the original in.

    Both are removed in the end, the first unless `keep`. Raises CannotCheck if git makes no
    worktree, or DVC's configuration cannot be read.
    """
    with contextlib.ExitStack() as cleanup:
        for number, before in exit_on(signal.SIGTERM, signal.SIGHUP).items():
            cleanup.callback(signal.signal, number, before)
        folder = Path(tempfile.mkdtemp(prefix="regrpo-reproduce-")).resolve()
        if not keep:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "tmp").mkdir()
        worktrees = []
        for name in ("made", "original"):
            top = folder / name / snapshot.root.name
            # Not `worktree prune`: it would also forget the user's worktrees on a disk that is
            # not mounted now.
            remove = ("worktree", "remove", "--force", "--force", str(top))
            if name == "original" or not keep:
                cleanup.callback(git, "-C", str(snapshot.root), *remove)
            worktree = Worktree(snapshot, records, folder, _add(snapshot, top))
            worktree.use_cache(worktree.caches[0])
            worktrees.append(worktree)
        yield worktrees[0], worktrees[1]


def _add(snapshot: Snapshot, top: Path) -> Path:
    """Make a worktree at `top`; returns the project's root in it."""
    commit = str(snapshot.revision)
    # No hooks: DVC's own would check the results out.
    command = ["git", "-C", str(snapshot.root), "-c", "core.hooksPath=/dev/null"]
    command += ["worktree", "add", "--quiet", "--detach", str(top), commit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no shell, and the command is ours)
    if done.returncode:
        raise CannotCheck(
            commit[:10],
            expected="a worktree of the commit",
            found=_last_line(done.stderr),
            remedy="Mend the repository (`git fsck`), or free disk space.",
        )
    inside = git("-C", str(snapshot.root), "rev-parse", "--show-prefix")
    return top / (inside or "")


@dataclass
class Worktree:
    """A worktree: `tree` is the project's root in it, `folder` the temporary folder around it.

    `records` are those of every stage of the original run, `python` is the interpreter that stages
    run with.
    """

    snapshot: Snapshot
    records: Mapping[str, Json]
    folder: Path
    tree: Path
    python: str = sys.executable

    @cached_property
    def caches(self) -> tuple[Path, Path]:
        """Where DVC's objects lie: in the user's cache, or in the temporary one."""
        return cache_folder(self.snapshot.root), self.folder / "cache/files/md5"

    def use_cache(self, cache: Path) -> None:
        """Write the worktree's DVC configuration: one of the two caches, and the user's remotes."""
        from dvc.config import Config

        if not str(self.caches[0]).isascii():
            raise CannotCheck(
                str(self.snapshot.root),
                expected="a path in ASCII, the only ones that DVC writes into its configuration",
                found="other characters",
                remedy="Clone the repository into a folder of another name, and reproduce there.",
            )
        theirs = dvc_config(self.snapshot.root)
        dvc_config(self.tree)  # refuses a broken one
        shared = {SHARED_CACHE: {"url": str(self.caches[0].parents[1])}}
        with Config(str(self.tree / ".dvc")).edit("local") as ours:
            # Copies: a link into the cache is one `open(…, "w")` away from damaging it.
            ours["cache"] = {"dir": str(cache.parents[1]), "type": ["reflink", "copy"]}
            ours["remote"] = theirs["remote"] | shared
            ours["core"] = {"analytics": False, "check_update": False}
            if theirs["core"].get("remote"):
                ours["core"]["remote"] = theirs["core"]["remote"]

    # --- running there ----------------------------------------------------------------------------

    def variables(self) -> dict[str, str]:
        """The environment of what runs there: its own code, nothing of an outer DVC or git."""
        return clean_environment(
            self.python,
            PYTHONPATH=str(self.tree),
            PYTHONUNBUFFERED="1",
            REGRPO_TRACKING="off",
            REGRPO_NO_RESUME="1",
            # Where DVC remembers hashes: an empty place, so that it hashes everything.
            DVC_SITE_CACHE_DIR=str(self.folder / "site"),
            TMPDIR=str(self.folder / "tmp"),
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there and catch its output."""
        return subprocess.run(  # noqa: S603  (no shell, and the command is ours)
            command,
            cwd=self.tree,
            env=self.variables(),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run DVC there, that of this environment."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def repro(self, stages: Sequence[str] = ()) -> int:
        """`dvc repro` of all stages, or of these alone; returns its exit code.

        Everything is computed, nothing restored or put into a cache. Output goes to stderr, where
        progress goes.
        """
        command = [self.python, "-m", "dvc", "repro", "--force", "--no-run-cache", "--no-commit"]
        if stages:
            command += ["--single-item", *stages]
        process = subprocess.Popen(  # noqa: S603  (no shell, and the command is ours)
            command,
            cwd=self.tree,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a process group of its own, so that all of it can be ended
        )
        try:
            _pass_on(process)
            return process.wait()
        finally:
            _end(process)

    def install(self) -> None:
        """Run stages in a new virtual environment of that revision's constraints.txt from now on.

        Raises CannotCheck if pip cannot install it.
        """
        packages: set[str] = set()
        for record in self.records.values():
            packages |= record["environment"]["packages"].keys()
        extras = ",".join(extra for extra, sign in EXTRAS.items() if sign in packages)
        project = f".[{extras}]" if extras else "."
        venv = self.folder / "venv"
        python = str(venv / "bin/python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["-c", "constraints.txt", "-e", project]
        for command in ([sys.executable, "-m", "venv", str(venv)], pip):
            done = self.run(*command)
            if done.returncode:
                raise CannotCheck(
                    "constraints.txt",
                    expected="to be installable",
                    found=_last_line(done.stderr),
                    remedy="Look at pip's message; "
                    "without --install the environment at hand is used.",
                )
        self.python = python

    # --- what the run read ------------------------------------------------------------------------

    def restore_inputs(self, chosen: Mapping[str, Json]) -> None:
        """Restore what the chosen stages read and do not make, from git, DVC's cache or its remote.

        Raises CannotCheck for what is nowhere, or is not what the stages read when they ran.
        """
        makers = {}
        for stage, record in self.records.items():
            makers[record_path(stage)] = stage
            for out in record["outputs"]:
                makers[out["path"]] = stage
        inputs = []
        targets = []
        for stage, record in chosen.items():
            for item in record["inputs"]:
                output = _containing(item["path"], makers)
                if output is not None and makers[output] in chosen:
                    continue
                inputs.append((stage, item))
                if output is not None and self.snapshot.read(output) is None:
                    targets.append(output)
        paths = [item["path"] for _, item in inputs]
        listed = git("-C", str(self.tree), "ls-files", "*.dvc") or ""
        for name in listed.splitlines():  # data that users brought
            if _containing(name.removesuffix(".dvc"), paths):
                targets.append(name)
        if targets:
            self._checkout(list(dict.fromkeys(targets)))
        for stage, item in inputs:
            self.verify(stage, item)

    def _checkout(self, targets: Sequence[str]) -> None:
        """Restore outputs from the user's cache, or where that lacks something from the remote.

        Raises CannotCheck if that lacks it too.
        """
        if self.dvc("checkout", *targets).returncode == 0:
            return
        # Into a cache of its own: new objects in the user's would change what `dvc status` says.
        self.use_cache(self.caches[1])
        self.dvc("fetch", "--remote", SHARED_CACHE, *targets)
        fetched = self.dvc("fetch", *targets)
        if self.dvc("checkout", *targets).returncode:
            paths = [name.removesuffix(".dvc") for name in targets]
            missing = [path for path in paths if not (self.tree / path).exists()]
            error = re.search("ERROR: (.*?)( - |$)", fetched.stderr, re.MULTILINE)
            raise CannotCheck(
                ", ".join(missing or paths),
                expected="the run's data in DVC's cache or on its remote",
                found=error[1] if error else "none",
                remedy="Add the remote that holds it (`dvc remote add -d`), "
                "or `dvc push` where the data still is.",
            )

    def verify(self, stage: str, item: Json) -> None:
        """Raise CannotCheck if an input that a stage recorded is another one here."""
        names = unequal_files(item, self.fingerprint(item["path"]))
        if not names:
            return
        found = f"{len(names)} with another SHA-256 or missing: {', '.join(names[:3])}"
        if len(names) > 3:
            found += " …"
        remedy = "Name the commit (or DVC experiment) that holds the run's code and data."
        code = self.records[stage]["code"]
        if code["dirty"] and item["path"].startswith(CODE):
            diff = code["diff_sha256"][:12]
            found += f" (uncommitted when {stage} ran: its diff, SHA-256 {diff}…, is not in git)"
            remedy = (
                "MLflow keeps the diff, unless it is too large (code.diff of the stage's run): "
                "apply it, run the stages again, commit."
            )
        raise CannotCheck(
            item["path"],
            expected=f"the files that {stage} read when it ran",
            found=found,
            remedy=remedy,
        )

    # --- what the run made, then and now ----------------------------------------------------------

    def fingerprint(self, path: str) -> Json:
        """What lies at a path of the worktree now, as records describe inputs and outputs."""
        with contextlib.chdir(self.tree):
            if not Path(path).exists():
                return {"path": path, "files": {}}
            return stage_run.fingerprint(path)

    def made(self, stage: str) -> Json:
        """The record that lies in the worktree for a stage; empty if there is none."""
        return Snapshot(self.tree).record(stage) or {}

    def restored(self, path: str) -> Path | None:
        """A file among the recorded outputs, brought here if it is not in git.

        Returns None if neither git, nor DVC's cache, nor its remote has the recorded bytes.
        """
        for record in self.records.values():
            for out in record["outputs"]:
                sha256 = file_hashes(out).get(path)
                if sha256 is not None:
                    return self._restored(path, out["path"], sha256)
        return None

    def _restored(self, path: str, output: str, sha256: str) -> Path | None:
        found = self.tree / path
        if not found.is_file():
            with contextlib.suppress(CannotCheck):
                self._checkout([output])
        return found if found.is_file() and files.sha256(found) == sha256 else None


def unequal_files(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The paths, from the root, of the files that differ between two states of an in- or output."""
    before, after = file_hashes(recorded), file_hashes(found)
    return sorted(path for path in before | after if before.get(path) != after.get(path))


def _containing(path: str, folders: Iterable[str]) -> str | None:
    """The first of `folders` that is the path or lies around it. Returns None if none does."""
    for folder in folders:
        if PurePosixPath(path).is_relative_to(folder):
            return folder
    return None


def _pass_on(process: subprocess.Popen[bytes]) -> None:
    """Write a process's lines to stderr as they come, without blank lines and DVC's hints."""
    assert process.stdout is not None  # noqa: S101  (tells mypy a type, checks no input)
    with process.stdout as lines:
        for line in lines:
            if line.strip() and not line.startswith(HINTS):
                # Past sys.stderr: the stages' own lines go to the same file descriptor.
                os.write(2, line)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
