"""Two runs on the questions that both were asked: every task, and whether only format differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.compare import runs, seed_tests
from regrpo.compare.relations import (
    Arm,
    arm_seeds,
    decisive_tasks,
    differing,
    ordered_tasks,
    other_task,
    relation,
)
from regrpo.compare.runs import Questions, Run
from regrpo.compare.seed_tests import Tested
from regrpo.evaluate import stats
from regrpo.evaluate.results import SAMPLES, Kind

if TYPE_CHECKING:
    from regrpo.compare.seed_tests import Values

Json = dict[str, Any]
CUT = {"question": 400, "answer": 100, "before": 400, "after": 400}
"""Characters of an example's texts."""


MOST_PAIRS_WITH_EXAMPLES = 12


OPENED = "answer_prefilled"
"""In the name of the control whose answer tag is opened for the model."""


@dataclass
class Sides:
    """A task's values of two runs on the questions that both were asked, in the order of `ids`."""

    task: str
    ids: list[str]
    before: Values
    after: Values
    of: tuple[int, int]

    @property
    def kind(self) -> Kind:
        return stats.kind_of([*self.before.tolist(), *self.after.tolist()])


@dataclass
class Pair:
    """Two runs, the later against the earlier; `told` is what the result says of them."""

    before: Run
    after: Run
    sides: dict[str, Sides]
    told: Json


def find_pairs(read: Sequence[Run], arms: Sequence[Arm]) -> list[tuple[Run, Run]]:
    """Every later run with the first.

    With several arms of which one has several runs, each with the first arm's run of the same seeds
    where there is one, and none of the first arm's own.
    """
    first = next((arm for arm in arms if read[0] in arm.runs), None)
    if first is None or len(arms) < 2 or all(len(arm.runs) < 2 for arm in arms):
        return [(read[0], run) for run in read[1:]]
    twins = {arm_seeds(run): run for run in reversed(first.runs)}
    return [(twins.get(arm_seeds(run), read[0]), run) for run in read if run not in first.runs]


def over_questions(
    read: Sequence[Run], arms: Sequence[Arm], questions: Questions, resamples: int, examples: int
) -> Json:
    pairs = [_pair(before, after, questions) for before, after in find_pairs(read, arms)]
    todo = [(line, pair.sides[line["task"]]) for pair in pairs for line in pair.told["tasks"]]
    found = [seed_tests.compare_questions(one.before, one.after, one.kind) for _, one in todo]
    intervals = seed_tests.question_intervals(
        [(one.before, one.after) for _, one in todo], resamples=resamples
    )
    family = [index for index, (line, _) in enumerate(todo) if line["decisive"]]
    corrected = dict(
        zip(family, seed_tests.holm([found[index].p for index in family]), strict=True)
    )
    for index, ((line, side), tested, ci95) in enumerate(zip(todo, found, intervals, strict=True)):
        line |= _task_line(side, tested, corrected.get(index), len(family)) | {"ci95": list(ci95)}
    for pair in pairs:
        _conclude(pair)
        wanted = next((line["task"] for line in pair.told["tasks"] if line["decisive"]), None)
        if examples and wanted and len(pairs) <= MOST_PAIRS_WITH_EXAMPLES:
            pair.told["examples"] = _examples(pair, wanted, questions, examples)
    return {"comparisons": len(family), "model": runs.MODEL, "pairs": [pair.told for pair in pairs]}


def _pair(before: Run, after: Run, questions: Questions) -> Pair:
    sides, refused = shared_tasks(before, after, questions)
    samples = before.made.get(SAMPLES)
    decisive = [
        name
        for name in decisive_tasks(before.evaluation)
        if name in decisive_tasks(after.evaluation)
    ]
    roles = (
        {name: task.role for name, task in before.evaluation.tasks.items()}
        if before.evaluation
        else {}
    )
    told: Json = {
        "before": before.name,
        "after": after.name,
        "refused": refused,
        "identical": samples is not None and samples == after.made.get(SAMPLES),
        "settings": [line["name"] for line in differing([_asking(before), _asking(after)])],
        "tasks": [
            {"task": name, "role": roles[name], "decisive": name in decisive}
            for name in sorted(sides, key=lambda name: name not in decisive)
        ],
    }
    return Pair(before, after, sides, told)


def _asking(run: Run) -> dict[str, str]:
    """How the questions were put: what may change answers, and is no property of the model."""
    ours = (
        "evaluate.tasks",
        "evaluate.limit",
        "evaluate.bootstrap",
        "evaluate.seed",
        "evaluate.threads",
    )
    return {
        name: value
        for name, value in run.params.items()
        if name.startswith("evaluate.") and name not in ours
    }


def shared_tasks(
    before: Run, after: Run, questions: Questions
) -> tuple[dict[str, Sides], list[Json]]:
    """The tasks on which two runs can be compared, and those on which they cannot, with the reason.

    The same questions are those of one id, prompt and right answer. A run that was asked some of
    the other's questions is compared on them; where one id stands for two questions, nothing is.
    """
    for run in (before, after):
        if run.no_answers is not None:
            return {}, [{"task": None, "reason": f"{run.name}: {run.no_answers}"}]
    x, y = before.evaluation, after.evaluation
    assert x is not None
    assert y is not None
    sides: dict[str, Sides] = {}
    refused: list[Json] = []
    for name in dict.fromkeys([*ordered_tasks(x), *ordered_tasks(y)]):
        if name not in before.answers or name not in after.answers:
            where = before.name if name in before.answers else after.name
            refused.append({"task": name, "reason": f"only {where} was asked"})
            continue
        reason = other_task(x, y, name)
        found = reason or _shared_questions(name, before, after, questions)
        if isinstance(found, str):
            refused.append({"task": name, "reason": found})
        else:
            sides[name] = found
    return sides, refused


