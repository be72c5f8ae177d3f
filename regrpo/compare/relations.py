"""How runs relate: what differs between them, and which are seeds of one setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from regrpo.compare.runs import SEEDS, Run
from regrpo.core.git import git
from regrpo.core.pipeline import CODE
from regrpo.evaluate import stats
from regrpo.evaluate.results import Evaluation, Kind

Json = dict[str, Any]
MOST_DIFFSTATS = 3
UNCHANGED = "no change of code"
BESIDE = ("sampled", "control", "format")
"""The roles of tasks that never decide."""
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
    revisions = [{"revision": ", ".join(_short_revisions(run))} for run in read]
    uncommitted = [{"diff": ", ".join(run.diffs) or "none"} for run in read]
    return {
        "revisions": differing(revisions),
        "uncommitted": differing(uncommitted),
        "files": differing([run.code for run in read]),
        "diffstats": _diffstats(read),
    }


def _short_revisions(run: Run) -> list[str]:
    return [revision[:12] for revision in run.revisions]


def _diffstats(read: Sequence[Run]) -> list[Json]:
    root = read[0].snapshot.root
    first, *others = dict.fromkeys(run.revisions[0] for run in read)
    return [
        {"from": first, "to": other, "text": _diffstat(root, first, other)}
        for other in others[:MOST_DIFFSTATS]
    ]


def _diffstat(root: Path, first: str, other: str) -> str:
    shown = git("-C", str(root), "diff", "--stat=90", first, other, "--", *CODE)
    if shown is None:
        return "one of the two is not in this repository"
    return shown or UNCHANGED


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


def decisive_tasks(evaluation: Evaluation | None) -> list[str]:
    """The headline; without one, every task that is not BESIDE another."""
    if evaluation is None:
        return []
    if evaluation.headline:
        return [evaluation.headline]
    return [name for name, task in evaluation.tasks.items() if task.role not in BESIDE]


def ordered_tasks(evaluation: Evaluation | None) -> list[str]:
    """The tasks, those that decide first, then formats, controls and sampled answers."""
    if evaluation is None:
        return []
    tasks = evaluation.tasks
    decisive = decisive_tasks(evaluation)
    last = {"format": 1, "control": 2, "sampled": 3}

    def place(name: str) -> tuple[bool, int, str]:
        return name not in decisive, last.get(tasks[name].role, 0), name

    return sorted(tasks, key=place)


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


@dataclass
class Arm:
    """Runs that differ only in their seeds, one of each set of seeds.

    `repeats` are further runs of the same seeds.
    """

    name: str = ""
    runs: list[Run] = field(default_factory=list)
    repeats: list[Run] = field(default_factory=list)

    @property
    def evaluation(self) -> Evaluation:
        """That of the first run: `find_arms` takes evaluated runs only."""
        found = self.runs[0].evaluation
        assert found is not None
        return found

    def add(self, run: Run) -> None:
        known = {seeds_of(one) for one in self.runs}
        if seeds_of(run) in known:
            self.repeats.append(run)
        else:
            self.runs.append(run)


def seeds_of(run: Run) -> tuple[str | None, ...]:
    """The run's values of SEEDS, None for a seed that it does not have."""
    return tuple(run.params.get(name) for name in SEEDS)


def find_arms(read: Iterable[Run]) -> list[Arm]:
    """The evaluated runs by setting, each arm named by what sets it apart from the others."""
    by_setting: dict[str, Arm] = {}
    for run in read:
        if run.evaluation is not None and run.setting is not None:
            by_setting.setdefault(run.setting, Arm()).add(run)
    arms = list(by_setting.values())
    names = _names(arms)
    for arm, name in zip(arms, names, strict=True):
        arm.name = name
        # The parameters are the same where settings differ in code or raw data alone.
        if names.count(name) > 1:
            arm.name += f" (code of {arm.runs[0].name})"
    return arms


def _names(arms: Sequence[Arm]) -> list[str]:
    apart = differing([_setting(arm.runs[0]) for arm in arms])
    names = []
    for index, arm in enumerate(arms):
        first = arm.runs[0].name
        settings = [f"{line['name']}={line['values'][index]}" for line in apart]
        if len(arm.runs) == 1 and len(arms) > 1:
            names.append(first)
        elif settings:
            names.append(_shown(settings))
        else:
            names.append(f"{first} and its seeds")
    return names


def _setting(run: Run) -> dict[str, str]:
    """The parameters that decide the results, but for the seeds."""
    return {
        name: value
        for name, value in run.params.items()
        if name not in SEEDS and not name.startswith("model_card.")
    }


def _shown(settings: Sequence[str]) -> str:
    shown = ", ".join(settings[:MOST_SETTINGS])
    more = len(settings) - MOST_SETTINGS
    return f"{shown}, and {more} more" if more > 0 else shown
