"""What a comparison of runs found, in sentences; from regrpo.compare.compare's plain data alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from regrpo.compare.seed_tests import FEWEST_SEEDS
from regrpo.core.text import interval, p_equals, signed

Json = dict[str, Any]
FEW = 3
"""Comparisons up to which each has sentences of its own; more are counted."""


def sentences(questions: Json, seeds: Json) -> list[str]:
    """The findings, the ones that decide first.

    Over seeds where there are enough of them, else over questions.
    """
    pairs, comparisons = questions["pairs"], questions["comparisons"]
    found = _over_seeds(seeds)
    if len(pairs) <= FEW:
        for pair in pairs:
            found += _pair(pair, comparisons)
    else:
        found.append(_count(pairs, comparisons))
    found += _too_few_seeds(seeds)
    if comparisons:
        found.append("Intervals over the questions cover the questions only, not the seeds.")
    return found


def reason(refused: Json) -> str:
    """Why two runs' answers to a task, or all their answers, cannot be compared."""
    if refused["task"] is None:
        return str(refused["reason"])
    return f"{refused['task']}: {refused['reason']}"


# --- over seeds -----------------------------------------------------------------------------------


def _over_seeds(seeds: Json) -> list[str]:
    tested = [line for line in seeds["comparisons"] if line["design"]]
    if len(tested) > FEW:
        counts = _counted(line["relation"] for line in tested)
        settings = f"{len(tested)} settings against {tested[0]['before']}"
        return [
            f"Over seeds, of {settings}: {counts} (t tests{_holm(len(tested))}). "
            f"The intervals cover {seeds['covers']}."
        ]
    found = [_difference(line, seeds) for line in tested]
    if len(seeds["arms"]) == 1 and seeds["arms"][0]["enough"]:
        for task, mean in seeds["arms"][0]["means"].items():
            found.append(
                f"One setting over {mean['n']} seeds: {task} {mean['mean']:.3f} on average "
                f"(95 % t interval {interval(mean['ci95'])}). "
                f"The interval covers {seeds['covers']}."
            )
    return found


def _too_few_seeds(seeds: Json) -> list[str]:
    arms = seeds["arms"]
    most = max((arm["seeds"] for arm in arms), default=0)
    if most == 1 or (len(arms) == 1 and not arms[0]["enough"]):
        return [f"Too few seeds ({most} of {FEWEST_SEEDS}) for an interval over seeds."]
    few = []
    for line in seeds["comparisons"]:
        if not line["design"]:
            before, after = line["seeds"]
            few.append(f"{line['after']} and {line['before']} ({after} and {before})")
    if not few:
        return []
    shown = "; ".join(few[:FEW])
    if len(few) > FEW:
        shown += f"; and {len(few) - FEW} more"
    return [f"Too few seeds, of the {FEWEST_SEEDS} that each setting needs, to compare {shown}."]


def _difference(line: Json, seeds: Json) -> str:
    """One setting against another on one task, over seeds."""
    before, after, task = line["before"], line["after"], line["task"]
    means = {arm["name"]: arm["means"].get(task) for arm in seeds["arms"]}
    n_before, n_after = line["seeds"]
    if line["design"] == "paired t":
        how = f"over {n_before} seeds, paired by seed"
    else:
        how = f"over {n_after} and {n_before} seeds, Welch's t"
    figures = (
        f"{means[after]['mean']:.3f} against {means[before]['mean']:.3f}, "
        f"{signed(line['difference'])} "
        f"(95 % t interval {interval(line['ci95'], sign=True)}), "
        f"{p_equals(line['p_holm'])}{_holm(line['comparisons'])}"
    )
    covered = f"The interval covers {seeds['covers']}."
    if line["relation"] == "not distinguishable":
        needed = line["seeds_needed"]
        would = f"about {needed:,} seeds each" if needed else "no number of seeds"
        return (
            f"{after} and {before} are not distinguishable on {task} {how}: {figures}. "
            f"So many seeds show differences from {line['detectable']:.3f} on; "
            f"{would} would show the one seen. {covered}"
        )
    text = f"{after} is {line['relation']} than {before} on {task} {how}: {figures}. {covered}"
    format_only, of = line["format_only"]
    if format_only:
        pairs = f"{format_only} of {of} pairs of runs"
        text += f" In {pairs} it is a difference in format following only."
    return text


