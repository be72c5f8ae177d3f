"""What a comparison of runs found, in sentences; from regrpo.compare.compare's plain data alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    said = _over_seeds(seeds)
    pairs = questions["pairs"]
    if len(pairs) <= FEW:
        for pair in pairs:
            said += _pair(pair, questions["comparisons"])
    else:
        said.append(_count(pairs, questions["comparisons"]))
    said += _too_few_seeds(seeds)
    if questions["comparisons"]:
        said.append("Intervals over the questions cover the questions only, not the seeds.")
    return said


# --- over seeds -----------------------------------------------------------------------------------


def _over_seeds(seeds: Json) -> list[str]:
    tested = [line for line in seeds["comparisons"] if line["design"]]
    if len(tested) > FEW:
        counts = ", ".join(
            f"{count} {word}"
            for word, count in Counter(line["relation"] for line in tested).items()
        )
        return [
            f"Over seeds, of {len(tested)} settings against {tested[0]['before']}: {counts} (t tests"
            f"{_holm(len(tested))}). The intervals cover {seeds['covers']}."
        ]
    said = [_difference(line, seeds) for line in tested]
    if len(seeds["arms"]) == 1 and seeds["arms"][0]["enough"]:
        for task, mean in seeds["arms"][0]["means"].items():
            said.append(
                f"One setting over {mean['n']} seeds: {task} {mean['mean']:.3f} on average (95 % t interval "
                f"{interval(mean['ci95'])}). The interval covers {seeds['covers']}."
            )
    return said


def _too_few_seeds(seeds: Json) -> list[str]:
    arms = seeds["arms"]
    most = max((arm["seeds"] for arm in arms), default=0)
    if most == 1 or (len(arms) == 1 and not arms[0]["enough"]):
        return [f"Too few seeds ({most} of {FEWEST_SEEDS}) for an interval over seeds."]
    few = [
        f"{line['after']} and {line['before']} ({line['seeds'][1]} and {line['seeds'][0]})"
        for line in seeds["comparisons"]
        if not line["design"]
    ]
    shown = "; ".join(few[:FEW]) + (f"; and {len(few) - FEW} more" if len(few) > FEW else "")
    return (
        [f"Too few seeds, of the {FEWEST_SEEDS} that each setting needs, to compare {shown}."]
        if few
        else []
    )


def _difference(line: Json, seeds: Json) -> str:
    means = {
        arm["name"]: arm["means"][line["task"]]
        for arm in seeds["arms"]
        if line["task"] in arm["means"]
    }
    x, y, n = means[line["before"]]["mean"], means[line["after"]]["mean"], line["seeds"]
    paired = line["design"] == "paired t"
    how = (
        f"over {n[0]} seeds, paired by seed"
        if paired
        else f"over {n[1]} and {n[0]} seeds, Welch's t"
    )
    figures = (
        f"{y:.3f} against {x:.3f}, {signed(line['difference'])} (95 % t interval {interval(line['ci95'], sign=True)}), "
        f"{p_equals(line['p_holm'])}{_holm(line['comparisons'])}"
    )
    covered = f" The interval covers {seeds['covers']}."
    if line["relation"] == "not distinguishable":
        need = line["seeds_needed"]
        would = f"about {need:,} seeds each" if need else "no number of seeds"
        return (
            f"{line['after']} and {line['before']} are not distinguishable on {line['task']} {how}: {figures}. So many "
            f"seeds show differences from {line['detectable']:.3f} on; {would} would show the one seen.{covered}"
        )
    alone, of = line["format_only"]
    form = (
        f" In {alone} of {of} pairs of runs it is a difference in format following only."
        if alone
        else ""
    )
    better = f"{line['after']} is {line['relation']} than {line['before']}"
    return f"{better} on {line['task']} {how}: {figures}.{covered}{form}"


# --- over questions -------------------------------------------------------------------------------


def _pair(pair: Json, comparisons: int) -> list[str]:
    a, b = pair["before"], pair["after"]
    decisive = [line for line in pair["tasks"] if line["decisive"]]
    if not decisive:
        reasons = dict.fromkeys(
            f"{one['task']}: {one['reason']}" if one["task"] else one["reason"]
            for one in pair["refused"]
        )
        return [
            f"{b} and {a} cannot be compared on their answers. {'; '.join(reasons) or 'No task decides'}."
        ]
    if pair["identical"]:
        n = decisive[0]["questions"]
        return [
            f"{b} and {a} are not distinguishable: their answers are the same, byte for byte ({n:,} questions)."
        ]
    said = [_task(line, a, b, comparisons) for line in decisive]
    return said + (
        [_format(pair["format"])] if pair["format"] and pair["format"]["differs"] else []
    )


def _task(line: Json, a: str, b: str, comparisons: int) -> str:
    counts = f"{line['gained']} gained, {line['lost']} lost, " if line["gained"] is not None else ""
    figures = (
        f"{line['after']:.3f} against {line['before']:.3f}, {signed(line['difference'])} (95 % interval "
        f"{interval(line['ci95'], sign=True)}), {counts}{line['test']} {p_equals(line['p_holm'])}{_holm(comparisons)}"
    )
    on = f"on {line['task']} with {line['questions']:,} questions"
    if line["relation"] != "not distinguishable":
        return f"{b} is {line['relation']} than {a} {on}: {figures}."
    need, least = line["questions_needed"], line["minimum_detectable_effect"]
    shows = f" So many questions show differences from {least:.3f} on;" if least is not None else ""
    would = f"about {need:,}" if need else "no number of questions"
    return f"{b} and {a} are not distinguishable {on}: {figures}.{shows} {would} would show the one seen."


def _format(form: Json) -> str:
    probes = "; ".join(
        f"{line['probe']} ({line['questions']:,} questions) {line['after']:.3f} against {line['before']:.3f}, "
        f"{p_equals(line['p'])}"
        for line in form["probes"]
    )
    start = (
        "They differ only in format following"
        if form["only"]
        else "They differ in format following too, and it is not shown to be all"
    )
    return f"{start}: answers in the asked form {form['after']:.3f} against {form['before']:.3f}; {probes}."


def _count(pairs: Sequence[Json], comparisons: int) -> str:
    counts = Counter(pair["relation"] for pair in pairs)
    only = sum(1 for pair in pairs if pair["format"] and pair["format"]["only"])
    bases = {pair["before"] for pair in pairs}
    against = next(iter(bases)) if len(bases) == 1 else "the run of the same seeds"
    tested = f" (exact McNemar test{_holm(comparisons)})" if comparisons else ""
    form = f"; {only} of them by format following only" if only else ""
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"On the questions, of {len(pairs)} runs against {against}: {said}{tested}{form}."


def _holm(comparisons: int) -> str:
    return f" after Holm's correction over {comparisons} comparisons" if comparisons > 1 else ""
