"""Making a run again from its commit, in a temporary git worktree, and judging whether the same came out.

Three verdicts: *identical* (every output's SHA-256 is the recorded one), *equivalent* (the same parameters, evaluation
values within a tolerance, and the paired tests find nothing), *different*. The user's workspace is only read: the
worktree has a DVC workspace of its own, nothing it computes enters the shared cache, and no checkpoint is resumed.
"""

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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regrpo.audit import file_differences
from regrpo.core import files, profiles
from regrpo.core.dvc import object_path, parse_listing
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.git import git
from regrpo.core.pipeline import CODE, Snapshot, out_md5s
from regrpo.evaluate.results import METRICS, SAMPLES, parse_metrics, read_samples
from regrpo.records import record as record_module
from regrpo.records import stage_run
from regrpo.records.find import Finder, experiments
from regrpo.records.journal import enabled
from regrpo.report import card
from regrpo.tracking import pipeline_rows, rows
from regrpo.tracking.lookup import Lookup
from regrpo.tracking.sync import opened

Json = dict[str, Any]
Verdict = Literal["identical", "equivalent", "different"]
Say = Callable[[str], None]

TOLERANCE = 0.02
"""How far an evaluation value may lie from the recorded one in an equivalent reproduction (absolute)."""
CARD = "reports/model_card/README.md"
SCHEMA_VERSION = 1
ROOM = 2 * 10**9
"""Free bytes that a reproduction needs besides what it writes (what `regrpo check` asks of every run)."""
VENV = {"cpu": 8 * 10**9, "cuda": 25 * 10**9}
"""Free bytes that --install needs besides: wheels as they come, and what they unpack to."""
COMPUTING = (
    "torch",
    "numpy",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "vllm",
    "bitsandbytes",
    "liger-kernel",
    "deepspeed",
    "triton",
    "lm-eval",
    "datasets",
    "tokenizers",
    "pandas",
    "pyarrow",
)
"""Packages whose version may change bits."""


def reproduce(
    run: str | None = None,
    *,
    expect: Verdict | None = None,
    tolerance: float = TOLERANCE,
    stages: Sequence[str] = (),
    install: bool = False,
    keep: bool = False,
    mlflow: bool = True,
    say: Say = lambda line: None,
) -> Json:
    """Make a run again and judge it; returns the verdict as plain data (docs.

    `regrpo reproduce --json`).

    `run` is an MLflow run id, a git revision or a DVC experiment's name (None: HEAD, which must be
    what lies here); `stages` restricts it to these (what they read is then restored and verified);
    `say` gets a line of progress at a time. Raises CannotCheck where the run cannot be made again
    at all: nothing is changed then.
    """
    root, started, is_default = Path.cwd(), time.time(), run is None
    run = "HEAD" if run is None else run
    mlflow = mlflow and enabled()
    place = Finder(root, Lookup() if mlflow else None, committed=True).find(run)
    snapshot, commit = place.snapshot, str(place.snapshot.revision)
    names = [name for name, at in experiments(root).items() if at == commit]
    experiment = run if run in names else next(iter(names), None)
    uncommitted = ", ".join(_uncommitted(root))
    if uncommitted and is_default:
        raise CannotCheck(
            "workspace",
            expected="what lies here to be committed",
            found=f"uncommitted changes in {uncommitted}",
            remedy="Commit first, or name the revision: `regrpo reproduce HEAD`.",
        )
    originals = record_module.read_records(snapshot)
    chosen = _chosen(originals, stages)
    _require_disk(chosen, install)
    if mlflow:  # before the work, not after it
        with opened():
            pass
    say(
        f"reproducing {run}: commit {commit[:10]}"
        + (f", experiment {experiment}" if experiment else "")
    )
    notes = (
        [f"the workspace has uncommitted changes in {uncommitted}; the commit is reproduced"]
        if uncommitted
        else []
    )
    for note in notes:
        say(f"note: {note}")
    with _worktree(root, commit, keep) as (folder, tree):
        workspace = Workspace(folder, tree, root, snapshot, originals)
        workspace.configure()
        workspace.restore_inputs(chosen)
        changed = _changed_parameters(tree, chosen)
        for change in changed:
            say(
                f"note: {change['name']} is {change['commit']} at this commit, {change['recorded']} in the record"
            )
        if install:
            workspace.install(say)
        for line in _environment_lines(
            environment_differences(chosen.values(), workspace.environment())
        ):
            say(line)
        workspace.execute(list(chosen) if stages else [], say)
        verdict = _judge(workspace, chosen, changed, tolerance)
    verdict["notes"] = [*notes, *verdict["notes"]]
    cuda = any(
        record["environment"]["cuda"]
        for record in [*chosen.values(), *verdict.pop("records").values()]
    )
    wanted = expect or ("equivalent" if cuda else "identical")
    verdict |= {
        "schema_version": SCHEMA_VERSION,
        "asked": run,
        "revision": commit,
        "experiment": experiment,
        "mlflow_run_id": place.mlflow_run_id,
        "pipeline_key": snapshot.pipeline_key(),
        "expected": wanted,
        "holds": verdict["verdict"] in ("identical", wanted),
        "started": started,
        "ended": time.time(),
        "kept": str(tree) if keep else None,
        "reproduction_run_id": None,
        "mlflow_error": None,
    }
    verdict["numbers"]["seconds"] = verdict["ended"] - started
    if mlflow:
        try:
            with opened() as store:
                verdict["reproduction_run_id"] = pipeline_rows.add_reproduction(store, verdict)
        except CannotCheck as error:  # the verdict must not be lost by it
            verdict["mlflow_error"] = str(error)
    return verdict


