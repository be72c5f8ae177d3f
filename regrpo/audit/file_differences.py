"""Where two sets of a pipeline's outputs part: the stage, file, tensor, training step, question.

Plain data.

`compare_file` says how two files of one name differ, in the words of their format.
`compare_evaluations` says whether two evaluations of the same questions differ by more than chance
and a stated tolerance.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files
from regrpo.evaluate import stats

if TYPE_CHECKING:
    import pandas as pd
    import torch

Json = dict[str, Any]
ABSENT = "(absent)"
"""Stands for a value that one side lacks."""


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
            if not _same(a, b)
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


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (
        isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    )


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


def unequal_leaves(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, a's, b's) of the values that differ in two structures of JSON, `ABSENT` for one that is missing."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from unequal_leaves(
                a.get(key, ABSENT), b.get(key, ABSENT), f"{prefix}.{key}" if prefix else str(key)
            )
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from unequal_leaves(x, y, f"{prefix}[{index}]")
    elif not _same(a, b):
        yield prefix, a, b


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
    original: Mapping[str, Any],
    found: Mapping[str, Any],
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
    from statsmodels.stats.multitest import multipletests

    problems, values = [], []
    tasks = {
        name: (original["tasks"].get(name), found["tasks"].get(name))
        for name in dict.fromkeys([*original["tasks"], *found["tasks"]])
    }
    for task, (before, after) in tasks.items():
        if before is None or after is None:
            problems.append(
                f"{task} is not in the {'original' if before is None else 'reproduction'}"
            )
            continue
        for model in dict.fromkeys([*before["models"], *after["models"]]):
            if model not in before["models"] or model not in after["models"]:
                problems.append(f"{task} of {model} is on one side only")
                continue
            values.append(_compare_value(task, model, before, after, samples, tolerance, resamples))
    binary = [value for value in values if value["p"] is not None]
    if binary:
        rejected, corrected, *_ = multipletests(
            [value["p"] for value in binary], alpha=stats.ALPHA, method="holm"
        )
        for value, is_rejected, p in zip(binary, rejected, corrected, strict=True):
            value |= {"p_holm": float(p), "found_difference": bool(is_rejected)}
    for value in values:
        name = f"{value['task']} of {value['model']}"
        if value["questions"] == 0:
            problems.append(f"{name}: no shared questions")
        if not value["within"]:
            problems.append(
                f"{name}: {value['original']:.3f} → {value['reproduction']:.3f}, beyond {tolerance:g}"
            )
        if value["found_difference"]:
            problems.append(f"{name}: the paired test finds a difference ({_evidence(value)})")
    return {
        "equivalent": bool(values) and not problems,
        "tolerance": tolerance,
        "values": values,
        "problems": problems,
    }


def _compare_value(
    task: str,
    model: str,
    before: Json,
    after: Json,
    samples: tuple[pd.DataFrame, pd.DataFrame],
    tolerance: float,
    resamples: int,
) -> Json:
    x, y = (
        frame[(frame["task"] == task) & (frame["model"] == model)]
        .set_index("id")["value"]
        .astype(float)
        for frame in samples
    )
    shared = sorted(set(x.index) & set(y.index))
    a, b = (float(side["models"][model]["value"]) for side in (before, after))
    entry: Json = {
        "task": task,
        "model": model,
        "original": a,
        "reproduction": b,
        "difference": b - a,
    }
    # The values are rounded in their file: one exactly at the tolerance is within it.
    entry |= {
        "questions": len(shared),
        "within": abs(b - a) <= tolerance + 1e-9,
        "found_difference": False,
        "p": None,
    }
    if shared:
        kind = stats.kind_of([*x, *y])
        test = stats.compare([*x[shared]], [*y[shared]], kind, resamples=resamples, seed=0)
        entry |= {
            "p": test.p_mcnemar,
            "ci95": list(test.ci95),
            "gained": test.gained,
            "lost": test.lost,
        }
        if kind == "continuous":
            entry["found_difference"] = not test.ci95[0] <= 0 <= test.ci95[1]
    return entry


def _evidence(value: Mapping[str, Any]) -> str:
    if value["p"] is None:
        return "95 % interval {:.3f} to {:.3f}".format(*value["ci95"])
    return f"{value['gained']} gained, {value['lost']} lost, McNemar p {value['p_holm']:.2g} after Holm's correction"
