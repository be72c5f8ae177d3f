"""Making a run again from its commit, in a temporary git worktree, and judging what came out.

The user's workspace is only read (see regrpo.audit.worktree); the verdicts are those of
regrpo.audit.verdict.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrpo.audit import worktree
from regrpo.audit.verdict import Verdict, environment_differences, foresee, judge, settings
from regrpo.audit.worktree import Worktree
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.files import unequal_leaves
from regrpo.core.git import uncommitted
from regrpo.core.pipeline import CODE, LOCK
from regrpo.core.profiles import DEFAULT_PROFILE, STAGES, active_profile, read_profile
from regrpo.core.text import gigabytes
from regrpo.records.find import Finder, Place
from regrpo.records.journal import enabled
from regrpo.records.record import read_records
from regrpo.records.stage_run import environment
from regrpo.tracking import pipeline_rows
from regrpo.tracking.lookup import Lookup
from regrpo.tracking.sync import opened

Json = dict[str, Any]
Say = Callable[[str], None]

SCHEMA_VERSION = 1
TOLERANCE = 0.02
"""How far beyond chance an evaluation's value may lie from the recorded one, if equivalent."""
SPARE = 2 * 10**9
"""Free bytes that a reproduction needs besides what it writes, as `regrpo check` asks them."""
VENV = 8 * 10**9
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
    """Make a run again and judge it; returns the verdict as plain data.

    `run` is an MLflow run id, a git revision or a DVC experiment's name; None is HEAD, which must
    be what lies here. `expect` is the verdict that `holds`; None is the one that `foresee` gives.
    `stages` restricts it to these: what they read is restored and verified. `say` gets a line of
    progress at a time. Raises CannotCheck if the run cannot be made again, or not be judged.
    """
    root, started = Path.cwd(), time.time()
    target = "HEAD" if run is None else run
    mlflow = mlflow and enabled()
    place = Finder(root, Lookup() if mlflow else None, committed=True).find(target)
    notes = _notes_on_workspace(root, is_default=run is None)
    records = read_records(place.snapshot)
    chosen = _chosen(records, stages)
    _require_disk(chosen, install)
    if mlflow:
        with opened():
            pass  # a store that cannot be written to is refused before the work, not after it
    verdict = _opening_facts(place, target, started)
    named = f", experiment {verdict['experiment']}" if verdict["experiment"] else ""
    say(f"reproducing {target}: commit {str(place.snapshot.revision)[:10]}{named}")
    for note in notes:
        say(f"note: {note}")
    with worktree.opened(place.snapshot, records, keep) as (tree, beside):
        changed = _prepare(tree, chosen, install, say)
        expected = _foresee(chosen, changed, expect, install, say)
        made = _execute(tree, chosen, stages)
        verdict |= judge(tree, beside, chosen, made, changed, tolerance)
    if keep:
        verdict["kept"] = str(tree.tree)
    if expect is None and verdict["sources_of_difference"]:
        expected = "equivalent"  # a stage found another environment than this process
    verdict |= {
        "expected": expected,
        "holds": verdict["verdict"] in ("identical", expected),
        "notes": notes + verdict["notes"],
        "ended": time.time(),
    }
    verdict["numbers"]["seconds"] = verdict["ended"] - started
    if mlflow:
        _track(verdict)
    return verdict


def _opening_facts(place: Place, target: str, started: float) -> Json:
    """What is known of a verdict before it is reached."""
    kind, _, name = place.name.partition(" ")
    return {
        "schema_version": SCHEMA_VERSION,
        "asked": target,
        "revision": place.snapshot.revision,
        "experiment": name if kind == "experiment" else None,
        "mlflow_run_id": place.mlflow_run_id,
        "pipeline_key": place.snapshot.pipeline_key(),
        "started": started,
        "kept": None,
        "reproduction_run_id": None,
        "mlflow_error": None,
    }


def _foresee(
    chosen: Mapping[str, Json],
    changed: list[Json],
    expect: Verdict | None,
    install: bool,
    say: Say,
) -> Verdict:
    """Say which verdict is to be expected, and why.

    Raises CannotCheck if it is one that these stages cannot be judged by.
    """
    import torch  # noqa: F401  (`environment` names CUDA devices once it is loaded)

    foreseen, reasons = foresee(chosen.values(), environment(), changed, installed=install)
    if expect is not None:
        say(f"expected: {expect} (--expect)")
    elif reasons:
        say("expected: equivalent, not identical, for the bits depend on")
        for reason in reasons:
            say(f"  {reason}")
    else:
        say("expected: identical (processor, thread counts and versions are those of the record)")
    expected = expect or foreseen
    if expected == "equivalent" and "evaluate" not in chosen:
        raise CannotCheck(
            "--stages",
            expected="evaluate among them, by whose answers equivalence is judged",
            found=", ".join(chosen),
            remedy="Add it, or say `--expect identical`.",
        )
    return expected