def _chosen(originals: Mapping[str, Json], stages: Sequence[str]) -> dict[str, Json]:
    if unknown := [name for name in stages if name not in originals]:
        raise CannotCheck(
            "--stages",
            expected=f"stages of that run ({', '.join(originals)})",
            found=", ".join(unknown),
            remedy="Check the spelling.",
        )
    return {name: record for name, record in originals.items() if name in stages or not stages}


def _uncommitted(root: Path) -> list[str]:
    """The uncommitted among what decides a run.

    Dvc.lock, the profiles, the code (not what a run writes).
    """
    paths = ["dvc.lock", str(profiles.DEFAULT_PROFILE), "profiles", *CODE]
    with contextlib.chdir(root):
        with contextlib.suppress(
            RegrpoError
        ):  # a profile that cannot be read: params.yaml itself is looked at
            paths.append(str(profiles.active_profile()))
        listed = git(
            "--no-optional-locks",
            "-c",
            "status.relativePaths=true",
            "status",
            "--short",
            "--",
            *paths,
        )
    return [line.split(maxsplit=1)[1] for line in (listed or "").splitlines()]


def _require_disk(originals: Mapping[str, Json], install: bool) -> None:
    """Room for inputs, outputs, two checkpoints with optimizer state (three times a model) beside them, and a venv."""
    sizes = [
        item["size"]
        for record in originals.values()
        for item in [*record["inputs"], *record["outputs"]]
    ]
    where = Path(tempfile.gettempdir())
    cuda = any("vllm" in record["environment"]["packages"] for record in originals.values())
    needed = (
        ROOM
        + 6 * max(sizes, default=0)
        + sum(sizes)
        + (VENV["cuda" if cuda else "cpu"] if install else 0)
    )
    free = shutil.disk_usage(where).free
    if free < needed:
        raise CannotCheck(
            f"disk ({where})",
            expected=f"{needed / 1e9:.1f} GB free for the temporary worktree",
            found=f"{free / 1e9:.1f} GB",
            remedy="Free some, or set TMPDIR to a folder with more room.",
        )


# --- the temporary workspace ----------------------------------------------------------------------


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


# --- before it runs: parameters and environment ---------------------------------------------------


def _changed_parameters(tree: Path, chosen: Mapping[str, Json]) -> list[Json]:
    """[{name, recorded, commit}]: parameters of that commit that are not those of the recorded run."""
    try:
        with contextlib.chdir(tree):
            sections = profiles.read_profile(
                profiles.active_profile(), needed=profiles.STAGES
            )  # of any age
    except Refused as error:
        where = f"{error.where} of that commit"
        remedy = "Name a commit whose profile is whole."
        raise CannotCheck(
            where, expected=error.expected, found=error.found, remedy=remedy
        ) from error
    changed = []
    for stage, record in chosen.items():
        recorded = {
            key: value for values in record["parameters"].values() for key, value in values.items()
        }
        before, after = rows.parameters(recorded), rows.parameters({stage: sections.get(stage)})
        for name in dict.fromkeys([*before, *after]):
            a, b = before.get(name, "(absent)"), after.get(name, "(absent)")
            changed += [{"name": name, "recorded": a, "commit": b}] if a != b else []
    return changed


