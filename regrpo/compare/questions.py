"""Two runs on the questions that both were asked: every task, and whether only format differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.compare.relations import (
    Arm,
    decisive_tasks,
    differing,
    ordered_tasks,
    other_task,
    relation,
    seeds_of,
)
from regrpo.compare.runs import MODEL, Questions, Run, completions
from regrpo.compare.seed_tests import Tested, compare_questions, holm, question_intervals
from regrpo.core.text import cut
from regrpo.evaluate import stats
from regrpo.evaluate.results import SAMPLES, Kind

if TYPE_CHECKING:
    from regrpo.compare.seed_tests import Values

Json = dict[str, Any]
RESAMPLES = 10_000
"""Of the paired bootstrap."""
MOST_TEXT, MOST_ANSWER = 400, 100
"""Characters of an example's question and completions, and of its right answer."""
MOST_PAIRS_WITH_EXAMPLES = 12
OPENED = "answer_prefilled"
"""In the name of the control whose answer tag is opened for the model."""
NOT_ASKING = (
    "evaluate.tasks",
    "evaluate.limit",
    "evaluate.bootstrap",
    "evaluate.seed",
    "evaluate.threads",
)
"""The parameters of evaluate that do not change how a question is put."""


@dataclass
class Sides:
    """A task's values of two runs on the questions that both were asked, in the order of `ids`.

    `of` is how many questions each of the two was asked.
    """

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
    """Two runs, the later against the earlier; `result` is what the comparison returns of them."""

    before: Run
    after: Run
    sides: dict[str, Sides]
    result: Json

    @property
    def decisive(self) -> list[Json]:
        return [line for line in self.result["tasks"] if line["decisive"]]


def over_questions(
    read: Sequence[Run], arms: Sequence[Arm], questions: Questions, examples: int
) -> Json:
    """{comparisons, model, pairs}: each pair of `find_pairs` on its shared questions.

    The p-values of the tasks that decide are corrected over all pairs. Up to `examples` questions
    that only one run got right are shown each way.
    """
    pairs = [_pair(before, after, questions) for before, after in find_pairs(read, arms)]
    comparisons = sum(len(pair.decisive) for pair in pairs)
    _test(pairs, comparisons)
    for pair in pairs:
        _conclude(pair)
        if examples and pair.decisive and len(pairs) <= MOST_PAIRS_WITH_EXAMPLES:
            task = pair.decisive[0]["task"]
            pair.result["examples"] = _examples(pair, task, questions, examples)
    return {
        "comparisons": comparisons,
        "model": MODEL,
        "pairs": [pair.result for pair in pairs],
    }


def find_pairs(read: Sequence[Run], arms: Sequence[Arm]) -> list[tuple[Run, Run]]:
    """Every later run with the first.

    With several arms of which one has several runs, each with the first arm's run of the same seeds
    where there is one, and none of the first arm's own.
    """
    baseline = read[0]
    first = next((arm for arm in arms if baseline in arm.runs), None)
    with_seeds = [arm for arm in arms if len(arm.runs) > 1]
    if first is None or len(arms) < 2 or not with_seeds:
        return [(baseline, run) for run in read[1:]]
    twins = {seeds_of(run): run for run in first.runs}
    later = [run for run in read if run not in first.runs]
    return [(twins.get(seeds_of(run), baseline), run) for run in later]


def _pair(before: Run, after: Run, questions: Questions) -> Pair:
    sides, refused = shared_tasks(before, after, questions)
    samples = before.made.get(SAMPLES)
    settings = differing([_asking(before), _asking(after)])
    result = {
        "before": before.name,
        "after": after.name,
        "refused": refused,
        "identical": samples is not None and samples == after.made.get(SAMPLES),
        "settings": [line["name"] for line in settings],
        "tasks": _tasks(before, after, sides),
    }
    return Pair(before, after, sides, result)


def _asking(run: Run) -> dict[str, str]:
    """How the questions were put: what may change answers, and is no property of the model."""
    return {
        name: value
        for name, value in run.params.items()
        if name.startswith("evaluate.") and name not in NOT_ASKING
    }


