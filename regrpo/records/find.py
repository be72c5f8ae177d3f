"""Where pipelines lie (workspace, commits, DVC experiments), and which one a user's name means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from regrpo.core.dvc import dvc_config
from regrpo.core.errors import CannotCheck
from regrpo.core.git import experiments, git
from regrpo.core.pipeline import Snapshot, load, record_path
from regrpo.core.profiles import STAGES

T = TypeVar("T")
Row = Mapping[str, Any]
"""A run as MLflow has it: id, status, deleted, tags."""
QUEUED = {
    "Queued": "queued (`dvc queue start` runs it)",
    "Running": "running, or killed while it ran (`dvc queue status`)",
    "Failed": "failed (`dvc queue logs NAME`)",
}
"""What keeps an experiment in DVC's queue, by the queue's own word for it."""


class Rows(Protocol):
    """The look-up of MLflow's rows. Raises CannotCheck if MLflow cannot be asked."""

    def run(self, run_id: str) -> Row | None:
        """A run by its id. Returns None if it is unknown."""

    def tagged(self, **tags: str) -> Sequence[Row]:
        """The runs with these tags (`__` in a name stands for a dot)."""


@dataclass(frozen=True)
class Place:
    """A pipeline, what people call the place where it lies, and the MLflow run that was named."""

    name: str
    snapshot: Snapshot
    mlflow_run_id: str | None = None


@dataclass(frozen=True)
class Named:
    """What a user named, and where it lies; or why it cannot be had."""

    name: str
    place: Place | None = None
    problem: str | None = None


# --- places ---------------------------------------------------------------------------------------


def workspace(root: Path) -> Place:
    """The workspace at `root`.

    Raises CannotCheck if that is no repository of this pipeline that DVC can read.
    """
    if not (root / "dvc.yaml").is_file() or not (root / ".dvc").is_dir():
        missing = ".dvc/" if (root / "dvc.yaml").is_file() else "dvc.yaml"
        raise CannotCheck(
            root.name or str(root),
            expected="the root of a repository of this pipeline",
            found=f"no {missing}",
            remedy="Change to the repository's root, or name it.",
        )
    dvc_config(root)
    return Place("workspace", Snapshot(root))


def require_git(root: Path) -> None:
    """Raise CannotCheck if there is no git repository, unless DVC does without (`core.no_scm`)."""
    if not _in_git(root) and not dvc_config(root).get("core", {}).get("no_scm"):
        raise _no_git(root)


def _in_git(root: Path) -> bool:
    return git("-C", str(root), "rev-parse", "--git-dir") is not None


def _no_git(root: Path) -> CannotCheck:
    return CannotCheck(
        root.name or str(root),
        expected="a git repository around dvc.yaml",
        found="none",
        remedy="Change to the root of the clone.",
    )


def revisions(root: Path) -> Iterator[Place]:
    """DVC experiments, and commits (HEAD, branches, tags) that changed dvc.lock, newest first.

    Of several experiments with one name the last listed.
    """
    for name, commit in {one.name: one.commit for one in experiments(root)}.items():
        yield Place(f"experiment {name}", Snapshot(root, commit))
    everywhere = ("--branches", "--tags", "--remotes", "HEAD")
    listed = git("-C", str(root), "log", *everywhere, "--format=%H", "--", "dvc.lock")
    for commit in (listed or "").splitlines():
        yield Place(f"commit {commit[:12]}", Snapshot(root, commit))


# --- names ----------------------------------------------------------------------------------------


def names_run(text: str, run: str, mlflow_run_id: str | None) -> bool:
    """Whether `text` is the id of a run (ours or MLflow's), or its first 8 digits or more."""
    if not re.fullmatch("[0-9a-f]{8,32}", text):
        return False
    return run.startswith(text) or str(mlflow_run_id).startswith(text)


