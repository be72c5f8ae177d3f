"""Settings that ran with several seeds: their means, and each against the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain, product
from typing import Any

from regrpo.compare.relations import Arm, decisive_tasks, other_task, relation, seeds_of
from regrpo.compare.runs import MODEL, SEEDS, Run
from regrpo.compare.seed_tests import FEWEST_SEEDS, compare_seeds, holm, mean_over_seeds

Json = dict[str, Any]


def over_seeds(arms: Sequence[Arm], pairs: Sequence[Json]) -> Json:
    """Means over seeds of each arm, and each later arm against the first.

    {varying, covers, arms, comparisons}; `pairs` are those of the comparison over questions, from
    which it is counted how many differ in format following only.
    """
    every = list(chain.from_iterable(arm.runs for arm in arms))
    varying = [name for name in SEEDS if _varies(name, arms)]
    tasks = decisive_tasks(every[0].evaluation) if every else []
    comparisons = _compare_arms(arms, tasks)
    for line in comparisons:
        line["format_only"] = _format_only(line, arms, pairs)
    return {
        "varying": varying,
        "covers": covers(varying, every),
        "arms": [_plain(arm, tasks) for arm in arms],
        "comparisons": comparisons,
    }


def _varies(seed: str, arms: Sequence[Arm]) -> bool:
    for arm in arms:
        values = {run.params.get(seed) for run in arm.runs}
        if len(values) > 1:
            return True
    return False


def covers(varying: Sequence[str], every: Sequence[Run]) -> str:
    """Which sources of variance an interval over these runs covers, in words."""
    if not varying:
        return "the questions only, not the seeds"
    there = set(chain.from_iterable(run.params for run in every))
    left = [name for name in SEEDS if name in there and name not in varying]
    if list(varying) == ["grpo.seed"]:
        what = "the GRPO seed only"
    elif left:
        what = "some seeds"
    else:
        what = "all seeds"
    text = f"{what} ({', '.join(varying)})"
    if "prepare.seed" in varying:
        text += "; the questions too, which prepare.seed draws anew"
    else:
        left = ["the choice of questions", *left]
    if left:
        text += f"; not {', '.join(left)}"
    return text


def _plain(arm: Arm, tasks: Sequence[str]) -> Json:
    means = {}
    for task in tasks:
        scores = _scores(arm, task)
        if len(scores) == len(arm.runs):
            mean = mean_over_seeds(list(scores.values()))
            means[task] = dataclasses.asdict(mean)
    return {
        "name": arm.name,
        "runs": [run.name for run in arm.runs],
        "repeats": [run.name for run in arm.repeats],
        "seeds": len(arm.runs),
        "enough": len(arm.runs) >= FEWEST_SEEDS,
        "means": means,
    }


def _scores(arm: Arm, task: str) -> dict[tuple[str | None, ...], float]:
    """{seeds: value} of the runs that were asked this task."""
    scores = {}
    for run in arm.runs:
        assert run.evaluation is not None
        result = run.evaluation.tasks.get(task)
        if result is not None and MODEL in result.models:
            scores[seeds_of(run)] = result.models[MODEL].value
    return scores


# --- the later arms against the first -------------------------------------------------------------


def _compare_arms(arms: Sequence[Arm], tasks: Sequence[str]) -> list[Json]:
    if not arms:
        return []
    first = arms[0]
    todo = list(product(arms[1:], tasks))
    able = [arm for arm, _ in todo if min(len(first.runs), len(arm.runs)) >= FEWEST_SEEDS]
    lines = []
    for arm, task in todo:
        if _comparable(first, arm, task):
            lines.append(_compare_two(first, arm, task, max(len(able), 1)))
    _correct([line for line in lines if line["design"]])
    return lines


def _comparable(before: Arm, after: Arm, task: str) -> bool:
    """Whether every run of both was asked the task, and it is the same one."""
    for arm in (before, after):
        if len(_scores(arm, task)) < len(arm.runs):
            return False
    return other_task(before.evaluation, after.evaluation, task) is None


def _compare_two(before: Arm, after: Arm, task: str, comparisons: int) -> Json:
    x, y = _scores(before, task), _scores(after, task)
    paired = set(x) == set(y)
    if paired:
        y = {seeds: y[seeds] for seeds in x}  # in the order of x
    found = compare_seeds(
        list(x.values()), list(y.values()), paired=paired, comparisons=comparisons
    )
    line = {
        "task": task,
        "before": before.name,
        "after": after.name,
        "seeds": [len(x), len(y)],
        "kind": after.evaluation.tasks[task].kind,
    }
    if found is None:
        return line | {"design": None}
    return line | dataclasses.asdict(found)


def _correct(tested: Sequence[Json]) -> None:
    """Add to each comparison its p after Holm's correction, and what it comes to."""
    corrected = holm([line["p"] for line in tested])
    for line, p in zip(tested, corrected, strict=True):
        line["p_holm"] = p
        line["comparisons"] = len(tested)
        line["relation"] = relation(line["difference"], p, line["kind"])


def _format_only(line: Json, arms: Sequence[Arm], pairs: Sequence[Json]) -> tuple[int, int]:
    """Of the two arms' pairs of runs with a finding on format: how many differ in it alone, all."""
    names: set[str] = set()
    for arm in arms:
        if arm.name in (line["before"], line["after"]):
            names.update(run.name for run in arm.runs)
    findings = []
    for pair in pairs:
        if {pair["before"], pair["after"]} <= names and pair["format"]:
            findings.append(pair["format"])
    only = [finding for finding in findings if finding["only"]]
    return len(only), len(findings)
