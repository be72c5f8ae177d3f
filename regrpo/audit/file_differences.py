"""How two outputs differ: the first tensor, training step, row, key or line that is another.

`compare_file` compares two files in the words of their format. `compare_evaluations` says whether
two evaluations of the same questions differ by more than chance and a stated tolerance.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files
from regrpo.core.files import unequal_leaves
from regrpo.core.text import interval, one_line, p_equals
from regrpo.evaluate import stats
from regrpo.evaluate.results import Evaluation, Task
from regrpo.report.card import without_varying_block

if TYPE_CHECKING:
    import pandas as pd
    import torch

Json = dict[str, Any]


def compare_file(original: Path, found: Path) -> Json:
    """How two files differ: {what (a sentence's part), and what the format adds}; empty if equal.

    The name of `found` tells the format. A file that cannot be read as its name says is compared as
    bytes.
    """
    if files.sha256(original) == files.sha256(found):
        return {}
    formats = {
        ".safetensors": compare_tensors,
        ".csv": compare_tables,
        ".parquet": compare_tables,
        ".json": compare_json,
        ".md": compare_text,
        ".html": compare_text,
        ".jinja": compare_text,
    }
    compare = formats.get(found.suffix, compare_bytes)
    try:
        return compare(original, found)
    except Exception:  # each format's reader raises classes of its own
        return compare_bytes(original, found)


# --- tensors --------------------------------------------------------------------------------------


def compare_tensors(original: Path, found: Path) -> Json:
    """Two safetensors files, one tensor in memory at a time.

    Adds `tensors`, those that differ in the files' order: [{name, what, max_abs_difference}]; the
    largest difference is None if it is no number.
    """
    from safetensors import safe_open

    differing = []
    with safe_open(str(original), "pt") as before, safe_open(str(found), "pt") as after:
        names, names_now = before.keys(), after.keys()
        together = list(dict.fromkeys([*names, *names_now]))
        for name in together:
            difference: Json | None
            if name not in names:
                difference = {"what": "is not in the original", "max_abs_difference": None}
            elif name not in names_now:
                difference = {"what": "is not in the reproduction", "max_abs_difference": None}
            else:
                difference = _compare_tensor(before.get_tensor(name), after.get_tensor(name))
            if difference is not None:
                differing.append({"name": name, **difference})
    what = "only the file's header differs"
    if differing:
        first = f"{differing[0]['name']}: {differing[0]['what']}"
        what = f"{len(differing)} of {len(together)} tensors differ, first {first}"
    return {"tensors": differing, "what": what}


def _compare_tensor(before: torch.Tensor, after: torch.Tensor) -> Json | None:
    """How a tensor differs. Returns None if it is equal, NaN to NaN included."""
    import torch

    if before.shape != after.shape or before.dtype != after.dtype:
        what = f"{before.dtype} {list(before.shape)} → {after.dtype} {list(after.shape)}"
        return {"what": what, "max_abs_difference": None}
    x, y = before.to(torch.float64), after.to(torch.float64)
    unequal = (x != y) & ~(x.isnan() & y.isnan())
    count = int(unequal.sum())
    if count == 0:
        return None
    largest = float((x - y)[unequal].abs().max())
    what = f"{count:,} of {before.numel():,} elements, "
    if math.isfinite(largest):  # NaN, if any difference is
        return {"what": f"{what}by at most {largest:.3g}", "max_abs_difference": largest}
    return {"what": f"{what}by NaN or infinity", "max_abs_difference": None}


# --- tables ---------------------------------------------------------------------------------------


def compare_tables(original: Path, found: Path) -> Json:
    """Two CSV or Parquet tables: the first row that differs, with up to three cells that do.

    Adds `row` (0-based) and, of a table with a column `step`, `step`: the training step.
    """
    read = _read_csv if found.suffix == ".csv" else files.read_rows
    before, after = read(original), read(found)
    columns = before[0].keys() ^ after[0].keys()
    if columns:
        return {"what": f"columns on one side only: {', '.join(sorted(columns))}"}
    no_row: Json = {}
    for row, (x, y) in enumerate(zip_longest(before, after, fillvalue=no_row)):
        cells = list(unequal_leaves(x, y, into_lists=False))
        if not cells:
            continue
        changes = [f"{name} {_brief(a)} → {_brief(b)}" for name, a, b in cells[:3]]
        what = ", ".join(changes)
        values = x or y
        if "step" not in values:
            return {"row": row, "what": f"row {row + 1}: {what}"}
        step = int(float(values["step"]))
        return {"row": row, "step": step, "what": f"step {step}: {what}"}
    return {"what": "the same rows, written otherwise"}


def _read_csv(path: Path) -> list[Json]:
    # Values stay text: one bit of a float is a difference.
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _brief(value: Any) -> str:
    return one_line(value, 40) or "nothing"


# --- everything else ------------------------------------------------------------------------------


def compare_json(original: Path, found: Path) -> Json:
    """Two JSON files: `key` (dotted) of the first value that differs."""
    for key, a, b in unequal_leaves(files.read_json(original), files.read_json(found)):
        return {"key": key, "what": f"{key}: {_brief(a)} → {_brief(b)}"}
    return {"what": "the same values, written otherwise"}


def compare_text(original: Path, found: Path) -> Json:
    """Two texts: `line` (from 1) of the first that differs; empty if none does.

    The block of a model card that varies from run to run does not count.
    """
    before = without_varying_block(original.read_text(encoding="utf-8")).splitlines()
    after = without_varying_block(found.read_text(encoding="utf-8")).splitlines()
    pairs = zip_longest(before, after, fillvalue="(end)")
    for line, (x, y) in enumerate(pairs, 1):
        if x != y:
            return {"line": line, "what": f"line {line}: {_brief(x)} → {_brief(y)}"}
    return {}


def compare_bytes(original: Path, found: Path) -> Json:
    """Two files of any kind: their sizes."""
    size, size_now = original.stat().st_size, found.stat().st_size
    return {"what": f"other bytes ({size:,} → {size_now:,} of them)"}


# --- evaluations ----------------------------------------------------------------------------------


def compare_evaluations(
    original: Evaluation,
    found: Evaluation,
    answers: tuple[pd.DataFrame, pd.DataFrame] | None,
    *,
    tolerance: float,
    resamples: int = 10_000,
) -> Json:
    """Is there more than chance between two evaluations of the same questions?

    `answers` are the rows of both (task, model, id, what was asked, value).

    Per task and model a paired test over the shared questions must find nothing: the exact McNemar
    test for a binary metric, Holm's correction over all of them (Holm 1979; without it, fifteen
    comparisons at 0.05 would accuse every second reproduction), the paired bootstrap's 95 %
    interval for a continuous one. That interval, not corrected, must reach within `tolerance` of
    no difference. Without answers it is `stats.compare_unpaired`, all corrected by Holm. Returns
    {equivalent, test (paired or unpaired), tolerance, largest_difference, values: [{task, model,
    original, reproduction, difference, questions, p, ci95, within, found_difference; if paired:
    gained, lost, detectable}], problems: [text]}.
    """
    before, after = _scores(original), _scores(found)
    problems = []
    values: list[Json] = []
    for task, model in dict.fromkeys([*before, *after]):
        if (task, model) not in before or (task, model) not in after:
            problems.append(f"{task} of {model} is on one side only")
            continue
        value: Json = {
            "task": task,
            "model": model,
            "original": before[task, model],
            "reproduction": after[task, model],
            "difference": after[task, model] - before[task, model],
        }
        if answers is None:
            value |= _unpaired_test(original.tasks[task], found.tasks[task], model)
        else:
            sides = _answers(answers[0], task, model), _answers(answers[1], task, model)
            value |= _paired_test(*sides, resamples)
        values.append(value)
    _correct_for_many(values)
    for value in values:
        if value["ci95"] is not None:
            low, high = value["ci95"]
            value["within"] = low <= tolerance and high >= -tolerance
        problems += _problems(value, tolerance)
    return {
        "equivalent": bool(values) and not problems,
        "test": "unpaired" if answers is None else "paired",
        "tolerance": tolerance,
        "largest_difference": max((abs(value["difference"]) for value in values), default=0.0),
        "values": values,
        "problems": problems,
    }


def _scores(evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """{(task, model): value}."""
    scores = {}
    for name, task in evaluation.tasks.items():
        for model, estimate in task.models.items():
            scores[name, model] = estimate.value
    return scores


def _answers(samples: pd.DataFrame, task: str, model: str) -> pd.DataFrame:
    of_both = (samples["task"] == task) & (samples["model"] == model)
    return samples[of_both].set_index("id")


def _paired_test(before: pd.DataFrame, after: pd.DataFrame, resamples: int) -> Json:
    """A model's answers to a task, those of the reproduction beside the original's."""
    shared = stats.pair_answers(before, after)
    if not shared.ids:
        return {"questions": 0, "p": None, "ci95": None, "found_difference": False}
    kind = stats.kind_of([*shared.before, *shared.after])
    test = stats.compare(shared.before, shared.after, kind, resamples=resamples, seed=0)
    low, high = test.ci95
    return {
        "questions": len(shared.ids),
        "p": test.p_mcnemar,
        "ci95": [low, high],
        "gained": test.gained,
        "lost": test.lost,
        "detectable": test.minimum_detectable_effect,
        "found_difference": not low <= 0 <= high,
    }


def _unpaired_test(before: Task, after: Task, model: str) -> Json:
    """A model's estimate in the reproduction beside the original's."""
    estimates = before.models[model], after.models[model]
    p, (low, high) = stats.compare_unpaired(*estimates, (before.n, after.n), before.kind)
    return {"questions": min(before.n, after.n), "p": p, "ci95": [low, high]}


def _correct_for_many(values: list[Json]) -> None:
    """Let Holm's correction decide among the p-values; the corrected ones stand as `p_holm`."""
    tested = [value for value in values if value["p"] is not None]
    corrected = stats.holm([value["p"] for value in tested])
    for value, p in zip(tested, corrected, strict=True):
        value |= {"p_holm": p, "found_difference": p <= stats.ALPHA}


def _problems(value: Json, tolerance: float) -> Iterator[str]:
    name = f"{value['task']} of {value['model']}"
    if value["ci95"] is None:
        yield f"{name}: no shared questions"
        return
    if not value["within"]:
        change = f"{value['original']:.3f} → {value['reproduction']:.3f}"
        sure = f"95 % interval {interval(value['ci95'], sign=True)}"
        yield f"{name}: {change}, more than {tolerance:g} beyond chance ({sure})"
    if value["found_difference"]:
        kind = "paired" if "gained" in value else "unpaired"
        yield f"{name}: the {kind} test finds a difference ({_evidence(value)})"


def _evidence(value: Json) -> str:
    if value["p"] is None:
        return f"95 % interval {interval(value['ci95'], sign=True)}"
    if "gained" not in value:
        return f"{p_equals(value['p_holm'])} after Holm's correction"
    counts = f"{value['gained']} gained, {value['lost']} lost"
    return f"{counts}, McNemar {p_equals(value['p_holm'])} after Holm's correction"