def _tasks(before: Run, after: Run, sides: Mapping[str, Sides]) -> list[Json]:
    """[{task, role, decisive}] of the tasks that can be compared, those that decide first."""
    if not sides:
        return []
    assert before.evaluation is not None
    tasks = before.evaluation.tasks
    decisive = {*decisive_tasks(before.evaluation)} & {*decisive_tasks(after.evaluation)}
    lines = [
        {"task": name, "role": tasks[name].role, "decisive": name in decisive} for name in sides
    ]
    return sorted(lines, key=lambda line: not line["decisive"])


# --- the shared questions -------------------------------------------------------------------------


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
    sides: dict[str, Sides] = {}
    refused: list[Json] = []
    names = [*ordered_tasks(before.evaluation), *ordered_tasks(after.evaluation)]
    for name in dict.fromkeys(names):
        found = _other_answers(name, before, after) or _sides(name, before, after, questions)
        if isinstance(found, Sides):
            sides[name] = found
        else:
            refused.append({"task": name, "reason": found})
    return sides, refused


def _other_answers(name: str, before: Run, after: Run) -> str | None:
    """Why two runs' answers to a task are not of one task. Returns None if they are."""
    if name not in before.answers:
        return f"only {after.name} was asked"
    if name not in after.answers:
        return f"only {before.name} was asked"
    assert before.evaluation is not None
    assert after.evaluation is not None
    return other_task(before.evaluation, after.evaluation, name)


def _sides(name: str, before: Run, after: Run, questions: Questions) -> Sides | str:
    """The two runs' values on the questions that they share, or why there are none."""
    a, b = before.answers[name], after.answers[name]
    asked_a, asked_b = questions.sets[a.questions], questions.sets[b.questions]
    of = len(a.values), len(b.values)
    if a.questions == b.questions:
        return Sides(name, asked_a.index.tolist(), a.values, b.values, of)
    shared = stats.pair_answers(asked_a.assign(value=a.values), asked_b.assign(value=b.values))
    changed = shared.changed
    if changed:
        same_id = len(changed) + len(shared.ids)
        return (
            f"different questions: {len(changed)} of {same_id} with the same id have another "
            f"prompt or answer (first {changed[0]})"
        )
    if not shared.ids:
        return f"different questions: none of the {of[0]} and {of[1]} in common"
    return Sides(name, shared.ids, shared.before, shared.after, of)


# --- tests ----------------------------------------------------------------------------------------


def _test(pairs: Sequence[Pair], comparisons: int) -> None:
    """Add to every task of every pair its figures, all intervals drawn at once."""
    lines: list[Json] = []
    sides: list[Sides] = []
    for pair in pairs:
        for line in pair.result["tasks"]:
            lines.append(line)
            sides.append(pair.sides[line["task"]])
    tested = [compare_questions(one.before, one.after, one.kind) for one in sides]
    intervals = question_intervals([(one.before, one.after) for one in sides], resamples=RESAMPLES)
    decisive = [index for index, line in enumerate(lines) if line["decisive"]]
    corrected = holm([tested[index].p for index in decisive])
    p_holm = dict(zip(decisive, corrected, strict=True))
    for index, line in enumerate(lines):
        figures = _figures(sides[index], tested[index], p_holm.get(index), comparisons)
        line.update(figures, ci95=list(intervals[index]))


def _figures(sides: Sides, tested: Tested, p_holm: float | None, comparisons: int) -> Json:
    p = p_holm
    if p is None:  # it does not decide: there is nothing to correct it for
        p = tested.p
        comparisons = 1
    detectable = tested.detectable(comparisons)
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
        "minimum_detectable_effect": detectable if math.isfinite(detectable) else None,
        "questions_needed": tested.questions_needed(comparisons),
        "relation": relation(tested.difference, p, sides.kind),
    }


def _conclude(pair: Pair) -> None:
    """Add `relation` and, where the headline differs, `format` to a pair."""
    decisive = pair.decisive
    relations = {line["relation"] for line in decisive}
    if not decisive:
        found = "not compared"
    elif len(relations) == 1:
        found = decisive[0]["relation"]
    else:
        found = "mixed"
    pair.result["relation"] = found
    pair.result["format"] = None
    if len(decisive) == 1 and found != "not distinguishable":
        pair.result["format"] = format_finding(pair.result["tasks"], pair.sides)


