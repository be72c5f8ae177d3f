"""How runs relate: what differs between them, and which are seeds of one setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


def differing(facts: Sequence[Mapping[str, str]]) -> list[Json]:
    """[{name, values (one per run, None where it has none)}] of what is not the same everywhere."""
    names = dict.fromkeys(name for one in facts for name in one)
    lines = [{"name": name, "values": [one.get(name) for one in facts]} for name in names]
    return [line for line in lines if len(set(line["values"])) > 1]


def code_differences(read: Sequence[Run]) -> Json:
    """Revisions, uncommitted changes, the differing files that stages read (MD5), diffstats from the first run."""
    stats_of = []
    first = read[0].revisions[0]
    for other in [one for one in dict.fromkeys(run.revisions[0] for run in read) if one != first][
        :MOST_DIFFSTATS
    ]:
        shown = git(
            "-C", str(read[0].snapshot.root), "diff", "--stat=90", first, other, "--", *CODE
        )
        text = UNCHANGED if shown == "" else shown
        stats_of.append(
            {"from": first, "to": other, "text": text or "one of the two is not in this repository"}
        )
    return {
        "revisions": differing(
            [{"revision": ", ".join(one[:12] for one in run.revisions)} for run in read]
        ),
        "uncommitted": differing([{"diff": ", ".join(run.diffs) or "none"} for run in read]),
        "files": differing([run.code for run in read]),
        "diffstats": stats_of,
    }


def ordered_tasks(evaluation: Evaluation | None) -> list[str]:
    """The tasks, those that decide first, then formats, controls and sampled answers."""
    tasks = evaluation.tasks if evaluation else {}
    order = {role: index for index, role in enumerate(("format", "control", "sampled"), 1)}
    decisive = decisive_tasks(evaluation)
    return sorted(
        tasks, key=lambda name: (name not in decisive, order.get(tasks[name].role, 0), name)
    )


def decisive_tasks(evaluation: Evaluation | None) -> list[str]:
    """The headline; without one, every task that is not BESIDE another."""
    if evaluation is None:
        return []
    if evaluation.headline:
        return [evaluation.headline]
    return [name for name, task in evaluation.tasks.items() if task.role not in BESIDE]


def other_task(x: Evaluation, y: Evaluation, name: str) -> str | None:
    a, b = x.tasks.get(name), y.tasks.get(name)
    if a is None or b is None:
        return "one report does not know it"
    if (a.metric, a.version) != (b.metric, b.version):
        return f"another task under the same name: {a.metric} of version {a.version}, {b.metric} of version {b.version}"
    if x.verifier != y.verifier and a.role not in ("stock", "custom"):
        return f"the answers were judged by different verifiers: {x.verifier} and {y.verifier}"
    return None


def relation(difference: float, p: float, kind: Kind) -> str:
    """Better or worse (of a metric that is not right or wrong.

    Higher or lower), or not distinguishable.
    """
    if p >= stats.ALPHA or difference == 0:
        return "not distinguishable"
    words = ("better", "worse") if kind == "binary" else ("higher", "lower")
    return words[difference < 0]


@dataclass
class Arm:
    """Runs that differ only in their seeds, one of each set of seeds.

    `repeats` are further runs of the same seeds.
    """

    name: str
    runs: list[Run]
    repeats: list[Run]


def arm_seeds(run: Run) -> tuple[str | None, ...]:
    return tuple(run.params.get(name) for name in SEEDS)


def find_arms(read: Iterable[Run]) -> list[Arm]:
    """The evaluated runs by setting, each arm named by what sets it apart from the others."""
    arms: dict[str, Arm] = {}
    for run in read:
        if run.evaluation is None or run.setting is None:
            continue
        arm = arms.setdefault(run.setting, Arm("", [], []))
        known = {arm_seeds(one) for one in arm.runs}
        (arm.repeats if arm_seeds(run) in known else arm.runs).append(run)
    firsts = [
        {name: value for name, value in arm.runs[0].params.items() if name not in SEEDS}
        for arm in arms.values()
    ]
    apart = differing(firsts)
    for index, arm in enumerate(arms.values()):
        told = [
            f"{line['name']}={line['values'][index]}"
            for line in apart
            if not line["name"].startswith("model_card.")
        ]
        shown = ", ".join(told[:2]) + (f", and {len(told) - 2} more" if len(told) > 2 else "")
        arm.name = (
            arm.runs[0].name
            if len(arm.runs) == 1 and len(arms) > 1
            else shown or f"{arm.runs[0].name} and its seeds"
        )
    names = [arm.name for arm in arms.values()]
    for index, arm in enumerate(arms.values()):  # settings that differ in code or raw data alone
        arm.name += f" (code of {arm.runs[0].name})" if names.count(names[index]) > 1 else ""
    return list(arms.values())
