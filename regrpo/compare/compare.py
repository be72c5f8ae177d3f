"""Runs compared honestly.

What differs between them, their metrics, and whether they differ by more than chance.

`compare` finds and reads the runs and returns plain data (numbers, texts, lists), which
regrpo.compare.blocks renders. Two runs are compared on the questions that both were asked; settings
that ran with several seeds, over their seeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regrpo.compare import runs, sentences
from regrpo.compare.questions import over_questions
from regrpo.compare.relations import Arm, code_differences, differing, find_arms, ordered_tasks
from regrpo.compare.runs import SEEDS, Questions, Run
from regrpo.compare.seeds import over_seeds
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import load
from regrpo.evaluate.results import SAMPLES
from regrpo.records.find import Finder, Named, Rows

Json = dict[str, Any]
SCHEMA_VERSION = 1
CURVES = ("reward", "dev_accuracy", "completions/mean_length", "entropy")
"""Columns of GRPO's history."""
MOST_LINES = 6


def compare(
    targets: Sequence[str],
    root: Path,
    *,
    sweep: str | None = None,
    rows: Rows | None = None,
    examples: int = 5,
    curves: bool = False,
) -> Json:
    """Compare the named runs and those of a sweep.

    The first is the baseline that the others are compared with.

    {schema_version, runs, left_out, notes, differs {parameters, data, environment, code}, metrics,
    decisive, questions {comparisons, pairs}, seeds {covers, arms, comparisons}, verdict
    [sentences]}; with `curves` those of the training, too. Raises CannotCheck where fewer than two
    runs can be read.
    """
    finder = Finder(root, rows)
    named = finder.each(targets)
    missing_from_sweep: list[str] = []
    if sweep is not None:
        members = finder.sweep(sweep)
        named += members
        missing_from_sweep = [one.name for one in members if one.place is None]
    read, left_out = _read(named)
    notes = []
    if finder.mlflow_problem:
        notes.append(f"{finder.mlflow_problem}; git and DVC only")
    if len(read) < 2:
        raise _too_few(read, targets, sweep, left_out, notes)
    if missing_from_sweep:
        notes.append(
            f"sweep {sweep} is not whole: {len(members) - len(missing_from_sweep)} of {len(members)} runs are there"
        )
    result = of_runs(read, examples=examples)
    result |= {
        "asked": {"runs": list(targets), "sweep": sweep},
        "left_out": left_out,
        "notes": notes + _notes(read),
    }
    return result | ({"curves": find_curves(read, find_arms(read))} if curves else {})


def _too_few(
    read: Sequence[Run],
    targets: Sequence[str],
    sweep: str | None,
    left_out: Sequence[Json],
    notes: Sequence[str],
) -> CannotCheck:
    reasons: dict[str, list[str]] = {}
    for one in left_out:
        reasons.setdefault(one["reason"].replace(one["name"], "NAME"), []).append(one["name"])
    why = [
        f"{', '.join(names)}: {reason.replace('NAME', names[0])}"
        for reason, names in reasons.items()
    ]
    remedy = "Name another: `workspace` is one, `dvc exp list` and `git log -- dvc.lock` show more."
    if sweep is not None:
        remedy = (
            "Wait until `dvc queue status` shows two that are done, or name another run besides."
        )
    return CannotCheck(
        f"sweep {sweep}" if sweep is not None else " ".join(targets) or "no run",
        expected="two runs to compare",
        found="; ".join(
            [
                f"{len(read) or 'none'} that can be read",
                *(one.rstrip(".") for one in [*why, *notes]),
            ]
        ),
        remedy=remedy,
    )


def _read(named: Sequence[Named]) -> tuple[list[Run], list[Json]]:
    """The runs that can be read, under names of their own, and the others with the reason."""
    left_out = [{"name": one.name, "reason": one.problem} for one in named if one.place is None]
    there = [one for one in named if one.place is not None]
    snapshots = load([one.place.snapshot for one in there if one.place], runs.READ)
    read: list[Run] = []
    for one, snapshot in zip(there, snapshots, strict=True):
        try:
            run = runs.read_run(one, snapshot)
        except CannotCheck as error:
            left_out.append({"name": one.name, "reason": error.found})
            continue
        run.name = _short(run.name)
        same = sum(other.name.partition(" (")[0] == run.name for other in read)
        run.name += f" ({same + 1})" if same else ""
        read.append(run)
    return read, left_out