def _shared_questions(name: str, before: Run, after: Run, questions: Questions) -> Sides | str:
    a, b = before.answers[name], after.answers[name]
    x, y = questions.sets[a.questions], questions.sets[b.questions]
    of = len(a.values), len(b.values)
    if a.questions == b.questions:
        return Sides(name, x.index.tolist(), a.values, b.values, of)
    shared = stats.pair_answers(x.assign(value=a.values), y.assign(value=b.values))
    if not shared.ids and not shared.changed:
        return f"different questions: none of the {of[0]} and {of[1]} in common"
    if changed := shared.changed:
        return (
            f"different questions: {len(changed)} of {len(changed) + len(shared.ids)} with the same "
            f"id have another prompt or answer (first {changed[0]})"
        )
    return Sides(name, shared.ids, shared.before, shared.after, of)


def _task_line(sides: Sides, tested: Tested, p_holm: float | None, comparisons: int) -> Json:
    m = comparisons if p_holm is not None else 1
    decisive_p = tested.p if p_holm is None else p_holm
    return {
        "kind": sides.kind,
        "questions": tested.n,
        "of": list(sides.of),
        "before": float(sides.before.mean()),
        "after": float(sides.after.mean()),
        "difference": tested.difference,
        "test": tested.test,
        "p": tested.p,
        "p_holm": p_holm,
        "gained": tested.gained,
        "lost": tested.lost,
        "minimum_detectable_effect": _finite(tested.detectable(m)),
        "questions_needed": tested.questions_needed(m),
        "relation": relation(tested.difference, decisive_p, sides.kind),
    }


def _conclude(pair: Pair) -> None:
    """Add `relation` and, where the headline differs, `format` to a pair."""
    decisive = [line for line in pair.told["tasks"] if line["decisive"]]
    relations = {line["relation"] for line in decisive}
    pair.told["relation"] = (
        "not compared" if not decisive else relations.pop() if len(relations) == 1 else "mixed"
    )
    pair.told["format"] = None
    if len(decisive) == 1 and decisive[0]["relation"] != "not distinguishable":
        pair.told["format"] = format_finding(pair.told["tasks"], pair.sides)


def format_finding(tasks: Sequence[Json], sides: Mapping[str, Sides]) -> Json | None:
    """Whether two runs whose headline differs do so only in format following.

    None where no format was measured.

    `only` is true if all of this holds (p as in regrpo.compare.seed_tests, 0.05, uncorrected):

    1. the share of answers in the asked form differs, in the headline's direction;
    2. a probe of what the runs know finds no difference, though it would have shown one of the
       headline's size
       (its minimum detectable effect is at most that), and not all answers in it are wrong. The
       probes: accuracy on the
       questions that both runs answered in the asked form, and accuracy with the answer opened for
       the model;
    3. no probe finds a difference.
    """
    headline, form = tasks[0], next((line for line in tasks if line["role"] == "format"), None)
    if form is None or not form["task"].startswith(headline["task"]):
        return None
    main, shape = sides[headline["task"]], sides[form["task"]]
    probes = {}
    if main.ids == shape.ids:
        both = (shape.before == 1) & (shape.after == 1)
        if both.any():
            probes["both in the asked form"] = (main.before[both], main.after[both], main.kind)
    opened = next((side for name, side in sides.items() if OPENED in name), None)
    if opened is not None:
        probes["answer opened"] = (opened.before, opened.after, opened.kind)
    lines = []
    for name, (x, y, kind) in probes.items():
        tested = seed_tests.compare_questions(x, y, kind)
        differs = tested.p < stats.ALPHA
        could = tested.detectable() <= abs(headline["difference"]) and bool(x.any() or y.any())
        lines.append(
            {
                "probe": name,
                "questions": tested.n,
                "before": float(x.mean()),
                "after": float(y.mean()),
                "difference": tested.difference,
                "p": tested.p,
                "differs": differs,
                "shows_no_difference": could and not differs,
            }
        )
    differs = form["p"] < stats.ALPHA and form["difference"] * headline["difference"] > 0
    only = (
        differs
        and any(line["shows_no_difference"] for line in lines)
        and not any(line["differs"] for line in lines)
    )
    return {
        "only": only,
        "differs": differs,
        "before": form["before"],
        "after": form["after"],
        "probes": lines,
    }


def _examples(pair: Pair, task: str, questions: Questions, most: int) -> Json:
    """Questions that only one run got right (of a number.

    Where they are furthest apart), up to `most` each way.
    """
    import numpy as np

    sides = pair.sides[task]
    d = sides.after - sides.before
    order = np.argsort(-np.abs(d), kind="stable")
    asked = questions.sets[pair.before.answers[task].questions]
    said = [runs.completions(run, task) if d.any() else {} for run in (pair.before, pair.after)]
    return {"task": task} | {
        way: [
            {
                "id": (name := sides.ids[index]),
                "question": _cut(asked.at[name, "prompt"], "question"),
                "answer": _cut(asked.at[name, "answer"], "answer"),
                "before": _cut(said[0].get(name), "before"),
                "after": _cut(said[1].get(name), "after"),
            }
            for index in order
            if d[index] * sign > 0
        ][:most]
        for way, sign in (("gained", 1), ("lost", -1))
    }


def _cut(text: Any, what: str) -> str | None:
    if not isinstance(text, str):
        return None
    return text if len(text) <= CUT[what] else text[: CUT[what]] + "…"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
