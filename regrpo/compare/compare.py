"""Compares runs: what differs, their metrics, and whether by more than chance.

`compare` finds and reads the runs and returns plain data (numbers, texts, lists), which
regrpo.compare.render and regrpo.compare.page write for people. Two runs are compared on the
questions that both were asked; settings that ran with several seeds, over their seeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from regrpo.compare import runs
from regrpo.compare.questions import over_questions
from regrpo.compare.relations import Arm, code_differences, differing, find_arms, ordered_tasks
from regrpo.compare.runs import HEALTH, MODEL, SEEDS, Curve, Run
from regrpo.compare.seeds import over_seeds
from regrpo.compare.sentences import sentences
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import load, pipeline_key, recorded_profile
from regrpo.evaluate.results import SAMPLES
from regrpo.records.find import Finder, Named, Rows
from regrpo.train.curves import PANELS

Json = dict[str, Any]
SCHEMA_VERSION = 1
MOST_LINES = 6
"""Lines of a chart of training curves."""


def compare(
    targets: Sequence[str],
    root: Path,
    *,
    sweep: str | None = None,
    rows: Rows | None = None,
    examples: int = 5,
    curves: bool = False,
) -> Json:
    """Compare the named runs and those of a sweep; the first is the baseline of the others.

    {schema_version, runs, differs {parameters, data, environment, code}, metrics, questions
    {comparisons, model, pairs}, seeds {varying, covers, arms, comparisons}, verdict [sentences],
    asked, left_out, notes}; with `curves` those of the training, too. Raises CannotCheck if fewer
    than two runs can be read.
    """
    finder = Finder(root, rows)
    named = finder.each(targets)
    members = [] if sweep is None else finder.sweep(sweep)
    read, left_out = _read([*named, *members])
    notes = []
    if finder.mlflow_problem:
        notes.append(f"{finder.mlflow_problem}; git and DVC only")
    if len(read) < 2:
        raise _too_few(read, targets, sweep, left_out, notes)
    there = [member for member in members if member.place is not None]
    if len(there) < len(members):
        counts = f"{len(there)} of {len(members)} runs are there"
        notes.append(f"sweep {sweep} is not whole: {counts}")
    result = _comparison(read, examples)
    result["asked"] = {"runs": list(targets), "sweep": sweep}
    result["left_out"] = left_out
    result["notes"] = notes + _notes(read)
    if curves:
        result["curves"] = _curves(read)
    return result


# --- the runs -------------------------------------------------------------------------------------


def _read(named: Sequence[Named]) -> tuple[list[Run], list[Json]]:
    """The runs that can be read, under names of their own, and the others with the reason."""
    left_out: list[Json] = []
    snapshots = [one.place.snapshot for one in named if one.place is not None]
    loaded = iter(load(snapshots, runs.READ))
    read: list[Run] = []
    for one in named:
        if one.place is None:
            left_out.append({"name": one.name, "reason": one.problem})
            continue
        try:
            run = runs.read_run(one, next(loaded))
        except CannotCheck as error:
            left_out.append({"name": one.name, "reason": error.found})
            continue
        run.name = _own_name(run.name, read)
        read.append(run)
    return read, left_out


def _own_name(name: str, read: Sequence[Run]) -> str:
    """The name as no other run has it; ids are cut to 12 digits, as far as anybody reads."""
    if re.fullmatch("[0-9a-f]{32,40}", name):
        name = name[:12]
    same = [run for run in read if run.name.partition(" (")[0] == name]
    return f"{name} ({len(same) + 1})" if same else name


def _too_few(
    read: Sequence[Run],
    targets: Sequence[str],
    sweep: str | None,
    left_out: Sequence[Json],
    notes: Sequence[str],
) -> CannotCheck:
    # Reasons that differ in the run's name alone are said once.
    names_by_reason: dict[str, list[str]] = {}
    for one in left_out:
        reason = one["reason"].replace(one["name"], "NAME")
        names_by_reason.setdefault(reason, []).append(one["name"])
    found = [f"{len(read) or 'none'} that can be read"]
    for reason, names in names_by_reason.items():
        text = reason.replace("NAME", names[0]).rstrip(".")
        found.append(f"{', '.join(names)}: {text}")
    found += [note.rstrip(".") for note in notes]
    if sweep is None:
        subject = " ".join(targets) or "no run"
        remedy = (
            "Name another: `workspace` is one, `dvc exp list` and `git log -- dvc.lock` show more."
        )
    else:
        subject = f"sweep {sweep}"
        remedy = (
            "Wait until `dvc queue status` shows two that are done, or name another run besides."
        )
    return CannotCheck(
        subject, expected="two runs to compare", found="; ".join(found), remedy=remedy
    )


def _notes(read: Sequence[Run]) -> list[str]:
    unfinished, twins, without_answers = [], [], []
    known: dict[tuple[str, str], str] = {}
    for run in read:
        if run.problem:
            unfinished.append(f"{run.name}: {run.problem}; its finished stages are compared")
        else:
            twin = known.setdefault((str(_key(run)), str(run.made)), run.name)
            if twin != run.name:
                twins.append(f"{twin} and {run.name} are one and the same run")
        if run.no_answers:
            without_answers.append(f"{run.name}: no answers to compare: {run.no_answers}")
    return [*unfinished, *twins, *without_answers]


def _key(run: Run) -> str | None:
    """The pipeline's key, if the run is finished."""
    return None if run.problem else pipeline_key({"stages": run.entries})


