"""A comparison of runs for people, as one sequence of blocks.

regrpo.compare.render writes them for a terminal or as Markdown, regrpo.compare.page as HTML.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from regrpo.compare.relations import UNCHANGED
from regrpo.compare.runs import MODEL
from regrpo.compare.seed_tests import FEWEST_SEEDS
from regrpo.compare.sentences import reason
from regrpo.core.text import (
    estimate,
    interval,
    one_line,
    or_dash,
    p_value,
    score,
    signed,
)

Json = dict[str, Any]
Table = list[list[str]]
"""Rows of cells, first the header."""
FEW_RUNS = 3
"""Runs up to which each is a column; more are rows."""
MOST_COLUMNS = 3
"""Differing parameters up to which each is a column beside the runs; of more, the seeds."""
MOST_TASKS = 4
"""Tasks that are columns where the runs are rows."""
MOST = 10
"""Lines of one kind of difference; the rest is in the JSON."""
MOST_VALUES = 6
"""Values of one difference that are counted out where the runs are many."""


@dataclass(frozen=True)
class Block:
    """A heading with what stands under it: sentences, a table, lines to keep as they are."""

    title: str
    sentences: list[str] = field(default_factory=list)
    table: Table = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    name: str = ""


def blocks(result: Json) -> Iterator[Block]:
    """What is to be said, in order."""
    yield Block("Verdict", result["verdict"], name="verdict")
    notes = [f"{run['name']}: left out: {run['reason']}" for run in result["left_out"]]
    notes += result["notes"]
    if notes:
        yield Block("Not compared, and notes", notes, name="notes")
    yield Block("Runs", table=_runs(result), name="runs")
    yield from _differences(result)
    if result["metrics"]:
        title = "Metrics (with 95 % intervals over the questions)"
        yield Block(title, table=_metrics(result), name="metrics")
    yield from _seeds(result["seeds"])
    yield from _questions(result["questions"]["pairs"])


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Rows by column as a table; a row may lack columns. No rows are no table."""
    columns = dict.fromkeys(chain.from_iterable(rows))
    if not columns:
        return []
    table = [list(columns)]
    for row in rows:
        table.append([row.get(name, "") for name in columns])
    return table


def _runs(result: Json) -> Table:
    values = {line["name"]: line["values"] for line in result["differs"]["parameters"]}
    columns = list(values)
    if len(columns) > MOST_COLUMNS:
        columns = [name for name in result["seeds"]["varying"] if name in values]
    rows = []
    for index, run in enumerate(result["runs"]):
        kind, _, name = run["place"].partition(" ")
        row = {
            "run": run["name"],
            "is": kind if name == run["name"] else run["place"],
            "pipeline": (run["pipeline_key"] or "unfinished")[:12],
            "ended (UTC)": (run["ended"] or "")[:16].replace("T", " "),
            "doctor": run["health"] or "—",
        }
        for column in columns:
            row[column] = values[column][index] or "—"
        rows.append(row)
    return _table(rows)


# --- what differs ---------------------------------------------------------------------------------


def _differences(result: Json) -> Iterator[Block]:
    differs = result["differs"]
    names = [run["name"] for run in result["runs"]]
    same = []
    for what in ("parameters", "data", "environment"):
        if differs[what]:
            table = _sides(differs[what], names)
            yield Block(f"What differs: {what}", table=table, name=what)
        else:
            same.append(what)
    code = differs["code"]
    moved = [diffstat for diffstat in code["diffstats"] if diffstat["text"] != UNCHANGED]
    if code["files"] or code["uncommitted"] or moved:
        yield _code(code, names)
    else:  # at most the commits
        same.append("code, at different commits" if code["revisions"] else "code")
    if same:
        yield Block(f"The same everywhere: {', '.join(same)}", name="same")