def environment_differences(originals: Iterable[Json], found: Json) -> list[Json]:
    """[{what, recorded, found}] between the recorded environments and one.

    Packages by name, Python, system, processor.

    Where the stages' records differ among themselves the first one that differs from `found` is
    told.
    """
    told: dict[str, Json] = {}
    for record in originals:
        recorded = record["environment"]
        if recorded["sha256"] == found["sha256"]:
            continue
        pairs = {
            name: (recorded.get(name), found.get(name)) for name in ("python", "system", "cpu")
        }
        names = sorted(recorded["packages"].keys() | found["packages"].keys())
        pairs |= {
            name: (recorded["packages"].get(name), found["packages"].get(name)) for name in names
        }
        for what, (a, b) in pairs.items():
            if a != b:
                told.setdefault(what, {"what": what, "recorded": a, "found": b})
    return list(told.values())


def _environment_lines(found: Sequence[Json]) -> list[str]:
    if not found:
        return ["environment: as recorded"]
    lines = [
        f"note: {one['what']} is {one['found'] or 'absent'}, recorded {one['recorded'] or 'absent'}"
        for one in found
    ]
    return [
        *lines[:10],
        *(
            [f"note: and {len(lines) - 10} more differences of the environment"]
            if lines[10:]
            else []
        ),
    ]


def sources_of_difference(original: Json, found: Json) -> list[str]:
    """What may make a stage's bits differ though its code and parameters are the same, from its two records."""
    before, after = original["environment"], found["environment"]
    named = []
    if before["cuda"] or after["cuda"]:
        devices = [", ".join(side["cuda"]) or "no CUDA device" for side in (before, after)]
        named.append("device: " + (devices[0] if devices[0] == devices[1] else " → ".join(devices)))
        if not _parameter(original, "deterministic"):
            named.append(
                "CUDA kernels: atomic additions come in another order each time (deterministic: false)"
            )
    if before["cpu"] != after["cpu"]:
        named.append(
            f"processor: {before['cpu']} → {after['cpu']} (vector units add up in another order)"
        )
    threads = [_parameter(record, "threads") for record in (original, found)]
    if threads[0] != threads[1]:
        named.append(f"thread count: {threads[0]} → {threads[1]}")
    if _parameter(original, "use_vllm"):
        named.append(
            "vLLM: a completion depends on the batch it is generated in, unless batch-invariant"
        )
    for name in COMPUTING:
        versions = [side["packages"].get(name) for side in (before, after)]
        if versions[0] != versions[1]:
            named.append(f"{name}: {versions[0] or 'absent'} → {versions[1] or 'absent'}")
    if before["python"] != after["python"]:
        named.append(f"Python: {before['python']} → {after['python']}")
    return named


def _parameter(record: Json, name: str) -> Any:
    return next(
        (
            section.get(name)
            for values in record["parameters"].values()
            for section in values.values()
        ),
        None,
    )


# --- the verdict ----------------------------------------------------------------------------------


def _judge(
    workspace: Workspace, chosen: Mapping[str, Json], changed: list[Json], tolerance: float
) -> Json:
    found = {stage: workspace.made(stage) for stage in chosen}
    notes: list[str] = []
    compared = [_compare_stage(workspace, stage, record, notes) for stage, record in chosen.items()]
    departed = [stage for stage in compared if stage["differing"]]
    evaluation, sources = None, []
    if departed:
        _explain(workspace, departed[0])
        evaluation = _evaluation(workspace, chosen, tolerance, notes)
        pairs = ((record, found[stage]) for stage, record in chosen.items())
        sources = list(
            dict.fromkeys(source for pair in pairs for source in sources_of_difference(*pair))
        )
    equivalent = evaluation is not None and evaluation["equivalent"] and not changed
    verdict: Verdict = "identical" if not departed else "equivalent" if equivalent else "different"
    if changed and departed:
        notes.append("another experiment, not another outcome of the same: the parameters differ")
    for stage in compared:
        stage["reproduction"] = {
            key: found[stage["stage"]].get(key) for key in ("run", "key", "seconds")
        }
    values = evaluation["values"] if evaluation else []
    return {
        "verdict": verdict,
        "stages": compared,
        "first_difference": _first(departed[0]) if departed else None,
        "evaluation": evaluation,
        "parameters": changed,
        "environment": environment_differences(
            chosen.values(), next(iter(found.values()))["environment"]
        ),
        "sources_of_difference": sources,
        "notes": notes,
        "numbers": {
            "files": sum(stage["files"] for stage in compared),
            "files_differing": sum(len(stage["differing"]) for stage in compared),
            **(
                {"largest_value_difference": max(abs(v["difference"]) for v in values)}
                if values
                else {}
            ),
        },
        "records": found,
    }


