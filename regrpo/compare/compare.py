"""Runs compared honestly.

What differs between them, their metrics, and whether they differ by more than chance.

`compare` finds and reads the runs and returns plain data (numbers, texts, lists), which
regrpo.compare.blocks renders. Two runs are compared on the questions that both were asked; settings
that ran with several seeds, over their seeds.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.compare import runs, seed_tests, sentences
from regrpo.compare.runs import SEEDS, Questions, Run
from regrpo.compare.seed_tests import FEWEST_SEEDS, Tested
from regrpo.core.errors import CannotCheck
from regrpo.core.git import git
from regrpo.core.pipeline import CODE, load
from regrpo.evaluate import stats
from regrpo.evaluate.results import SAMPLES, Evaluation, Kind
from regrpo.records.find import Finder, Named, Rows

if TYPE_CHECKING:
    from regrpo.compare.seed_tests import Values

Json = dict[str, Any]
SCHEMA_VERSION = 1
CUT = {"question": 400, "answer": 100, "before": 400, "after": 400}
"""Characters of an example's texts."""
CURVES = ("reward", "dev_accuracy", "completions/mean_length", "entropy")
"""Columns of GRPO's history."""
MOST_LINES = 6
MOST_PAIRS_WITH_EXAMPLES = 12
MOST_DIFFSTATS = 3
UNCHANGED = "no change of code"
BESIDE = ("sampled", "control", "format")
"""The roles of tasks that never decide."""
OPENED = "answer_prefilled"
"""In the name of the control whose answer tag is opened for the model."""


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


def of_runs(read: Sequence[Run], *, resamples: int = 10_000, examples: int = 5) -> Json:
    """The comparison of runs that were read; see `compare`."""
    questions = Questions()
    for run in read:
        questions.read(run)
    arms = find_arms(read)
    over_questions = _over_questions(read, arms, questions, resamples, examples)
    over_seeds = _over_seeds(arms, over_questions["pairs"])
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_plain(run, arms) for run in read],
        "differs": {
            "parameters": _differing([run.params for run in read]),
            "data": _differing([run.data for run in read]),
            "environment": _differing([run.packages for run in read]),
            "code": _code(read),
        },
        "metrics": _metrics(read),
        "questions": over_questions,
        "seeds": over_seeds,
        "verdict": sentences.sentences(over_questions, over_seeds),
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


# --- what differs ---------------------------------------------------------------------------------


def _differing(facts: Sequence[Mapping[str, str]]) -> list[Json]:
    """[{name, values (one per run, None where it has none)}] of what is not the same everywhere."""
    names = dict.fromkeys(name for one in facts for name in one)
    lines = [{"name": name, "values": [one.get(name) for one in facts]} for name in names]
    return [line for line in lines if len(set(line["values"])) > 1]


def _code(read: Sequence[Run]) -> Json:
    """Revisions, uncommitted changes, the differing files that stages read (MD5), diffstats from the first run."""
    stats_of = []
    first = read[0].revisions[0]
    for other in [one for one in dict.fromkeys(run.revisions[0] for run in read) if one != first][
        :MOST_DIFFSTATS
    ]:
        shown = git(
            "-C", str(read[0].snapshot.root), "diff", "--stat=90", first, other, "--", *CODE
        )
        text = UNCHANGED if shown == "" else shown
        stats_of.append(
            {"from": first, "to": other, "text": text or "one of the two is not in this repository"}
        )
    return {
        "revisions": _differing(
            [{"revision": ", ".join(one[:12] for one in run.revisions)} for run in read]
        ),
        "uncommitted": _differing([{"diff": ", ".join(run.diffs) or "none"} for run in read]),
        "files": _differing([run.code for run in read]),
        "diffstats": stats_of,
    }


def _metrics(read: Sequence[Run]) -> list[Json]:
    """[{task, metric, role, kind, model, values [{value, ci95} or None]}]: MODEL, of the headline every model."""
    lines: dict[tuple[str, str], Json] = {}
    for index, run in enumerate(read):
        for name in _ordered(run.evaluation):
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


