"""Making a run again from its commit, in a temporary git worktree, and judging whether the same came out.

Three verdicts: *identical* (every output's SHA-256 is the recorded one), *equivalent* (the same parameters, evaluation
values within a tolerance, and the paired tests find nothing), *different*. The user's workspace is only read: the
worktree has a DVC workspace of its own, nothing it computes enters the shared cache, and no checkpoint is resumed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrpo.audit.verdict import Verdict, _judge, environment_differences
from regrpo.audit.worktree import Workspace, _worktree
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.git import git
from regrpo.core.pipeline import CODE
from regrpo.records import record as record_module
from regrpo.records.find import Finder, experiments
from regrpo.records.journal import enabled
from regrpo.tracking import pipeline_rows, rows
from regrpo.tracking.lookup import Lookup
from regrpo.tracking.sync import opened

Json = dict[str, Any]
Say = Callable[[str], None]

TOLERANCE = 0.02
"""How far an evaluation value may lie from the recorded one in an equivalent reproduction (absolute)."""
SCHEMA_VERSION = 1
ROOM = 2 * 10**9
"""Free bytes that a reproduction needs besides what it writes (what `regrpo check` asks of every run)."""
VENV = {"cpu": 8 * 10**9, "cuda": 25 * 10**9}
"""Free bytes that --install needs besides: wheels as they come, and what they unpack to."""


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


# --- the verdict ----------------------------------------------------------------------------------