def _compare_stage(workspace: Workspace, stage: str, record: Json, notes: list[str]) -> Json:
    """{stage, original, files (how many were compared), differing.

    [{output, file, path, original, reproduction}]}.
    """
    count, differing = 0, []
    for out in record["outputs"]:
        made = workspace.fingerprint(out["path"])
        before, after = (
            out.get("files", {"": out["sha256"]}),
            made.get("files", {"": made["sha256"]}),
        )
        for name in sorted(before.keys() | after.keys()):
            a, b = before.get(name), after.get(name)
            path = f"{out['path']}/{name}" if name else out["path"]
            if a != b and path == CARD:
                a, b = _cards_without_what_varies(workspace, notes)
                if a is None:
                    continue
            count += 1
            if a != b:
                differing.append(
                    {
                        "output": out["path"],
                        "file": name,
                        "path": path,
                        "original": a,
                        "reproduction": b,
                    }
                )
    original = {key: record[key] for key in ("run", "key", "mlflow_run_id")} | {
        "seconds": record.get("seconds")
    }
    return {"stage": stage, "original": original, "files": count, "differing": differing}


def _cards_without_what_varies(
    workspace: Workspace, notes: list[str]
) -> tuple[str | None, str | None]:
    """SHA-256 of both cards without their marked block.

    The first is None where the original is in no cache.
    """
    original, found = workspace.original(CARD), workspace.tree / CARD
    if original is None:
        notes.append(
            f"not compared: {CARD} (part of it varies, and the original is neither in the cache nor remote)"
        )
        return None, None
    texts = [
        path.read_text(encoding="utf-8") if path.exists() else "" for path in (original, found)
    ]
    return files.sha256_text(card.without_varying_block(texts[0])), files.sha256_text(
        card.without_varying_block(texts[1])
    )


def _explain(workspace: Workspace, stage: Json) -> None:
    """Add to each file of a stage that differs how it does (`how`)."""
    for entry in stage["differing"]:
        made, original = (
            workspace.tree / entry["path"],
            workspace.original(entry["output"], entry["file"]),
        )
        if entry["original"] is None:
            entry["how"] = {"kind": "missing", "what": "is not in the original"}
        elif entry["reproduction"] is None:
            entry["how"] = {"kind": "missing", "what": "was not made"}
        elif original is None:
            what = "another SHA-256 (the original's bytes are in no cache, or damaged there: how they differ is unknown)"
            entry["how"] = {"kind": "unknown", "what": what}
        elif entry["path"] == CARD:
            texts = [
                card.without_varying_block(path.read_text(encoding="utf-8"))
                for path in (original, made)
            ]
            entry["how"] = file_differences.compare_lines(*texts)
        else:
            entry["how"] = file_differences.compare_file(original, made)


def _first(stage: Json) -> Json:
    """{stage, file, tensor, step, what}: where the reproduction departs."""
    how = [(entry["path"], entry["how"]) for entry in stage["differing"]]
    tensors = [tensor["name"] for _, one in how for tensor in one.get("differing", [])]
    steps = [
        one["step"]
        for path, one in how
        if path.endswith("history.csv") and one.get("step") is not None
    ]
    return {
        "stage": stage["stage"],
        "file": how[0][0],
        "what": how[0][1]["what"],
        "tensor": tensors[0] if tensors else None,
        "step": min(steps, default=None),
    }


def _evaluation(
    workspace: Workspace, chosen: Mapping[str, Json], tolerance: float, notes: list[str]
) -> Json | None:
    """What `file_differences.compare_evaluations` says.

    None (with a note why) where it cannot be said.
    """
    if "evaluate" not in chosen:
        notes.append("equivalence was not judged: evaluate was not among the stages")
        return None
    before, after = workspace.original(METRICS), workspace.tree / METRICS
    answers, answers_now = workspace.original(SAMPLES), workspace.tree / SAMPLES
    if before is None or answers is None or not after.exists() or not answers_now.exists():
        notes.append(
            "equivalence was not judged: the original's answers are neither in the cache nor on the remote"
        )
        return None
    return file_differences.compare_evaluations(
        parse_metrics(before.read_bytes()),
        parse_metrics(after.read_bytes()),
        (read_samples(answers.read_bytes()), read_samples(answers_now.read_bytes())),
        tolerance=tolerance,
    )