class Finder:
    """Finds runs of the repository at `root` by the names that people give them.

    A name is `workspace`, a git revision, a DVC experiment, or a run's id (MLflow's or ours; of a
    stage, or of a pipeline's row in MLflow). A stage's run.json names its own run; a row is in no
    file, so that MLflow is asked for it: `rows` is that look-up, None to do without. With
    `committed` only what git holds counts. Raises CannotCheck if `root` is no such repository.
    """

    def __init__(self, root: Path, rows: Rows | None = None, committed: bool = False) -> None:
        self.root, self.rows, self.committed = root, rows, committed
        self.here = workspace(root)
        self.mlflow_problem: str | None = None
        """Why MLflow could not be asked; it is asked no second time then."""

    def find(self, target: str | None) -> Place:
        """The place that a name means; None is the workspace.

        Raises CannotCheck if it means nothing here, two commits, or a run whose results are gone.
        """
        if target is None or (target in ("workspace", ".") and not self.committed):
            return self.here
        if self.committed and not _in_git(self.root):
            raise _no_git(self.root)
        # The first digits of a run's id may be those of a commit, which is meant then.
        place = self._of_revision(target) or self._of_run(target)
        if place is None and re.fullmatch("[0-9a-f]{32}", target):
            row = self._ask(lambda rows: rows.run(target))
            place = self._of_row(row) if row else None
        if place is None:
            raise self._unknown(target)
        return place

    def each(self, targets: Iterable[str]) -> list[Named]:
        """Each name with its place, or why it cannot be had."""
        return [_named(target, self.find, target) for target in targets]

    def sweep(self, name: str) -> list[Named]:
        """A sweep's runs: the DVC experiments NAME-1, NAME-2, … and MLflow's rows tagged with it.

        Those that are queued, running or failed come with that as their problem. Raises CannotCheck
        if there are none.
        """
        numbered = re.compile(re.escape(name) + r"-(\d+)")
        members: dict[str, Named] = {}
        for one in experiments(self.root):
            if numbered.fullmatch(one.name):
                label = one.name
                if label in members:  # the same name on another baseline
                    label += f"@{one.baseline[:7]}"
                place = Place(f"experiment {one.name}", Snapshot(self.root, one.commit))
                members[label] = Named(label, place)
        for experiment, problem in self._queued.items():
            if numbered.fullmatch(experiment):
                members.setdefault(experiment, Named(experiment, None, problem))
        for row in self._tagged(name, regrpo__sweep=name, regrpo__kind="pipeline"):
            label = row["tags"].get("regrpo.experiment") or row["id"]
            if label not in members and not row["deleted"]:
                members[label] = _named(label, self._of_row, row)
        if not members:
            raise self._no_sweep(name)
        return sorted(members.values(), key=_by_number)

    # --- git and files ----------------------------------------------------------------------------

    @cached_property
    def _held(self) -> list[tuple[Place, dict[str, str | None]]]:
        """Where to look for a run: {our id: MLflow's id} of each place's stages.

        The workspace, commits from the oldest on (the one that made it comes first), experiments.
        """
        places = [] if self.committed else [self.here]
        places += reversed(list(revisions(self.root)))
        paths = [record_path(stage) for stage in STAGES]
        snapshots = load([place.snapshot for place in places], paths)
        return [(place, runs_in(one)) for place, one in zip(places, snapshots, strict=True)]

    def _of_run(self, run: str) -> Place | None:
        """The first place with a stage's record of this run, by either of its ids."""
        for place, runs in self._held:
            for own, mlflow_run_id in runs.items():
                if names_run(run, own, mlflow_run_id):
                    return replace(place, mlflow_run_id=mlflow_run_id)
        return None

    def _of_revision(self, target: str) -> Place | None:
        """A git revision, or a DVC experiment's name."""
        verify = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{target}^{{commit}}")
        commit = git("-C", str(self.root), *verify)
        meanings = {commit: "git revision"} if commit else {}
        kind = "revision"
        for one in experiments(self.root):
            if one.name == target:
                kind = "experiment"
                meanings.setdefault(one.commit, f"experiment on {one.baseline[:7]}")
        if len(meanings) > 1:
            shown = ", ".join(f"{at[:12]} ({what})" for at, what in meanings.items())
            raise CannotCheck(
                target,
                expected="one commit of this name",
                found=f"{len(meanings)}: {shown}",
                remedy="Give the commit instead.",
            )
        for at in meanings:
            return Place(f"{kind} {target}", Snapshot(self.root, at))
        return None

    # --- MLflow -----------------------------------------------------------------------------------

    def _ask(self, question: Callable[[Rows], T]) -> T | None:
        """MLflow's answer. None if it is not to be asked, or cannot be (`mlflow_problem`)."""
        if self.rows is None or self.mlflow_problem:
            return None
        try:
            return question(self.rows)
        except CannotCheck as error:
            self.mlflow_problem = f"{error.where} could not be asked: {error.found}"
            return None

    def _tagged(self, name: str, **tags: str) -> Sequence[Row]:
        if not re.fullmatch(r"[\w.-]+", name):  # would end the quotes of MLflow's search condition
            return []
        return self._ask(lambda rows: rows.tagged(**tags)) or []

    def _of_row(self, row: Row) -> Place:
        """The place of every stage's run of a pipeline's row, or of what a reproduction made.

        Raises CannotCheck if the row's results are nowhere.
        """
        tags = row["tags"]
        kind = tags.get("regrpo.kind", "foreign")
        if kind == "reproduction" and "regrpo.revision" in tags:
            revision = tags["regrpo.revision"]
            commit = Snapshot(self.root, revision)
            return Place(f"commit {revision[:12]}", commit, tags.get("regrpo.reproduces"))
        stages = {run for tag, run in tags.items() if tag.startswith("regrpo.stage.")}
        experiment = tags.get("regrpo.experiment")
        if kind in ("pipeline", "stage") and row["status"] != "FINISHED":
            state = row["status"].lower().replace("running", "still running")
            why = f"{state}, says MLflow"
        elif not stages:
            why = f"it is no run of a pipeline ({kind})"
        elif experiment:
            why = f"its DVC experiment {experiment!r} was removed"
        else:
            why = "its results were never committed here"
        if row["status"] == "FINISHED" and stages:
            for place, runs in self._held:
                if stages <= {*runs, *runs.values()}:
                    return replace(place, mlflow_run_id=row["id"])
        raise CannotCheck(
            row["id"],
            expected="a commit that holds the run's dvc.lock and run.json files",
            found=f"none: {why}",
            remedy="Commit dvc.lock and reports/ after a run (or `dvc exp branch NAME BRANCH`), "
            "in the run's repository.",
        )

    # --- refusals ---------------------------------------------------------------------------------

    @cached_property
    def _queued(self) -> dict[str, str]:
        """{name: what keeps it} of the experiments in DVC's queue that are not done."""
        if not (self.root / ".dvc/tmp/exps/celery").is_dir():
            return {}
        from dvc.repo import Repo

        try:
            with Repo(str(self.root)) as repo:
                tasks = repo.experiments.celery_queue.status()
        # DVC, celery and kombu raise classes of their own; an unreadable queue holds up nothing.
        except Exception:
            return {}
        queued = {}
        for task in tasks:
            if task["name"] and task["status"] in QUEUED:
                name = str(task["name"])
                queued[name] = QUEUED[task["status"]].replace("NAME", name)
        return queued

    def _unknown(self, target: str) -> CannotCheck:
        found = "none of that name" if _in_git(self.root) else "no git repository here"
        if target in self._queued:
            found = self._queued[target]
        elif rows := self._tagged(target, regrpo__experiment=target):
            found += (
                " (MLflow remembers a DVC experiment of that name: it was removed; "
                f"run {rows[0]['id']})"
            )
        elif self.mlflow_problem:
            found += f" ({self.mlflow_problem})"
        return CannotCheck(
            target,
            expected="an MLflow run id, a git revision or a DVC experiment",
            found=found,
            remedy="`dvc exp list --all` and `git log --all -- dvc.lock` show what there is; "
            "another clone's runs are named there.",
        )

    def _no_sweep(self, name: str) -> CannotCheck:
        expected = f"DVC experiments {name}-1, {name}-2, …"
        found = "none, and none queued under that name"
        if self.mlflow_problem:
            found += f" ({self.mlflow_problem})"
        else:
            expected += f", or MLflow rows tagged regrpo.sweep={name}"
        return CannotCheck(
            f"sweep {name}",
            expected=expected,
            found=found,
            remedy=f"Queue one with `dvc exp run --queue -n {name} -S 'grpo.seed=range(0,5)'`, "
            "then `dvc queue start`.",
        )


def runs_in(snapshot: Snapshot) -> dict[str, str | None]:
    """{our id: MLflow's id} of the stages' runs in a place; what is no record has none."""
    records = snapshot.records().values()
    return {str(record.get("run")): record.get("mlflow_run_id") for record in records}


def _named(name: str, find: Callable[[T], Place], what: T) -> Named:
    try:
        return Named(name, find(what))
    except CannotCheck as error:
        return Named(name, None, error.found)


def _by_number(named: Named) -> list[str | int]:
    """lr-2 before lr-10."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", named.name)]