def _code(code: Json, names: Sequence[str]) -> Block:
    """What differs in the code that stages read."""
    paths = [line["name"] for line in code["files"]]
    files = "All that the stages read is the same."
    if paths:
        files = f"Of what the stages read: {', '.join(paths[:MOST])}"
        if len(paths) > MOST:
            files += f" and {len(paths) - MOST} more (--json)"
        files += "."
    changed = code["revisions"] + code["uncommitted"]
    table = _sides(changed, names) if changed else []
    lines = list(chain.from_iterable(map(_diffstat, code["diffstats"])))
    return Block("What differs: code", [files], table, lines, name="code")


def _diffstat(diffstat: Json) -> Iterator[str]:
    yield f"git diff --stat {diffstat['from'][:12]} {diffstat['to'][:12]}"
    *files, total = [line.strip() for line in diffstat["text"].splitlines()]
    for line in files[:MOST]:
        yield f"  {line}"
    if len(files) > MOST:
        yield f"  … {len(files) - MOST} more files"
    yield f"  {total}"


def _sides(lines: Sequence[Json], names: Sequence[str]) -> Table:
    """A table of differing values: a column per run, or for many runs how many have which."""
    rows = []
    for line in lines:
        values = [_short_hash(or_dash(value)) for value in line["values"]]
        row = {"": line["name"]}
        if len(names) <= FEW_RUNS:
            row |= dict(zip(names, values, strict=True))
        else:
            counts = Counter(values)
            shown = [f"{value} ({count})" for value, count in counts.items()][:MOST_VALUES]
            if len(counts) > MOST_VALUES:
                shown.append(f"… {len(counts)} values")
            row["values (runs)"] = ", ".join(shown)
        rows.append(row)
    # One or two lines more take no more place than the line that says so.
    if len(rows) > MOST + 2:
        rows = [*rows[:MOST], {"": f"… and {len(rows) - MOST} more (--json)"}]
    return _table(rows)


def _short_hash(value: str) -> str:
    return value[:12] + "…" if re.fullmatch(r"[0-9a-f]{32,64}(\.dir)?", value) else value


# --- metrics and seeds ----------------------------------------------------------------------------


def _metrics(result: Json) -> Table:
    names = [run["name"] for run in result["runs"]]
    if len(names) <= FEW_RUNS:
        rows = []
        for line in result["metrics"]:
            values = map(_estimate, line["values"])
            rows.append({"": _label(line)} | dict(zip(names, values, strict=True)))
        return _table(rows)
    shown = [line for line in result["metrics"] if line["model"] == MODEL][:MOST_TASKS]
    by_run: list[dict[str, str]] = [{"run": name} for name in names]
    for column, line in enumerate(shown):
        for row, value in zip(by_run, line["values"], strict=True):
            # One interval a row: there is no place for more.
            row[line["task"]] = _estimate(value) if column == 0 else _score(value)
    return _table(by_run)


def _label(line: Json) -> str:
    label = f"{line['task']} ({line['metric']})"
    return label if line["model"] == MODEL else f"{label}, {line['model']}"


def _estimate(value: Json | None) -> str:
    if value is None:
        return "—"
    return estimate(value["value"], value["ci95"])


def _score(value: Json | None) -> str:
    if value is None:
        return "—"
    return score(value["value"])


def _seeds(seeds: Json) -> Iterator[Block]:
    arms = seeds["arms"]
    if not any(arm["seeds"] > 1 for arm in arms):
        return
    sentences = []
    if seeds["varying"]:
        sentences.append(f"Vary: {', '.join(seeds['varying'])}.")
    repeats = list(chain.from_iterable(arm["repeats"] for arm in arms))
    if repeats:
        sentences.append(f"Left out, of the same seeds as another: {', '.join(repeats)}.")
    yield Block("Over seeds", sentences, _means(arms), name="seeds")
    tested = [line for line in seeds["comparisons"] if line["design"]]
    if tested:
        title = f"Over seeds, minus {tested[0]['before']}"
        yield Block(title, table=_seed_differences(tested), name="seeds")


