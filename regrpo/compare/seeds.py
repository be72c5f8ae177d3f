"""Settings that ran with several seeds: their means, and each against the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain, product
from typing import Any

from regrpo.compare.relations import Arm, Seeds, decisive_tasks, other_task, relation
from regrpo.compare.runs import MODEL, SEEDS, Run
from regrpo.compare.seed_tests import FEWEST_SEEDS, compare_seeds, mean_over_seeds
from regrpo.evaluate.stats import holm

Json = dict[str, Any]


def over_seeds(arms: Sequence[Arm], pairs: Sequence[Json]) -> Json:
    """Means over seeds of each arm, and each later arm against the first.

    {varying, covers, arms, comparisons}; `pairs` are those of the comparison over questions, from
    which it is counted how many differ in format following only.
    """
    every = list(chain.from_iterable(arm.runs for arm in arms))
    varying = [name for name in SEEDS if _varies(name, arms)]
    tasks = decisive_tasks(every[0].evaluation) if every else []
    return {
        "varying": varying,
        "covers": covers(varying, every),
        "arms": [_plain(arm, tasks) for arm in arms],
        "comparisons": _compare_arms(arms, tasks, pairs),
    }


def _varies(seed: str, arms: Sequence[Arm]) -> bool:
    """Whether runs of any arm differ in this seed."""
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
    if all(run.params.get("select.samples") in (None, "0") for run in every):
        there.discard("select.seed")  # it draws nothing
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
        if scores:
            means[task] = dataclasses.asdict(mean_over_seeds(list(scores.values())))
    return {
        "name": arm.name,
        "runs": [run.name for run in arm.runs],
        "repeats": [run.name for run in arm.repeats],
        "seeds": len(arm.runs),
        "enough": len(arm.runs) >= FEWEST_SEEDS,
        "means": means,
    }


def _scores(arm: Arm, task: str) -> dict[Seeds, float]:
    """{seeds: value} of an arm's runs; empty unless all of them were asked this task."""
    scores = {}
    for seeds, run in arm.by_seeds.items():
        result = run.evaluation.tasks.get(task)
        if result is None or MODEL not in result.models:
            return {}
        scores[seeds] = result.models[MODEL].value
    return scores


# --- the later arms against the first -------------------------------------------------------------


def _compare_arms(arms: Sequence[Arm], tasks: Sequence[str], pairs: Sequence[Json]) -> list[Json]:
    """The later arms against the first on each task that all of both were asked alike."""
    able = [arm for arm in arms if len(arm.runs) >= FEWEST_SEEDS]
    comparisons = max(1, (len(able) - 1) * len(tasks))
    lines: list[Json] = []
    for arm, task in product(arms[1:], tasks):
        if other_task(arms[0].evaluation, arm.evaluation, task) is None:
            lines += _compare_two(arms[0], arm, task, comparisons)
    tested = [line for line in lines if line["design"]]
    corrected = holm([line["p"] for line in tested])
    for line, p in zip(tested, corrected, strict=True):
        line["p_holm"] = p
        line["comparisons"] = len(tested)
        line["relation"] = relation(line["difference"], p, line["kind"])
    for line in lines:
        line["format_only"] = _format_only(line, arms, pairs)
    return lines


def _compare_two(before: Arm, after: Arm, task: str, comparisons: int) -> Iterator[Json]:
    """One arm against another on a task, before the correction; nothing if one was not asked."""
    x, y = _scores(before, task), _scores(after, task)
    if not x or not y:
        return
    paired = x.keys() == y.keys()
    if paired:
        y = {seeds: y[seeds] for seeds in x}  # in the order of x
    found = compare_seeds([*x.values()], [*y.values()], paired=paired, comparisons=comparisons)
    line: Json = {"design": None} if found is None else dataclasses.asdict(found)
    yield line | {
        "task": task,
        "before": before.name,
        "after": after.name,
        "seeds": [len(x), len(y)],
        "kind": after.evaluation.tasks[task].kind,
    }


def _format_only(line: Json, arms: Sequence[Arm], pairs: Sequence[Json]) -> tuple[int, int]:
    """Of the two arms' pairs of runs with a finding on format: how many differ in it alone, all."""
    names: set[str] = set()
    for arm in arms:
        if arm.name in (line["before"], line["after"]):
            names.update(run.name for run in arm.runs)
    findings = []
    for pair in pairs:
        if {pair["before"], pair["after"]} <= names and pair["format"]:
            findings.append(pair["format"]["only"])
    return sum(findings), len(findings)