# --- format following -----------------------------------------------------------------------------


@dataclass
class Probe:
    """A measure of what two runs know, whatever the form of their answers."""

    name: str
    before: Values
    after: Values
    kind: Kind


def format_finding(tasks: Sequence[Json], sides: Mapping[str, Sides]) -> Json | None:
    """Whether two runs whose headline differs do so only in format following.

    Returns None if no format was measured.

    `only` is true if all of this holds (p as in regrpo.compare.seed_tests, 0.05, uncorrected):

    1. the share of answers in the asked form differs, in the headline's direction;
    2. a probe of what the runs know finds no difference, though it would have shown one of the
       headline's size (its minimum detectable effect is at most that), and not all answers in it
       are wrong. The probes: accuracy on the questions that both runs answered in the asked form,
       and accuracy with the answer opened for the model;
    3. no probe finds a difference.
    """
    headline = tasks[0]
    form = next((line for line in tasks if line["role"] == "format"), None)
    if form is None or not form["task"].startswith(headline["task"]):
        return None
    probes = _probes(sides[headline["task"]], sides[form["task"]], sides)
    lines = [_probe_line(probe, abs(headline["difference"])) for probe in probes]
    same_direction = form["difference"] * headline["difference"] > 0
    differs = form["p"] < stats.ALPHA and same_direction
    alike = any(line["shows_no_difference"] for line in lines)
    apart = any(line["differs"] for line in lines)
    return {
        "only": differs and alike and not apart,
        "differs": differs,
        "before": form["before"],
        "after": form["after"],
        "probes": lines,
    }


def _probes(headline: Sides, form: Sides, sides: Mapping[str, Sides]) -> list[Probe]:
    probes = []
    if headline.ids == form.ids:
        both = (form.before == 1) & (form.after == 1)
        if both.any():
            before, after = headline.before[both], headline.after[both]
            probes.append(Probe("both in the asked form", before, after, headline.kind))
    opened = next((side for name, side in sides.items() if OPENED in name), None)
    if opened is not None:
        probes.append(Probe("answer opened", opened.before, opened.after, opened.kind))
    return probes


def _probe_line(probe: Probe, size: float) -> Json:
    """A probe's figures, and whether it shows that there is no difference of this size."""
    tested = compare_questions(probe.before, probe.after, probe.kind)
    differs = tested.p < stats.ALPHA
    some_right = bool(probe.before.any() or probe.after.any())
    would_show = tested.detectable() <= size and some_right
    return {
        "probe": probe.name,
        "questions": tested.n,
        "before": float(probe.before.mean()),
        "after": float(probe.after.mean()),
        "difference": tested.difference,
        "p": tested.p,
        "differs": differs,
        "shows_no_difference": would_show and not differs,
    }


# --- examples -------------------------------------------------------------------------------------


def _examples(pair: Pair, task: str, questions: Questions, most: int) -> Json:
    """{task, gained, lost}: questions that only one run got right, up to `most` each way.

    Of a number: those where the two are furthest apart.
    """
    import numpy as np

    sides = pair.sides[task]
    difference = sides.after - sides.before
    if not difference.any():  # the completions need not be read
        return {"task": task, "gained": [], "lost": []}
    furthest_first = np.argsort(-np.abs(difference), kind="stable")
    gained = [sides.ids[index] for index in furthest_first if difference[index] > 0]
    lost = [sides.ids[index] for index in furthest_first if difference[index] < 0]
    asked = questions.sets[pair.before.answers[task].questions]
    before, after = completions(pair.before, task), completions(pair.after, task)

    def example(name: str) -> Json:
        return {
            "id": name,
            "question": _text(asked.at[name, "prompt"], MOST_TEXT),
            "answer": _text(asked.at[name, "answer"], MOST_ANSWER),
            "before": _text(before.get(name), MOST_TEXT),
            "after": _text(after.get(name), MOST_TEXT),
        }

    return {
        "task": task,
        "gained": [example(name) for name in gained[:most]],
        "lost": [example(name) for name in lost[:most]],
    }


def _text(text: Any, most: int) -> str | None:
    return cut(text, most) if isinstance(text, str) else None