def _means(arms: Sequence[Json]) -> Table:
    rows = []
    for arm in arms:
        for task, mean in arm["means"].items():
            known = f"too few seeds: {mean['n']} of {FEWEST_SEEDS}"
            if mean["ci95"]:
                known = interval(mean["ci95"])
            row = {
                "setting": arm["name"],
                "seeds": str(arm["seeds"]),
                "task": task,
                "mean (95 % t interval)": f"{score(mean['mean'])} ({known})",
            }
            rows.append(row)
    return _table(rows)


def _seed_differences(tested: Sequence[Json]) -> Table:
    rows = []
    for line in tested:
        row = {
            "setting": line["after"],
            "task": line["task"],
            "difference": signed(line["difference"]),
            "95 % t interval": interval(line["ci95"], sign=True),
            "p (Holm)": p_value(line["p_holm"]),
            "is": line["relation"],
        }
        rows.append(row)
    return _table(rows)


# --- over questions -------------------------------------------------------------------------------


def _questions(pairs: Sequence[Json]) -> Iterator[Block]:
    if len(pairs) > FEW_RUNS:
        yield Block("On the shared questions", table=_many_pairs(pairs), name="pairs")
        return
    for pair in pairs:
        title = f"{pair['after']} minus {pair['before']}, on the shared questions"
        sentences = [reason(refused) for refused in pair["refused"]]
        if pair["settings"]:
            settings = ", ".join(pair["settings"])
            sentences.append(f"The questions were put with other settings: {settings}.")
        table = _tasks(pair["tasks"])
        if pair["identical"]:
            sentences.append("The answers are the same, byte for byte.")
            table = []
        yield Block(title, sentences, table, list(_examples(pair)), name="pair")


def _many_pairs(pairs: Sequence[Json]) -> Table:
    """A row for each task that decides, or one with the reason if none does."""
    rows = []
    for pair in pairs:
        decisive = [line for line in pair["tasks"] if line["decisive"]]
        for line in decisive:
            relation = line["relation"]
            if pair["identical"]:
                relation = "same answers"
            elif pair["format"] and pair["format"]["only"]:
                relation += ", format only"
            row = {
                "run": pair["after"],
                "against": pair["before"],
                "task": line["task"],
                "is": relation,
                "value": score(line["after"]),
                "difference": signed(line["difference"]),
                "95 % interval": interval(line["ci95"], sign=True),
                "p (Holm)": p_value(line["p_holm"]),
            }
            rows.append(row)
        if not decisive:
            reasons = dict.fromkeys(refused["reason"] for refused in pair["refused"])
            found = "; ".join(reasons) or "no task decides"
            row = {"run": pair["after"], "against": pair["before"], "task": "—", "is": found}
            rows.append(row)
    return _table(rows)


def _tasks(lines: Sequence[Json]) -> Table:
    rows = []
    for line in lines:
        row = {
            "": line["task"],
            "questions": _shared_questions(line),
            "difference": signed(line["difference"]),
            "95 % interval": interval(line["ci95"], sign=True),
            "gained": or_dash(line["gained"]),
            "lost": or_dash(line["lost"]),
            "p": p_value(line["p"]),
            "shows from": or_dash(line["minimum_detectable_effect"], ".3f"),
        }
        rows.append(row)
    return _table(rows)


def _shared_questions(line: Json) -> str:
    shared = line["questions"]
    before, after = line["of"]
    if before == after == shared:
        return str(shared)
    return f"{shared} of {before}, {after}"


def _examples(pair: Json) -> Iterator[str]:
    """Discordant questions, each cut to a line for the question and one for what each run said."""
    examples = pair.get("examples") or {"gained": [], "lost": []}
    for way, right_run in (("gained", pair["after"]), ("lost", pair["before"])):
        for example in examples[way]:
            line = f"only {right_run} right: {_brief(example['question'], 50)}"
            if example["answer"]:
                line += f"   (right: {one_line(example['answer'], 30)})"
            yield line
            for side in ("before", "after"):
                yield f"    {pair[side]}: {_brief(example[side], 74)}"


def _brief(text: str | None, most: int) -> str:
    if text is None:
        return "(choices were scored, nothing was written)"
    return one_line(text, most)
