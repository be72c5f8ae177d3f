"""How runs relate: what differs between them, and which are seeds of one setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from regrpo.compare.runs import SEEDS, Run, settings
from regrpo.core.git import git
from regrpo.core.pipeline import CODE, RAW
from regrpo.evaluate import stats
from regrpo.evaluate.results import Evaluation, Kind

Json = dict[str, Any]
MOST_DIFFSTATS = 3
UNCHANGED = "no change of code"
BESIDE = ("format", "control", "sampled")
"""The roles of tasks that never decide, in the order in which they are shown."""
MOST_SETTINGS = 2
"""Parameters that an arm's name shows."""


# --- what differs ---------------------------------------------------------------------------------


def differing(facts: Sequence[Mapping[str, str]]) -> list[Json]:
    """[{name, values}] of what is not the same everywhere.

    One value per run, None for a run that has none of that name.
    """
    names = dict.fromkeys(chain.from_iterable(facts))
    lines = []
    for name in names:
        values = [of_run.get(name) for of_run in facts]
        if len(set(values)) > 1:
            lines.append({"name": name, "values": values})
    return lines


def code_differences(read: Sequence[Run]) -> Json:
    """Where the code differs: revisions, uncommitted changes, files that stages read (SHA-256).

    With git's diffstats from the first run's revision.
    """
    revisions, uncommitted, files, newest = [], [], [], []
    for run in read:
        stages = sorted(run.records.values(), key=lambda record: record["started"], reverse=True)
        commits = dict.fromkeys(stage["code"]["revision"] or "(no git)" for stage in stages)
        diffs = {stage["code"].get("diff_sha256") for stage in stages} - {None}
        revisions.append({"revision": ", ".join(commit[:12] for commit in commits)})
        uncommitted.append({"diff": ", ".join(sorted(diffs)) or "none"})
        files.append({path: sha256 for path, sha256 in run.inputs.items() if path not in RAW})
        newest.append(next(iter(commits)))
    diffstats = []
    first, *others = dict.fromkeys(newest)
    for other in others[:MOST_DIFFSTATS]:
        root = str(read[0].snapshot.root)
        text = git("-C", root, "diff", "--stat=90", first, other, "--", *CODE)
        if text is None:
            text = "one of the two is not in this repository"
        diffstats.append({"from": first, "to": other, "text": text or UNCHANGED})
    return {
        "revisions": differing(revisions),
        "uncommitted": differing(uncommitted),
        "files": differing(files),
        "diffstats": diffstats,
    }


def relation(difference: float, p: float, kind: Kind) -> str:
    """Better or worse, or not distinguishable.

    Of a metric that is not right or wrong: higher or lower.
    """
    if p >= stats.ALPHA or difference == 0:
        return "not distinguishable"
    if kind == "binary":
        return "better" if difference > 0 else "worse"
    return "higher" if difference > 0 else "lower"


# --- tasks ----------------------------------------------------------------------------------------


def decisive_tasks(evaluation: Evaluation) -> list[str]:
    """The headline; without one, every task that is not BESIDE another."""
    if evaluation.headline:
        return [evaluation.headline]
    return [name for name, task in evaluation.tasks.items() if task.role not in BESIDE]


def ordered_tasks(evaluation: Evaluation) -> list[str]:
    """The tasks, those that decide first, then formats, controls and sampled answers."""
    decisive = decisive_tasks(evaluation)
    roles = ("", *BESIDE)

    def place(name: str) -> tuple[bool, int, str]:
        role = evaluation.tasks[name].role
        return name not in decisive, roles.index(role) if role in roles else 0, name

    return sorted(evaluation.tasks, key=place)


def other_task(before: Evaluation, after: Evaluation, name: str) -> str | None:
    """Why a task of this name is not the same in both evaluations. Returns None if it is."""
    x, y = before.tasks.get(name), after.tasks.get(name)
    if x is None or y is None:
        return "one report does not know it"
    if (x.metric, x.version) != (y.metric, y.version):
        measures = f"{x.metric} of version {x.version}, {y.metric} of version {y.version}"
        return f"another task under the same name: {measures}"
    # lm-eval's own tasks, and custom ones, judge without our verifier.
    if before.verifier != after.verifier and x.role not in ("stock", "custom"):
        verifiers = f"{before.verifier} and {after.verifier}"
        return f"the answers were judged by different verifiers: {verifiers}"
    return None


# --- seeds of one setting -------------------------------------------------------------------------

Seeds = tuple[str | None, ...]
"""A run's values of SEEDS, None for a seed that it does not have."""


@dataclass
class Arm:
    """Runs that differ only in their seeds, one of each set of seeds.

    `repeats` are further runs of the same seeds.
    """

    by_seeds: dict[Seeds, Run] = field(default_factory=dict)
    repeats: list[Run] = field(default_factory=list)
    name: str = ""

    @property
    def runs(self) -> list[Run]:
        return list(self.by_seeds.values())

    @property
    def evaluation(self) -> Evaluation:
        """That of the first run."""
        return self.runs[0].evaluation


def seeds_of(run: Run) -> Seeds:
    return tuple(run.params.get(name) for name in SEEDS)


def find_arms(read: Iterable[Run]) -> list[Arm]:
    """The evaluated runs by setting, each arm named by what sets it apart from the others."""
    by_setting: dict[str, Arm] = {}
    for run in read:
        if run.evaluation.tasks and run.setting is not None:
            arm = by_setting.setdefault(run.setting, Arm())
            if arm.by_seeds.setdefault(seeds_of(run), run) is not run:
                arm.repeats.append(run)
    arms = list(by_setting.values())
    names = _names(arms)
    for arm, name in zip(arms, names, strict=True):
        arm.name = name
        # The parameters are the same where settings differ in code or raw data alone.
        if names.count(name) > 1:
            arm.name += f" (code of {arm.runs[0].name})"
    return arms


def _names(arms: Sequence[Arm]) -> list[str]:
    apart = differing([settings(arm.runs[0]) for arm in arms])
    names = []
    for index, arm in enumerate(arms):
        first = arm.runs[0].name
        if len(arm.runs) == 1 and len(arms) > 1:
            name = first
        elif apart:
            values = [f"{line['name']}={line['values'][index]}" for line in apart]
            name = ", ".join(values[:MOST_SETTINGS])
            if len(values) > MOST_SETTINGS:
                name += f", and {len(values) - MOST_SETTINGS} more"
        else:
            name = f"{first} and its seeds"
        names.append(name)
    return names