# --- the comparison -------------------------------------------------------------------------------


def _comparison(read: Sequence[Run], examples: int) -> Json:
    for run in read:
        runs.read_answers(run)
    arms = find_arms(read)
    on_questions = over_questions(read, arms, examples)
    on_seeds = over_seeds(arms, on_questions["pairs"])
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_plain(run, arms) for run in read],
        "differs": {
            "parameters": differing([run.params for run in read]),
            "data": differing([runs.data_facts(run) for run in read]),
            "environment": differing([runs.packages(run) for run in read]),
            "code": code_differences(read),
        },
        "metrics": _metrics(read),
        "questions": on_questions,
        "seeds": on_seeds,
        "verdict": sentences(on_questions, on_seeds),
    }


def _plain(run: Run, arms: Sequence[Arm]) -> Json:
    return {
        "name": run.name,
        "place": run.place,
        "commit": run.snapshot.revision,
        "pipeline_key": _key(run),
        "problem": run.problem,
        "profile": recorded_profile(run.entries),
        "ended": max(record["ended"] for record in run.records.values()),
        "health": run.json(HEALTH).get("verdict"),
        "seeds": {name: run.params[name] for name in SEEDS if name in run.params},
        "arm": next((arm.name for arm in arms if run in arm.runs), None),
        "model_sha256": run.made.get("models/grpo"),
        "samples_sha256": run.made.get(SAMPLES),
        "no_answers": run.no_answers,
    }


def _metrics(read: Sequence[Run]) -> list[Json]:
    """[{task, metric, role, kind, model, values}], the compared model's first.

    Of the headline every model has a line, of other tasks MODEL alone. A value is {value, ci95}, or
    None for a run that has none.
    """
    lines: dict[tuple[str, str], Json] = {}
    for index, run in enumerate(read):
        for name in ordered_tasks(run.evaluation):
            task = run.evaluation.tasks[name]
            for model, estimate in task.models.items():
                if model != MODEL and task.role != "headline":
                    continue
                about = task.model_dump(include={"metric", "role", "kind"})
                about |= {"task": name, "model": model, "values": [None] * len(read)}
                line = lines.setdefault((name, model), about)
                line["values"][index] = estimate.model_dump(exclude={"stderr"})
    return sorted(lines.values(), key=lambda line: line["model"] != MODEL)


# --- training curves ------------------------------------------------------------------------------


def _curves(read: Sequence[Run]) -> dict[str, dict[str, Curve]]:
    """{metric: {name of the line: curve}}: a line per run, at most MOST_LINES.

    Of more runs than MOST_LINES, a line per arm, the mean over its runs.
    """
    groups = {run.name: [run] for run in read}
    if len(groups) > MOST_LINES:
        groups = {f"{arm.name} ×{len(arm.runs)}": arm.runs for arm in find_arms(read)}
    shown = dict(list(groups.items())[:MOST_LINES])
    curves = {}
    for panel in PANELS:
        for metric in panel.lines:
            curves[metric] = {name: _curve(group, metric) for name, group in shown.items()}
    return curves


def _curve(group: Sequence[Run], metric: str) -> Curve:
    """The mean at each step that every run of the group has logged."""
    every = [dict(runs.curve(run, metric)) for run in group]
    steps = set(every[0]).intersection(*every[1:])
    means = []
    for step in sorted(steps):
        values = [line[step] for line in every]
        means.append((step, fmean(values)))
    return means