def _track(verdict: Json) -> None:
    """Write the verdict to MLflow; an error stands in it then, so that the verdict is not lost."""
    try:
        with opened() as store:
            verdict["reproduction_run_id"] = pipeline_rows.add_reproduction(store, verdict)
    except CannotCheck as error:
        verdict["mlflow_error"] = str(error)


# --- before it runs -------------------------------------------------------------------------------


def _notes_on_workspace(root: Path, is_default: bool) -> list[str]:
    """A note on uncommitted changes. Raises CannotCheck for them if no revision was named."""
    paths = (str(LOCK), str(DEFAULT_PROFILE), "profiles", *CODE)
    changed = ", ".join(uncommitted(root, *paths))
    if not changed:
        return []
    if is_default:
        raise CannotCheck(
            "workspace",
            expected="what lies here to be committed",
            found=f"uncommitted changes in {changed}",
            remedy="Commit first, or name the revision: `regrpo reproduce HEAD`.",
        )
    return [f"the workspace has uncommitted changes in {changed}; the commit is reproduced"]


def _chosen(records: Mapping[str, Json], stages: Sequence[str]) -> dict[str, Json]:
    """The records of the stages that were asked for. Raises CannotCheck for an unknown stage."""
    unknown = [name for name in stages if name not in records]
    if unknown:
        raise CannotCheck(
            "--stages",
            expected=f"stages of that run ({', '.join(records)})",
            found=", ".join(unknown),
            remedy="Check the spelling.",
        )
    return {name: record for name, record in records.items() if name in stages or not stages}


def _require_disk(chosen: Mapping[str, Json], install: bool) -> None:
    """Raise CannotCheck if the worktree would not fit into the folder for temporary files."""
    sizes = [0]
    for record in chosen.values():
        sizes += [item["size"] for item in record["inputs"] + record["outputs"]]
    # The largest is a model: two checkpoints with optimizer state take three times as much each.
    needed = SPARE + sum(sizes) + 6 * max(sizes)
    if install:
        needed += VENV
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free
    if free < needed:
        raise CannotCheck(
            f"disk ({where})",
            expected=f"{gigabytes(needed)} free for the temporary worktree",
            found=gigabytes(free),
            remedy="Free some, or set TMPDIR to a folder with more room.",
        )


# --- running --------------------------------------------------------------------------------------


def _prepare(tree: Worktree, chosen: Mapping[str, Json], install: bool, say: Say) -> list[Json]:
    """Bring what the stages need; returns the parameters that are not those of the original."""
    tree.restore_inputs(chosen)
    changed = _changed_parameters(tree.tree, chosen)
    for change in changed:
        say(f"note: {changed_parameter(change)}")
    if install:
        say("installing the environment of constraints.txt (this takes minutes) ...")
        tree.install()
        return changed
    differences = environment_differences(chosen.values(), environment())
    if not differences:
        say("environment: as recorded")
    for one in differences[:10]:
        say(f"note: {one['what']} is {one['found']}, recorded {one['recorded']}")
    if len(differences) > 10:
        say(f"note: and {len(differences) - 10} more differences of the environment")
    return changed


def changed_parameter(change: Json) -> str:
    """One of a verdict's `parameters` in words."""
    return (
        f"{change['name']} is {change['commit']} at this commit, {change['recorded']} in the record"
    )


def _changed_parameters(tree: Path, chosen: Mapping[str, Json]) -> list[Json]:
    """[{name, recorded, commit}]: parameters of that commit that are not those of the original.

    Raises CannotCheck if the commit's profile cannot be read.
    """
    try:
        with contextlib.chdir(tree):
            sections = read_profile(active_profile(), needed=STAGES)
    except Refused as error:
        raise CannotCheck(
            f"{error.where} of that commit",
            expected=error.expected,
            found=error.found,
            remedy="Name a commit whose profile is whole.",
        ) from error
    changed = []
    for stage, record in chosen.items():
        now = sections[stage]
        for name, a, b in unequal_leaves(settings(record), now, stage, into_lists=False):
            changed.append({"name": name, "recorded": a, "commit": b})
    return changed


def _execute(tree: Worktree, chosen: Mapping[str, Json], stages: Sequence[str]) -> dict[str, Json]:
    """Run the stages, all or those that were asked for; returns their new records.

    Raises CannotCheck if one did not run to its end.
    """
    status = tree.repro(stages)
    made = {stage: tree.made(stage) for stage in chosen}
    idle = [
        stage for stage, record in chosen.items() if made[stage].get("run") in (None, record["run"])
    ]
    if status or idle:
        raise CannotCheck(
            next(iter(idle), "dvc repro"),
            expected="to run to its end, as it did",
            found=f"exit code {status} of dvc (its own lines are above)",
            remedy="If it is the environment, use --install; "
            "--keep leaves the worktree to look at.",
        )
    return made
