"""A comparison of runs for people.

One sequence of blocks, written as plain text (100 columns) or as Markdown.

Nothing that a file or a model wrote reaches a terminal or a page as it stands: what does not print
is spelled out.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from regrpo.compare.relations import UNCHANGED
from regrpo.compare.seed_tests import FEWEST_SEEDS
from regrpo.core.text import (
    cut,
    estimate,
    fence,
    interval,
    one_line,
    or_dash,
    p_value,
    prose,
    signed,
)

Json = dict[str, Any]
WIDTH = 100
FEW_RUNS = 3
"""Runs up to which each is a column; more are rows."""
MOST_COLUMNS = 3
"""Differing parameters up to which each is a column beside the runs; of more, the seeds."""
MOST = 10
"""Lines of one kind of difference; the rest is in the JSON."""


@dataclass(frozen=True)
class Block:
    """A heading with what stands under it.

    Sentences, a table (first its header), lines to keep as they are.
    """

    title: str
    sentences: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    name: str = ""


def text(result: Json) -> str:
    """The comparison as plain text, at most WIDTH columns where words allow it."""
    return "\n\n".join("\n".join(_as_text(block)) for block in blocks(result)) + "\n"


def markdown(result: Json) -> str:
    """The comparison as GitHub's Markdown."""
    return "\n\n".join("\n\n".join(_as_markdown(block)) for block in blocks(result)) + "\n"


