"""Settings that ran with several seeds: their means, and each against the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from regrpo.compare import runs, seed_tests
from regrpo.compare.relations import Arm, arm_seeds, decisive_tasks, other_task, relation
from regrpo.compare.runs import SEEDS, Run
from regrpo.compare.seed_tests import FEWEST_SEEDS

Json = dict[str, Any]


def over_seeds(arms: Sequence[Arm], pairs: Sequence[Json]) -> Json:
    """Means over seeds of each arm, and each later arm against the first."""
    every = [run for arm in arms for run in arm.runs]
    varying = [
        name
        for name in SEEDS
        if any(len({run.params.get(name) for run in arm.runs}) > 1 for arm in arms)
    ]
    tasks = decisive_tasks(every[0].evaluation) if every else []
    plain = []
    for arm in arms:
        means = {}
        for task in tasks:
            values = _scores(arm, task)
            if len(values) == len(arm.runs):
                means[task] = dataclasses.asdict(seed_tests.mean_over_seeds(list(values.values())))
        plain.append(
            {
                "name": arm.name,
                "runs": [run.name for run in arm.runs],
                "repeats": [run.name for run in arm.repeats],
                "seeds": len(arm.runs),
                "enough": len(arm.runs) >= FEWEST_SEEDS,
                "means": means,
            }
        )
    comparisons = _compare_arms(arms, tasks)
    for line in comparisons:
        names = {
            run.name
            for arm in arms
            if arm.name in (line["before"], line["after"])
            for run in arm.runs
        }
        form = [
            pair["format"]
            for pair in pairs
            if {pair["before"], pair["after"]} <= names and pair["format"]
        ]
        line["format_only"] = sum(one["only"] for one in form), len(form)
    return {
        "varying": varying,
        "covers": covers(varying, every),
        "arms": plain,
        "comparisons": comparisons,
    }


def _scores(arm: Arm, task: str) -> dict[tuple[str | None, ...], float]:
    """{seeds: value} of the runs that were asked this task."""
    return {
        arm_seeds(run): run.evaluation.tasks[task].models[runs.MODEL].value
        for run in arm.runs
        if run.evaluation
        and task in run.evaluation.tasks
        and runs.MODEL in run.evaluation.tasks[task].models
    }


def _compare_arms(arms: Sequence[Arm], tasks: Sequence[str]) -> list[Json]:
    lines: list[Json] = []
    todo = [(arm, task) for arm in arms[1:] for task in tasks]
    able = sum(1 for arm, _ in todo if min(len(arms[0].runs), len(arm.runs)) >= FEWEST_SEEDS)
    for arm, task in todo:
        x, y = _scores(arms[0], task), _scores(arm, task)
        if (
            len(x) < len(arms[0].runs)
            or len(y) < len(arm.runs)
            or _another_task(arms[0], arm, task)
        ):
            continue
        paired = set(x) == set(y)
        found = seed_tests.compare_seeds(
            list(x.values()),
            [y[seeds] for seeds in x] if paired else list(y.values()),
            paired=paired,
            comparisons=max(able, 1),
        )
        line: Json = {
            "task": task,
            "before": arms[0].name,
            "after": arm.name,
            "seeds": [len(x), len(y)],
        }
        assert arm.runs[0].evaluation is not None
        line["kind"] = arm.runs[0].evaluation.tasks[task].kind
        lines.append(line | (dataclasses.asdict(found) if found else {"design": None}))
    tested = [line for line in lines if line["design"]]
    for line, p in zip(tested, seed_tests.holm([line["p"] for line in tested]), strict=True):
        line |= {
            "p_holm": p,
            "comparisons": len(tested),
            "relation": relation(line["difference"], p, line["kind"]),
        }
    return lines


def _another_task(before: Arm, after: Arm, task: str) -> bool:
    x, y = before.runs[0].evaluation, after.runs[0].evaluation
    return x is None or y is None or other_task(x, y, task) is not None


def covers(varying: Sequence[str], every: Sequence[Run]) -> str:
    """Which sources of variance an interval over these runs covers, in words."""
    there = [name for name in SEEDS if any(name in run.params for run in every)]
    fixed = [name for name in there if name not in varying]
    questions = "prepare.seed" in varying
    if not varying:
        return "the questions only, not the seeds"
    what = (
        "the GRPO seed only"
        if list(varying) == ["grpo.seed"]
        else "all seeds"
        if not fixed
        else "some seeds"
    )
    also = "; the questions too, which prepare.seed draws anew" if questions else ""
    left = [*([] if questions else ["the choice of questions"]), *fixed]
    return f"{what} ({', '.join(varying)}){also}" + (f"; not {', '.join(left)}" if left else "")
