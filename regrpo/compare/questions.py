"""Two runs on the questions that both were asked: every task, and whether only format differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from regrpo.compare.runs import MODEL, Run, read_texts
from regrpo.core.text import cut
from regrpo.evaluate import stats
from regrpo.evaluate.results import SAMPLES, Kind

if TYPE_CHECKING:
    from regrpo.evaluate.stats import Values

Json = dict[str, Any]
RESAMPLES, SEED = 10_000, 0
"""Of the paired bootstrap."""
MOST_TEXT, MOST_ANSWER = 400, 100
"""Characters of an example's question and completions, and of its right answer."""
MOST_PAIRS_WITH_EXAMPLES = 12
OPENED_ANSWER = "answer_prefilled"
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
    """Two runs' values on the same questions, those of `ids` in this order."""

    ids: Sequence[str]
    before: Values
    after: Values

    @cached_property
    def kind(self) -> Kind:
        return stats.kind_of([*self.before.tolist(), *self.after.tolist()])

    @cached_property
    def differences(self) -> Values:
        return stats.paired_differences(self.before, self.after, self.kind)

    @cached_property
    def figures(self) -> Json:
        """What a test of this one comparison finds."""
        test, gained, lost = "paired t test", None, None
        if self.kind == "binary":
            test = "exact McNemar test"
            p, gained, lost = stats.exact_mcnemar(self.differences)
        else:
            p = stats.paired_t(self.differences)
        return {
            "questions": len(self.ids),
            "before": float(self.before.mean()),
            "after": float(self.after.mean()),
            "difference": float(self.differences.mean()),
            "test": test,
            "p": p,
            "gained": gained,
            "lost": lost,
        }

    def power(self, comparisons: int) -> Json:
        """What so many questions would show, and how many would show the difference seen."""
        deviation = stats.deviation(self.differences, self.kind)
        alpha = stats.ALPHA / comparisons
        least = stats.detectable_difference(deviation, len(self.ids), self.kind, alpha)
        seen = self.figures["difference"]
        return {
            "minimum_detectable_effect": None if math.isnan(least) else least,
            "questions_needed": stats.questions_for(seen, deviation, self.kind, alpha),
        }


@dataclass
class RunPair:
    """Two runs, the later against the earlier; `result` is what the comparison returns of them."""

    before: Run
    after: Run
    sides: dict[str, Sides]
    result: Json

    @property
    def decisive(self) -> list[Json]:
        return [line for line in self.result["tasks"] if line["decisive"]]


def over_questions(read: Sequence[Run], arms: Sequence[Arm], examples: int) -> Json:
    """{comparisons, model, pairs}: each pair of `find_pairs` on its shared questions.

    The p-values of the tasks that decide are corrected over all pairs. Up to `examples` questions
    that only one run got right are shown each way.
    """
    pairs = [_pair(before, after) for before, after in find_pairs(read, arms)]
    comparisons = _test(pairs)
    for pair in pairs:
        _conclude(pair)
        if examples and pair.decisive and len(pairs) <= MOST_PAIRS_WITH_EXAMPLES:
            pair.result["examples"] = _examples(pair, pair.decisive[0]["task"], examples)
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
    later = [run for run in read if run not in first.runs]
    return [(first.by_seeds.get(seeds_of(run), baseline), run) for run in later]


def _pair(before: Run, after: Run) -> RunPair:
    sides, refused = shared_tasks(before, after)
    samples = before.made.get(SAMPLES)
    settings = differing([_asking(before), _asking(after)])
    decisive = {*decisive_tasks(before.evaluation)} & {*decisive_tasks(after.evaluation)}
    lines = []
    for name, side in sides.items():
        asked = [len(run.answers[name]) for run in (before, after)]
        line = {"task": name, "role": before.evaluation.tasks[name].role, "of": asked}
        lines.append(line | {"decisive": name in decisive, "kind": side.kind} | side.figures)
    result = {
        "before": before.name,
        "after": after.name,
        "refused": refused,
        "identical": samples is not None and samples == after.made.get(SAMPLES),
        "settings": [line["name"] for line in settings],
        "tasks": sorted(lines, key=lambda line: not line["decisive"]),
    }
    return RunPair(before, after, sides, result)


def _asking(run: Run) -> dict[str, str]:
    """How the questions were put: what may change answers, and is no property of the model."""
    return {
        name: value
        for name, value in run.params.items()
        if name.startswith("evaluate.") and name not in NOT_ASKING
    }


# --- the shared questions -------------------------------------------------------------------------


def shared_tasks(before: Run, after: Run) -> tuple[dict[str, Sides], list[Json]]:
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
        found = _sides(name, before, after)
        if isinstance(found, Sides):
            sides[name] = found
        else:
            refused.append({"task": name, "reason": found})
    return sides, refused