def _ordered(evaluation: Evaluation | None) -> list[str]:
    """The tasks, those that decide first, then formats, controls and sampled answers."""
    tasks = evaluation.tasks if evaluation else {}
    order = {role: index for index, role in enumerate(("format", "control", "sampled"), 1)}
    decisive = decisive_tasks(evaluation)
    return sorted(
        tasks, key=lambda name: (name not in decisive, order.get(tasks[name].role, 0), name)
    )


def decisive_tasks(evaluation: Evaluation | None) -> list[str]:
    """The headline; without one, every task that is not BESIDE another."""
    if evaluation is None:
        return []
    if evaluation.headline:
        return [evaluation.headline]
    return [name for name, task in evaluation.tasks.items() if task.role not in BESIDE]


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


# --- over questions -------------------------------------------------------------------------------


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


def _over_questions(
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
        "settings": [line["name"] for line in _differing([_asking(before), _asking(after)])],
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
    for name in dict.fromkeys([*_ordered(x), *_ordered(y)]):
        if name not in before.answers or name not in after.answers:
            where = before.name if name in before.answers else after.name
            refused.append({"task": name, "reason": f"only {where} was asked"})
            continue
        reason = _other_task(x, y, name)
        found = reason or _shared_questions(name, before, after, questions)
        if isinstance(found, str):
            refused.append({"task": name, "reason": found})
        else:
            sides[name] = found
    return sides, refused


def _other_task(x: Evaluation, y: Evaluation, name: str) -> str | None:
    a, b = x.tasks.get(name), y.tasks.get(name)
    if a is None or b is None:
        return "one report does not know it"
    if (a.metric, a.version) != (b.metric, b.version):
        return f"another task under the same name: {a.metric} of version {a.version}, {b.metric} of version {b.version}"
    if x.verifier != y.verifier and a.role not in ("stock", "custom"):
        return f"the answers were judged by different verifiers: {x.verifier} and {y.verifier}"
    return None


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


def relation(difference: float, p: float, kind: Kind) -> str:
    """Better or worse (of a metric that is not right or wrong.

    Higher or lower), or not distinguishable.
    """
    if p >= stats.ALPHA or difference == 0:
        return "not distinguishable"
    words = ("better", "worse") if kind == "binary" else ("higher", "lower")
    return words[difference < 0]


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


# --- over seeds -----------------------------------------------------------------------------------


@dataclass
class Arm:
    """Runs that differ only in their seeds, one of each set of seeds.

    `repeats` are further runs of the same seeds.
    """

    name: str
    runs: list[Run]
    repeats: list[Run]


def arm_seeds(run: Run) -> tuple[str | None, ...]:
    return tuple(run.params.get(name) for name in SEEDS)


def find_arms(read: Iterable[Run]) -> list[Arm]:
    """The evaluated runs by setting, each arm named by what sets it apart from the others."""
    arms: dict[str, Arm] = {}
    for run in read:
        if run.evaluation is None or run.setting is None:
            continue
        arm = arms.setdefault(run.setting, Arm("", [], []))
        known = {arm_seeds(one) for one in arm.runs}
        (arm.repeats if arm_seeds(run) in known else arm.runs).append(run)
    firsts = [
        {name: value for name, value in arm.runs[0].params.items() if name not in SEEDS}
        for arm in arms.values()
    ]
    apart = _differing(firsts)
    for index, arm in enumerate(arms.values()):
        told = [
            f"{line['name']}={line['values'][index]}"
            for line in apart
            if not line["name"].startswith("model_card.")
        ]
        shown = ", ".join(told[:2]) + (f", and {len(told) - 2} more" if len(told) > 2 else "")
        arm.name = (
            arm.runs[0].name
            if len(arm.runs) == 1 and len(arms) > 1
            else shown or f"{arm.runs[0].name} and its seeds"
        )
    names = [arm.name for arm in arms.values()]
    for index, arm in enumerate(arms.values()):  # settings that differ in code or raw data alone
        arm.name += f" (code of {arm.runs[0].name})" if names.count(names[index]) > 1 else ""
    return list(arms.values())


def _over_seeds(arms: Sequence[Arm], pairs: Sequence[Json]) -> Json:
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
    return x is None or y is None or _other_task(x, y, task) is not None


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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
