"""Where two sets of a pipeline's outputs part: the stage, file, tensor, training step, question.

Plain data.

`compare_file` says how two files of one name differ, in the words of their format.
`compare_evaluations` says whether two evaluations of the same questions differ by more than chance
and a stated tolerance.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files
from regrpo.core.files import equal, unequal_leaves
from regrpo.core.text import interval, p_equals
from regrpo.evaluate import stats
from regrpo.evaluate.results import Evaluation

if TYPE_CHECKING:
    import pandas as pd
    import torch

Json = dict[str, Any]


def compare_file(original: Path, found: Path) -> Json:
    """How two files of one name differ.

    {kind, what (a sentence's part), and what the kind adds}; empty if equal.

    A file that cannot be read as its name says is compared as bytes.
    """
    if files.sha256(original) == files.sha256(found):
        return {}
    compare = {
        ".safetensors": compare_tensors,
        ".csv": compare_tables,
        ".parquet": compare_tables,
        ".json": compare_json,
        ".md": compare_text,
        ".html": compare_text,
        ".jinja": compare_text,
    }.get(found.suffix, compare_bytes)
    try:
        return compare(original, found)
    except Exception:  # each format's reader raises classes of its own
        return compare_bytes(original, found)


# --- tensors --------------------------------------------------------------------------------------


def compare_tensors(original: Path, found: Path) -> Json:
    """Two safetensors files, one tensor in memory at a time.

    Adds `tensors` (how many there are) and `differing` [{name, shape, elements, differing,
    max_abs_difference (None where a shape or type differs, a tensor is missing or only NaN's place
    differs)}], in the files' order.
    """
    from safetensors import safe_open

    with safe_open(str(original), "pt") as before, safe_open(str(found), "pt") as after:
        names = list(dict.fromkeys([*before.keys(), *after.keys()]))
        have = [set(before.keys()), set(after.keys())]
        differing = []
        for name in names:
            missing = [
                where
                for where, held in zip(("original", "reproduction"), have, strict=True)
                if name not in held
            ]
            entry = (
                {"name": name, "what": f"is not in the {missing[0]}", "max_abs_difference": None}
                if missing
                else _compare_tensor(name, before.get_tensor(name), after.get_tensor(name))
            )
            differing += [entry] if entry else []
    if not differing:
        return {
            "kind": "tensors",
            "tensors": len(names),
            "differing": [],
            "what": "only the file's header differs",
        }
    first = differing[0]
    what = (
        f"{len(differing)} of {len(names)} tensors differ, first {first['name']}: {first['what']}"
    )
    return {"kind": "tensors", "tensors": len(names), "differing": differing, "what": what}


def _compare_tensor(name: str, before: torch.Tensor, after: torch.Tensor) -> Json | None:
    import torch

    if before.shape != after.shape or before.dtype != after.dtype:
        shapes = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (before, after)]
        return {"name": name, "what": f"{shapes[0]} → {shapes[1]}", "max_abs_difference": None}
    x, y = before.to(torch.float64), after.to(torch.float64)
    unequal = (x != y) & ~(x.isnan() & y.isnan())
    count, total = int(unequal.sum()), before.numel()
    if not count:
        return None
    gap = (x - y)[unequal].abs()
    largest = float(gap.max()) if bool(gap.isfinite().all()) else None
    by = "by NaN or infinity" if largest is None else f"by at most {largest:.3g}"
    entry = {"name": name, "shape": list(before.shape), "elements": total, "differing": count}
    return entry | {"max_abs_difference": largest, "what": f"{count:,} of {total:,} elements, {by}"}


# --- tables ---------------------------------------------------------------------------------------


def compare_tables(original: Path, found: Path) -> Json:
    """Two CSV or Parquet tables, row by row.

    The first row that differs and the columns in which it does.

    Adds `row` (0-based), `columns` [{name, original, reproduction}] and, of a table with a column
    `step`, `step` and `equal_steps` (how many logged steps come before it).
    """
    read = _read_csv if found.suffix == ".csv" else _read_parquet
    (columns, before), (columns_after, after) = read(original), read(found)
    if columns != columns_after:
        added, removed = (
            sorted(set(columns_after) - set(columns)),
            sorted(set(columns) - set(columns_after)),
        )
        changes = [
            f"{word} {', '.join(names)}"
            for word, names in (("without", removed), ("also", added))
            if names
        ]
        what = f"other columns: {'; '.join(changes) or 'in another order'}"
        return {"kind": "table", "row": None, "columns": [], "what": what}
    for row, (x, y) in enumerate(zip(before, after, strict=False)):
        cells = [
            {"name": name, "original": a, "reproduction": b}
            for name, a, b in zip(columns, x, y, strict=True)
            if not equal(a, b)
        ]
        if cells:
            place = _place(columns, x, row)
            shown = ", ".join(
                f"{c['name']} {_brief(c['original'])} → {_brief(c['reproduction'])}"
                for c in cells[:3]
            )
            more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
            return {
                "kind": "table",
                "row": row,
                "columns": cells,
                **place,
                "what": f"{_named(place, row)}: {shown}{more}",
            }
    if len(before) != len(after):
        row = min(len(before), len(after))
        place = _place(columns, max(before, after, key=len)[row], row)
        what = f"{_named(place, row)}: {len(before)} rows → {len(after)}"
        return {"kind": "table", "row": row, "columns": [], **place, "what": what}
    return {"kind": "table", "row": None, "columns": [], "what": "the same rows, written otherwise"}


def _read_csv(path: Path) -> tuple[list[str], list[list[Any]]]:
    with path.open(newline="", encoding="utf-8") as f:
        header, *rows = list(csv.reader(f))
    return header, rows  # as text: one bit of a float is a difference


def _read_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    import pyarrow.parquet as pq

    with path.open("rb") as f:
        table = pq.read_table(f)
    return list(table.column_names), [list(row.values()) for row in table.to_pylist()]


def _place(columns: Sequence[str], row: Sequence[Any], index: int) -> Json:
    if "step" not in columns:
        return {}
    return {"step": int(float(row[columns.index("step")])), "equal_steps": index}


def _named(place: Mapping[str, Any], row: int) -> str:
    return f"step {place['step']}" if place else f"row {row + 1}"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text.replace("\n", "⏎") or "nothing"
    return text if len(text) <= 40 else text[:39] + "…"


# --- everything else ------------------------------------------------------------------------------


def compare_json(original: Path, found: Path) -> Json:
    """Two JSON files: `key` (dotted) of the first value that differs, and both values."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (original, found))
    for key, a, b in unequal_leaves(before, after):
        what = f"{key}: {_brief(a)} → {_brief(b)}"
        return {"kind": "json", "key": key, "original": a, "reproduction": b, "what": what}
    return {"kind": "json", "key": None, "what": "the same values, written otherwise"}


def compare_text(original: Path, found: Path) -> Json:
    """Two texts: `line` (from 1) of the first that differs."""
    return compare_lines(original.read_text(encoding="utf-8"), found.read_text(encoding="utf-8"))


def compare_lines(original: str, found: str) -> Json:
    """As `compare_text`, of texts already read; empty if equal."""
    if original == found:
        return {}
    before, after = original.splitlines(), found.splitlines()
    pairs = enumerate(zip(before, after, strict=False), 1)
    line = next((number for number, (x, y) in pairs if x != y), min(len(before), len(after)) + 1)
    a, b = (lines[line - 1] if line <= len(lines) else "(end)" for lines in (before, after))
    return {"kind": "text", "line": line, "what": f"line {line}: {_brief(a)} → {_brief(b)}"}


def compare_bytes(original: Path, found: Path) -> Json:
    """Two files of any kind: `offset` of the first byte that differs, and both sizes."""
    a, b = original.stat().st_size, found.stat().st_size
    offset, block = 0, 2**20
    with original.open("rb") as before, found.open("rb") as after:
        while (x := before.read(block)) == (y := after.read(block)) and x:
            offset += len(x)
    offset += next(
        (at for at, pair in enumerate(zip(x, y, strict=False)) if pair[0] != pair[1]),
        min(len(x), len(y)),
    )
    what = f"byte {offset:,} on" + (f", {a:,} → {b:,} bytes" if a != b else "")
    return {"kind": "bytes", "offset": offset, "what": what}


# --- evaluations ----------------------------------------------------------------------------------


def compare_evaluations(
    original: Evaluation,
    found: Evaluation,
    samples: tuple[pd.DataFrame, pd.DataFrame],
    *,
    tolerance: float,
    resamples: int = 10_000,
) -> Json:
    """Two evaluations (metrics.json and samples each) of the same questions.

    Is there more between them than chance?

    Per task and model the values must lie within `tolerance` of each other, and a paired test over
    the shared questions must find nothing: the exact McNemar test for a binary metric, Holm's
    correction over all of them (Holm 1979; without it, fifteen comparisons at 0.05 would accuse
    every second reproduction), the paired bootstrap's 95 % interval for a continuous one. Returns
    {equivalent, tolerance, values: [{task, model, original, reproduction, difference, questions,
    gained, lost, p, ci95, within, found_difference}], problems: [text]}.
    """
    problems: list[str] = []
    values: list[Json] = []
    for task in dict.fromkeys([*original.tasks, *found.tasks]):
        before, after = original.tasks.get(task), found.tasks.get(task)
        if before is None or after is None:
            missing = "original" if before is None else "reproduction"
            problems.append(f"{task} is not in the {missing}")
            continue
        for model in dict.fromkeys([*before.models, *after.models]):
            if model not in before.models or model not in after.models:
                problems.append(f"{task} of {model} is on one side only")
                continue
            a, b = before.models[model].value, after.models[model].value
            # The values are rounded in their file: one exactly at the tolerance is within it.
            entry = {
                "task": task,
                "model": model,
                "original": a,
                "reproduction": b,
                "difference": b - a,
                "within": abs(b - a) <= tolerance + 1e-9,
            }
            values.append(entry | _paired_test(task, model, samples, resamples))
    _correct_for_many(values)
    for value in values:
        problems += _problems(value, tolerance)
    return {
        "equivalent": bool(values) and not problems,
        "tolerance": tolerance,
        "values": values,
        "problems": problems,
    }


def _paired_test(
    task: str, model: str, samples: tuple[pd.DataFrame, pd.DataFrame], resamples: int
) -> Json:
    """What a model's answers to a task say, those of the reproduction beside the original's."""
    sides = []
    for frame in samples:
        answers = frame[(frame["task"] == task) & (frame["model"] == model)]
        sides.append(answers.set_index("id"))
    shared = stats.pair_answers(*sides)
    entry: Json = {"questions": len(shared.ids), "found_difference": False, "p": None}
    if shared.ids:
        kind = stats.kind_of([*shared.before, *shared.after])
        test = stats.compare(shared.before, shared.after, kind, resamples=resamples, seed=0)
        entry |= {
            "p": test.p_mcnemar,
            "ci95": list(test.ci95),
            "gained": test.gained,
            "lost": test.lost,
        }
        if kind == "continuous":
            entry["found_difference"] = not test.ci95[0] <= 0 <= test.ci95[1]
    return entry


def _correct_for_many(values: list[Json]) -> None:
    """Add Holm's corrected p to the values that have one, and whether it finds a difference."""
    from statsmodels.stats.multitest import multipletests

    tested = [value for value in values if value["p"] is not None]
    if not tested:
        return
    p_values = [value["p"] for value in tested]
    rejected, corrected, *_ = multipletests(p_values, alpha=stats.ALPHA, method="holm")
    for value, is_rejected, p in zip(tested, rejected, corrected, strict=True):
        value |= {"p_holm": float(p), "found_difference": bool(is_rejected)}


def _problems(value: Json, tolerance: float) -> Iterator[str]:
    name = f"{value['task']} of {value['model']}"
    if value["questions"] == 0:
        yield f"{name}: no shared questions"
    if not value["within"]:
        gap = f"{value['original']:.3f} → {value['reproduction']:.3f}"
        yield f"{name}: {gap}, beyond {tolerance:g}"
    if value["found_difference"]:
        yield f"{name}: the paired test finds a difference ({_evidence(value)})"


def _evidence(value: Json) -> str:
    if value["p"] is None:
        return f"95 % interval {interval(value['ci95'], sign=True)}"
    counts = f"{value['gained']} gained, {value['lost']} lost"
    return f"{counts}, McNemar {p_equals(value['p_holm'])} after Holm's correction"