def _sides(name: str, before: Run, after: Run) -> Sides | str:
    """The two runs' values on the questions that they share, or why there are none."""
    for run, other in ((before, after), (after, before)):
        if name not in run.answers:
            return f"only {other.name} was asked"
    other_measure = other_task(before.evaluation, after.evaluation, name)
    if other_measure:
        return other_measure
    answers = before.answers[name], after.answers[name]
    shared = stats.pair_answers(*answers)
    changed = shared.changed
    if changed:
        same_id = len(changed) + len(shared.ids)
        return (
            f"different questions: {len(changed)} of {same_id} with the same id have another "
            f"prompt or answer (first {changed[0]})"
        )
    if not shared.ids:
        asked = " and ".join(str(len(one)) for one in answers)
        return f"different questions: none of the {asked} in common"
    return Sides(shared.ids, shared.before, shared.after)


# --- tests ----------------------------------------------------------------------------------------


def _test(pairs: Sequence[RunPair]) -> int:
    """Add intervals, corrected p-values, power and relation to every task of every pair.

    Returns the number of comparisons that are corrected for one another.
    """
    todo: list[tuple[Json, Sides]] = []
    for pair in pairs:
        for line in pair.result["tasks"]:
            todo.append((line, pair.sides[line["task"]]))
    samples = [sides.differences for _, sides in todo]
    intervals = stats.bootstrap_intervals(samples, resamples=RESAMPLES, seed=SEED)
    decisive = [line for line, _ in todo if line["decisive"]]
    corrected = stats.holm([line["p"] for line in decisive])
    for line, p_holm in zip(decisive, corrected, strict=True):
        line["p_holm"] = p_holm
    for (line, sides), ci95 in zip(todo, intervals, strict=True):
        # What does not decide has nothing to be corrected for.
        p = line["p_holm"] if line["decisive"] else line["p"]
        line |= sides.power(len(decisive) if line["decisive"] else 1)
        line |= {"ci95": list(ci95), "relation": relation(line["difference"], p, line["kind"])}
        line.setdefault("p_holm", None)
    return len(decisive)


def _conclude(pair: RunPair) -> None:
    """Add `relation` and, where the headline differs, `format` to a pair."""
    relations = {line["relation"] for line in pair.decisive} or {"not compared"}
    found = relations.pop() if len(relations) == 1 else "mixed"
    pair.result["relation"] = found
    pair.result["format"] = None
    if len(pair.decisive) == 1 and found != "not distinguishable":
        pair.result["format"] = format_finding(pair.result["tasks"], pair.sides)


# --- format following -----------------------------------------------------------------------------


def format_finding(tasks: Sequence[Json], sides: Mapping[str, Sides]) -> Json | None:
    """Whether two runs whose headline differs do so only in format following.

    Returns None if no format was measured.

    `only` is true if all of this holds (p of the paired test, 0.05, uncorrected):

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
    lines = [_probe(name, probe, abs(headline["difference"])) for name, probe in probes.items()]
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


def _probes(headline: Sides, form: Sides, sides: Mapping[str, Sides]) -> dict[str, Sides]:
    """Measures of what two runs know, whatever the form of their answers, by name."""
    probes = {}
    if headline.ids == form.ids:
        both = (form.before == 1) & (form.after == 1)
        if both.any():
            ids = [name for name, in_form in zip(form.ids, both, strict=True) if in_form]
            of_both = Sides(ids, headline.before[both], headline.after[both])
            probes["both in the asked form"] = of_both
    for name, side in sides.items():
        if OPENED_ANSWER in name:
            probes.setdefault("answer opened", side)
    return probes


def _probe(name: str, probe: Sides, size: float) -> Json:
    """A probe's figures, and whether it shows that there is no difference of this size."""
    shown = ("questions", "before", "after", "difference", "p")
    line = {"probe": name} | {key: probe.figures[key] for key in shown}
    line["differs"] = line["p"] < stats.ALPHA
    least = probe.power(1)["minimum_detectable_effect"]
    would_show = least is not None and least <= size and (line["before"] or line["after"])
    line["shows_no_difference"] = bool(would_show) and not line["differs"]
    return line


# --- examples -------------------------------------------------------------------------------------


def _examples(pair: RunPair, task: str, most: int) -> Json:
    """{task, gained, lost}: questions that only one run got right, up to `most` each way.

    Of a number: those where the two are furthest apart.
    """
    import numpy as np

    found: Json = {"task": task, "gained": [], "lost": []}
    sides = pair.sides[task]
    if not sides.differences.any():  # the texts need not be read
        return found
    before, after = read_texts(pair.before, task), read_texts(pair.after, task)
    for index in np.argsort(-np.abs(sides.differences), kind="stable"):
        name, difference = sides.ids[index], sides.differences[index]
        way = found["gained" if difference > 0 else "lost"]
        if difference == 0 or len(way) == most:
            continue
        question = before.loc[name]
        example = {
            "id": name,
            "question": _text(question["prompt"], MOST_TEXT),
            "answer": _text(question["answer"], MOST_ANSWER),
            "before": _text(question["completion"], MOST_TEXT),
            "after": _text(after.at[name, "completion"], MOST_TEXT),
        }
        way.append(example)
    return found


def _text(text: Any, most: int) -> str | None:
    return cut(text, most) if isinstance(text, str) else None