# --- over questions -------------------------------------------------------------------------------


def _pair(pair: Json, comparisons: int) -> list[str]:
    before, after = pair["before"], pair["after"]
    decisive = [line for line in pair["tasks"] if line["decisive"]]
    if not decisive:
        reasons = dict.fromkeys(reason(refused) for refused in pair["refused"])
        why = "; ".join(reasons) or "No task decides"
        return [f"{after} and {before} cannot be compared on their answers. {why}."]
    if pair["identical"]:
        same = f"their answers are the same, byte for byte ({decisive[0]['questions']:,} questions)"
        return [f"{after} and {before} are not distinguishable: {same}."]
    found = [_task(line, before, after, comparisons) for line in decisive]
    if pair["format"] and pair["format"]["differs"]:
        found.append(_format(pair["format"]))
    return found


def _task(line: Json, before: str, after: str, comparisons: int) -> str:
    """One run against another on one task."""
    figures = (
        f"{line['after']:.3f} against {line['before']:.3f}, {signed(line['difference'])} "
        f"(95 % interval {interval(line['ci95'], sign=True)}), "
    )
    if line["gained"] is not None:
        figures += f"{line['gained']} gained, {line['lost']} lost, "
    figures += f"{line['test']} {p_equals(line['p_holm'])}{_holm(comparisons)}"
    on = f"on {line['task']} with {line['questions']:,} questions"
    if line["relation"] != "not distinguishable":
        return f"{after} is {line['relation']} than {before} {on}: {figures}."
    text = f"{after} and {before} are not distinguishable {on}: {figures}."
    if line["minimum_detectable_effect"] is not None:
        least = f"{line['minimum_detectable_effect']:.3f}"
        text += f" So many questions show differences from {least} on;"
    needed = line["questions_needed"]
    would = f"about {needed:,}" if needed else "no number of questions"
    return f"{text} {would} would show the one seen."


def _format(form: Json) -> str:
    if form["only"]:
        start = "They differ only in format following"
    else:
        start = "They differ in format following too, and it is not shown to be all"
    figures = [f"answers in the asked form {form['after']:.3f} against {form['before']:.3f}"]
    figures += [_probe(line) for line in form["probes"]]
    return f"{start}: {'; '.join(figures)}."


def _probe(line: Json) -> str:
    return (
        f"{line['probe']} ({line['questions']:,} questions) "
        f"{line['after']:.3f} against {line['before']:.3f}, {p_equals(line['p'])}"
    )


def _count(pairs: Sequence[Json], comparisons: int) -> str:
    """What came out of many pairs, counted."""
    baselines = {pair["before"] for pair in pairs}
    against = baselines.pop() if len(baselines) == 1 else "the run of the same seeds"
    text = f"On the questions, of {len(pairs)} runs against {against}: "
    text += _counted(pair["relation"] for pair in pairs)
    if comparisons:
        text += f" (exact McNemar test{_holm(comparisons)})"
    format_only = [pair for pair in pairs if pair["format"] and pair["format"]["only"]]
    if format_only:
        text += f"; {len(format_only)} of them by format following only"
    return f"{text}."


# --- parts of sentences ---------------------------------------------------------------------------


def _counted(relations: Iterable[str]) -> str:
    """2 better, 1 worse."""
    return ", ".join(f"{count} {relation}" for relation, count in Counter(relations).items())


def _holm(comparisons: int) -> str:
    if comparisons <= 1:
        return ""
    return f" after Holm's correction over {comparisons} comparisons"