def _short(name: str) -> str:
    """Ids are cut to 12 digits, as far as anybody reads."""
    return name[:12] if re.fullmatch("[0-9a-f]{32,40}", name) else name


def _notes(read: Sequence[Run]) -> list[str]:
    found = [
        f"{run.name}: {run.problem}; its finished stages are compared"
        for run in read
        if run.problem
    ]
    for index, run in enumerate(read):
        twin = next(
            (
                one
                for one in read[:index]
                if one.key and one.key == run.key and one.made == run.made
            ),
            None,
        )
        found += [f"{twin.name} and {run.name} are one and the same run"] if twin else []
    return found + [
        f"{run.name}: no answers to compare: {run.no_answers}" for run in read if run.no_answers
    ]


def of_runs(read: Sequence[Run], *, examples: int = 5) -> Json:
    """The comparison of runs that were read; see `compare`."""
    questions = Questions()
    for run in read:
        questions.read(run)
    arms = find_arms(read)
    on_questions = over_questions(read, arms, questions, examples)
    on_seeds = over_seeds(arms, on_questions["pairs"])
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_plain(run, arms) for run in read],
        "differs": {
            "parameters": differing([run.params for run in read]),
            "data": differing([run.data for run in read]),
            "environment": differing([run.packages for run in read]),
            "code": code_differences(read),
        },
        "metrics": _metrics(read),
        "questions": on_questions,
        "seeds": on_seeds,
        "verdict": sentences.sentences(on_questions, on_seeds),
    }


def _plain(run: Run, arms: Sequence[Arm]) -> Json:
    return {
        "name": run.name,
        "place": run.place,
        "commit": run.commit,
        "pipeline_key": run.key,
        "problem": run.problem,
        "profile": run.profile,
        "ended": run.ended,
        "health": run.health,
        "seeds": {name: run.params[name] for name in SEEDS if name in run.params},
        "arm": next((arm.name for arm in arms if run in arm.runs), None),
        "model_sha256": run.made.get("models/grpo"),
        "samples_sha256": run.made.get(SAMPLES),
        "no_answers": run.no_answers,
    }


def _metrics(read: Sequence[Run]) -> list[Json]:
    """[{task, metric, role, kind, model, values [{value, ci95} or None]}]: MODEL, of the headline every model."""
    lines: dict[tuple[str, str], Json] = {}
    for index, run in enumerate(read):
        for name in ordered_tasks(run.evaluation):
            assert run.evaluation is not None
            task = run.evaluation.tasks[name]
            for model in task.models if task.role == "headline" else (runs.MODEL,):
                if model not in task.models:
                    continue
                line = lines.setdefault(
                    (name, model),
                    {
                        "task": name,
                        "metric": task.metric,
                        "role": task.role,
                        "kind": task.kind,
                        "model": model,
                        "values": [None] * len(read),
                    },
                )
                line["values"][index] = task.models[model].model_dump(exclude={"stderr"})
    return sorted(lines.values(), key=lambda line: line["model"] != runs.MODEL)


def find_curves(read: Sequence[Run], arms: Sequence[Arm]) -> Json:
    """{metric: {line.

    [(step, value)]}}: a line per run, or where there are more than MOST_LINES one per arm, its
    mean.

    Of still more, the first MOST_LINES.
    """
    groups = {run.name: [run] for run in read}
    if len(groups) > MOST_LINES:
        groups = {f"{arm.name} ×{len(arm.runs)}": arm.runs for arm in arms}
    chosen = list(groups.items())[:MOST_LINES]
    return {
        metric: {name: _mean_curve([runs.curve(run, metric) for run in of]) for name, of in chosen}
        for metric in CURVES
    }


def _mean_curve(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean at each step that every line has."""
    every = [dict(line) for line in lines]
    steps = sorted(set.intersection(*(set(one) for one in every)))
    return [(step, sum(one[step] for one in every) / len(every)) for step in steps]
