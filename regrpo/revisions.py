"""Which git commit holds the results of a run, named by MLflow run id, git revision or DVC experiment; and its records.

Only what is committed counts: run.json names its own run, so a stage's MLflow id is found without MLflow. A pipeline
row's id is not in the files; that one is looked up in MLflow.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo import history, lineage, tracking
from regrpo.errors import CannotCheck
from regrpo.lineage import Snapshot, git


@dataclass(frozen=True)
class Revision:
    """A commit, and how it was named: the DVC experiment or MLflow run that led to it."""

    commit: str
    experiment: str | None = None
    mlflow_run_id: str | None = None


def find(run: str, root: Path, with_mlflow: bool = True) -> Revision:
    """The commit that `run` names. Raises CannotCheck where there is none, or more than one."""
    if git("-C", str(root), "rev-parse", "--git-dir") is None:
        raise _cannot(run, "a git repository around dvc.yaml", f"none at {root.name}/", "Change to the project's root.")
    if re.fullmatch("[0-9a-f]{32}", run):
        commit = _holding(root, run)
        if commit or with_mlflow:
            return Revision(commit, _experiment_of(root, commit), run) if commit else _by_mlflow(run, root)
    if not run.startswith("-") and (commit := git("-C", str(root), "rev-parse", "-q", "--verify", run + "^{commit}")):
        return Revision(commit, _experiment_of(root, commit))
    named = {ref: commit for ref, commit in lineage.experiments(root).items() if ref.endswith(f"/{run}")}
    if len(set(named.values())) > 1:
        found = ", ".join(
            f"{commit[:7]} on {ref.split('/')[2]}{ref.split('/')[3][:5]}" for ref, commit in named.items()
        )
        raise _cannot(run, "one DVC experiment of this name", f"{len(named)}: {found}", "Give the commit instead.")
    if named:
        return Revision(next(iter(named.values())), run)
    raise _cannot(
        run,
        "an MLflow run id, a DVC experiment's name or a git revision",
        "no such thing in this repository" + (_deleted(run) if with_mlflow else ""),
        "List them with `dvc exp list --all` and `git log --oneline --all`.",
    )


def _cannot(run: str, expected: str, found: str, remedy: str) -> CannotCheck:
    return CannotCheck(run, expected=expected, found=found, remedy=remedy)


def _experiment_of(root: Path, commit: str) -> str | None:
    return next((ref.rsplit("/", 1)[1] for ref, at in lineage.experiments(root).items() if at == commit), None)


def _holding(root: Path, run: str) -> str | None:
    """The oldest commit of any branch, tag or experiment whose run.json files name this run (either of its ids)."""
    touching = git("-C", str(root), "log", "--all", "--reverse", "--format=%H", "-S", run, "--", "reports/*/run.json")
    for commit in (touching or "").splitlines():
        if git("-C", str(root), "grep", "-q", "-F", run, commit, "--", "reports/*/run.json") is not None:
            return commit
    return None


def _by_mlflow(run: str, root: Path) -> Revision:
    """A pipeline row's commit: the one that holds all of its stages' runs."""
    from mlflow.exceptions import MlflowException

    with tracking.opened(create=False) as store:
        try:
            tags = store.client.get_run(run).data.tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            where = f"neither in a committed run.json nor in {tracking.shown_uri()}"
            remedy = "Look it up with `make ui`, or name a git revision."
            raise _cannot(run, "a known MLflow run", where, remedy) from None
    if tags.get("regrpo.kind") == "reproduction":
        return Revision(tags["regrpo.revision"], None, tags.get("regrpo.reproduces"))
    stages = {name.removeprefix("regrpo.stage."): at for name, at in tags.items() if name.startswith("regrpo.stage.")}
    experiment = tags.get("regrpo.experiment")
    commits = {commit for at in stages.values() if (commit := _holding(root, at))}
    for commit in [*commits, *lineage.experiments(root).values()]:
        records = {record["stage"]: record for record in history.loose_records(Snapshot(root, commit))}
        named = ((records.get(stage, {}), at) for stage, at in stages.items())
        if stages and all(at in (record.get("run"), record.get("mlflow_run_id")) for record, at in named):
            return Revision(commit, experiment, run)
    name = f"its DVC experiment {experiment!r} was removed" if experiment else "its results were never committed here"
    raise _cannot(
        run,
        "a commit that holds the run's dvc.lock and run.json files",
        f"none: {name}" if stages else f"none: it is no run of a pipeline ({tags.get('regrpo.kind', 'foreign')})",
        "Commit dvc.lock and reports/ after a run (or `dvc exp branch NAME BRANCH`), in the repository that made it.",
    )


def _deleted(name: str) -> str:
    """Whether MLflow remembers an experiment of this name; silent where there is no store to ask."""
    try:
        with tracking.opened(create=False) as store:
            known = re.fullmatch(r"[\w.-]+", name) and store.find(regrpo__experiment=name)
    except CannotCheck:
        return ""
    return (
        f" (MLflow remembers a DVC experiment of that name: it was removed; run {known.info.run_id})" if known else ""
    )


def read_records(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Each stage's record at a revision, in running order, checked against dvc.lock.

    Raises CannotCheck where results were not committed, or a record cannot be read or is not the one dvc.lock knows.
    """
    from ruamel.yaml import YAML

    where = (snapshot.revision or "workspace")[:10]
    remedy = "Name a commit that holds a finished run (`git log --oneline --all -- dvc.lock`), or commit the results."
    try:
        declared = list(YAML(typ="safe").load((snapshot.read("dvc.yaml") or b"").decode())["stages"])
        lock = snapshot.lock()["stages"]
    except Exception as error:  # YAML's many, and KeyError or TypeError for another shape
        found = f"none that can be read ({type(error).__name__})"
        raise CannotCheck(where, expected="a pipeline's dvc.yaml and dvc.lock", found=found, remedy=remedy) from error
    missing = [name for name in declared if name not in lock or snapshot.read(f"reports/{name}/run.json") is None]
    if missing:
        found = f"none of {', '.join(missing)}: results that were never committed, or of a pipeline that did not finish"
        raise CannotCheck(where, expected="dvc.lock and a run.json of every stage", found=found, remedy=remedy)
    return {name: _record(snapshot, name, lock[name], f"{where}:reports/{name}/run.json") for name in declared}


def _record(snapshot: Snapshot, stage: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    data = snapshot.read(f"reports/{stage}/run.json") or b""
    record = history.parse_record(data, where)[1]
    known = {out["path"]: out["md5"] for out in entry.get("outs", [])}
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if known.get(f"reports/{stage}/run.json") != md5 or record["key"] != lineage.stage_key(entry):
        raise CannotCheck(
            where, expected="the record that dvc.lock knows", found="another one: it was altered, or is of another run",
            remedy="Restore the file from another commit, or name one whose records are whole.",
        )  # fmt: skip
    return {"mlflow_run_id": None} | record