def _as_text(block: Block) -> Iterator[str]:
    yield block.title
    for sentence in block.sentences:
        yield textwrap.fill(
            one_line(sentence), WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    if block.table:
        yield from (
            f"  {line}"
            for line in _aligned([[one_line(cell) for cell in row] for row in block.table])
        )
    yield from (f"  {one_line(line, WIDTH - 2)}" for line in block.lines)


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH - 2 and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    for row in table:
        yield "  ".join(
            (cell if len(cell) <= width else cut(cell, width)).ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()


def _as_markdown(block: Block) -> Iterator[str]:
    yield f"### {prose(block.title)}"
    if block.sentences:
        yield "\n".join(f"- {prose(sentence)}" for sentence in block.sentences)
    if block.table:
        head, *rows = [["" if cell is None else prose(cell) for cell in row] for row in block.table]
        yield "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
    if block.lines:
        yield fence("\n".join(f"  {one_line(line)}" for line in block.lines), "text")


# --- the blocks -----------------------------------------------------------------------------------


def blocks(result: Json) -> Iterator[Block]:
    """What is to be said, in order."""
    yield Block("Verdict", result["verdict"], name="verdict")
    told = [f"{one['name']}: left out: {one['reason']}" for one in result["left_out"]] + result[
        "notes"
    ]
    if told:
        yield Block("Not compared, and notes", told, name="notes")
    yield Block("Runs", table=_runs(result), name="runs")
    yield from _differences(result)
    if result["metrics"]:
        yield Block(
            "Metrics (with 95 % intervals over the questions)",
            table=_metrics(result),
            name="metrics",
        )
    yield from _seeds(result)
    yield from _questions(result)


def _runs(result: Json) -> list[list[str]]:
    apart = [line["name"] for line in result["differs"]["parameters"]]
    varying = [name for name in result["seeds"]["varying"] if name in apart]
    told = apart if len(apart) <= MOST_COLUMNS else varying
    values = {line["name"]: line["values"] for line in result["differs"]["parameters"]}
    rows = [["run", "is", "pipeline", "ended (UTC)", "doctor", *told]]
    for index, run in enumerate(result["runs"]):
        kind, _, name = run["place"].partition(" ")
        rows.append(
            [
                run["name"],
                kind if name == run["name"] else run["place"],
                (run["pipeline_key"] or "unfinished")[:12],
                (run["ended"] or "")[:16].replace("T", " "),
                run["health"] or "—",
                *(str(values[one][index] or "—") for one in told),
            ]
        )
    return rows


def _differences(result: Json) -> Iterator[Block]:
    differs, names = result["differs"], [run["name"] for run in result["runs"]]
    for what in ("parameters", "data"):
        if differs[what]:
            yield Block(f"What differs: {what}", table=_sides(differs[what], names), name=what)
    code = differs["code"]
    changed = code["revisions"] + code["uncommitted"]
    moved = any(one["text"] != UNCHANGED for one in code["diffstats"])
    differs_in_code = bool(code["files"] or code["uncommitted"] or moved)
    if differs_in_code:
        paths = [line["name"] for line in code["files"]]
        more = f" and {len(paths) - MOST} more (--json)" if len(paths) > MOST else ""
        said = (
            f"Of what the stages read: {', '.join(paths[:MOST])}{more}."
            if paths
            else "All that the stages read is the same."
        )
        lines = [line for one in code["diffstats"] for line in _diffstat(one)]
        yield Block(
            "What differs: code",
            [said],
            _sides(changed, names) if changed else [],
            lines,
            name="code",
        )
    if differs["environment"]:
        yield Block(
            "What differs: environment",
            table=_sides(differs["environment"], names),
            name="environment",
        )
    same = [what for what in ("parameters", "data", "environment") if not differs[what]]
    same += [] if differs_in_code else ["code, at different commits" if changed else "code"]
    if same:
        yield Block(f"The same everywhere: {', '.join(same)}", name="same")


def _diffstat(one: Json) -> Iterator[str]:
    yield f"git diff --stat {one['from'][:12]} {one['to'][:12]}"
    *lines, total = [line.strip() for line in one["text"].splitlines()]
    yield from (f"  {line}" for line in lines[:MOST])
    yield from [f"  … {len(lines) - MOST} more files"] if len(lines) > MOST else []
    yield f"  {total}"


def _sides(lines: Sequence[Json], names: Sequence[str]) -> list[list[str]]:
    """A table of differing values: a column per run, or for many runs how many have which."""
    few = len(names) <= FEW_RUNS
    rows = [["", *names] if few else ["", "values (runs)"]]
    for line in lines[:MOST] if len(lines) > MOST + 2 else lines:
        values = ["—" if value is None else _short_hash(value) for value in line["values"]]
        rows.append([line["name"], *values] if few else [line["name"], _counted(values)])
    if len(lines) > MOST + 2:
        rows.append([f"… and {len(lines) - MOST} more (--json)", *[""] * (len(rows[0]) - 1)])
    return rows


def _counted(values: Sequence[str]) -> str:
    counts = Counter(values)
    said = [f"{value} ({count})" for value, count in list(counts.items())[:6]]
    return ", ".join(said) + (f", … {len(counts)} values" if len(counts) > 6 else "")


def _metrics(result: Json) -> list[list[str]]:
    names = [run["name"] for run in result["runs"]]
    labels = [
        f"{line['task']} ({line['metric']})"
        + (f", {line['model']}" if line["model"] != "grpo" else "")
        for line in result["metrics"]
    ]
    if len(names) <= FEW_RUNS:
        return [["", *names]] + [
            [label, *(_value(value) for value in line["values"])]
            for label, line in zip(labels, result["metrics"], strict=True)
        ]
    kept = [(line["task"], line) for line in result["metrics"] if line["model"] == "grpo"][:4]
    return [["run", *(task for task, _ in kept)]] + [
        [
            name,
            *(
                _value(line["values"][index], with_interval=number == 0)
                for number, (_, line) in enumerate(kept)
            ),
        ]
        for index, name in enumerate(names)
    ]


def _value(value: Json | None, with_interval: bool = True) -> str:
    if value is None:
        return "—"
    return estimate(value["value"], value["ci95"]) if with_interval else f"{value['value']:.3f}"


def _seeds(result: Json) -> Iterator[Block]:
    seeds = result["seeds"]
    if not any(arm["seeds"] > 1 for arm in seeds["arms"]):
        return
    rows = [["setting", "seeds", "task", "mean (95 % t interval)"]]
    for arm in seeds["arms"]:
        rows += [
            [arm["name"], str(arm["seeds"]), task, _mean(mean)]
            for task, mean in arm["means"].items()
        ]
    repeats = [name for arm in seeds["arms"] for name in arm["repeats"]]
    said = [f"Vary: {', '.join(seeds['varying'])}."] if seeds["varying"] else []
    said += [f"Left out, of the same seeds as another: {', '.join(repeats)}."] if repeats else []
    yield Block("Over seeds", said, rows, name="seeds")
    tested = [line for line in seeds["comparisons"] if line["design"]]
    if tested:
        rows = [["setting", "task", "difference", "95 % t interval", "p (Holm)", "is"]]
        rows += [
            [
                line["after"],
                line["task"],
                signed(line["difference"]),
                interval(line["ci95"], sign=True),
                p_value(line["p_holm"]),
                line["relation"],
            ]
            for line in tested
        ]
        yield Block(f"Over seeds, minus {tested[0]['before']}", table=rows, name="seeds")


def _mean(mean: Json) -> str:
    known = (
        interval(mean["ci95"]) if mean["ci95"] else f"too few seeds: {mean['n']} of {FEWEST_SEEDS}"
    )
    return f"{mean['mean']:.3f} ({known})"


def _questions(result: Json) -> Iterator[Block]:
    questions = result["questions"]
    pairs = questions["pairs"]
    if len(pairs) > FEW_RUNS:
        rows = [
            ["run", "against", "task", "value", "difference", "95 % interval", "p (Holm)", "is"]
        ]
        for pair in pairs:
            rows += [
                [
                    pair["after"],
                    pair["before"],
                    line["task"],
                    f"{line['after']:.3f}",
                    signed(line["difference"]),
                    interval(line["ci95"], sign=True),
                    p_value(line["p_holm"]),
                    _is(pair, line),
                ]
                for line in pair["tasks"]
                if line["decisive"]
            ] or [[pair["after"], pair["before"], "—", "", "", "", "", _refused(pair)]]
        yield Block("On the shared questions", table=rows, name="pairs")
        return
    for pair in pairs:
        said = [
            f"{one['task']}: {one['reason']}" if one["task"] else one["reason"]
            for one in pair["refused"]
        ]
        if pair["settings"]:
            said.append(
                f"The questions were put with other settings: {', '.join(pair['settings'])}."
            )
        if pair["identical"]:
            said.append("The answers are the same, byte for byte.")
        rows = [
            ["", "questions", "difference", "95 % interval", "gained", "lost", "p", "shows from"]
        ]
        for line in pair["tasks"]:
            n, of = line["questions"], line["of"]
            rows.append(
                [
                    line["task"],
                    str(n) if of == [n, n] else f"{n} of {of[0]}, {of[1]}",
                    signed(line["difference"]),
                    interval(line["ci95"], sign=True),
                    or_dash(line["gained"]),
                    or_dash(line["lost"]),
                    p_value(line["p"]),
                    or_dash(line["minimum_detectable_effect"], ".3f"),
                ]
            )
        yield Block(
            f"{pair['after']} minus {pair['before']}, on the shared questions",
            said,
            rows if pair["tasks"] and not pair["identical"] else [],
            list(_examples(pair)),
            name="pair",
        )


def _is(pair: Json, line: Json) -> str:
    if pair["identical"]:
        return "same answers"
    return f"{line['relation']}{', format only' if (pair['format'] or {}).get('only') else ''}"


def _refused(pair: Json) -> str:
    return "; ".join(dict.fromkeys(one["reason"] for one in pair["refused"])) or "no task decides"


def _examples(pair: Json) -> Iterator[str]:
    """Discordant questions, each cut to a line for the question and one for what each run said."""
    examples = pair.get("examples") or {}
    for way, said in (("gained", pair["after"]), ("lost", pair["before"])):
        for one in examples.get(way, []):
            right = f"   (right: {_brief(one['answer'], 30)})" if one["answer"] else ""
            yield f"only {said} right: {_brief(one['question'], 50)}{right}"
            for side in ("before", "after"):
                yield f"    {pair[side]}: {_brief(one[side], 74)}"


def _brief(text: str | None, most: int) -> str:
    if text is None:
        return "(choices were scored, nothing was written)"
    return one_line(text, most)


def _short_hash(value: str) -> str:
    return value[:12] + "…" if re.fullmatch(r"[0-9a-f]{32,64}(\.dir)?", value) else value
