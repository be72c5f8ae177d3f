"""benchmarks/results.json, and its table in docs/performance.md.

A figure is known by its subject and by what it is of. One that is measured again takes the place of
the older one; the others stay, each with its own date, commit and machine. The table stands in the
page that explains it, between two marks, so that no figure lies in two places.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import Load
from timing import Row, holds

from regrpo.core import files

HERE = Path(__file__).resolve().parent
FILE = HERE / "results.json"
PAGE = HERE.parent / "docs/performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
MARK = "(busy)"
FIGURES = ("ours", "peer", "ratio", "min", "max")
DIGITS = 5
"""Significant digits that results.json keeps."""
HEAD = ("what", "ours", "peer", "ratio (min to max)", "goal", "note")

Measured = Mapping[str, Any]
"""A Row's fields with `date`, `commit`, `machine` (the other facts) and `load`."""


def measured(rows: Iterable[Row], facts: Mapping[str, Any], load: Load) -> list[dict[str, Any]]:
    """The rows with when and on what they were measured, and whether others kept it busy."""
    rest = {name: value for name, value in facts.items() if name not in ("date", "commit")}
    common = {"date": facts["date"], "commit": facts["commit"]}
    common |= {"busy": load.busy, "load": asdict(load), "machine": rest}
    found = []
    for row in rows:
        fields = asdict(row) | {"holds": holds(row)}
        for name in FIGURES:
            if fields[name] is not None:
                fields[name] = float(f"{fields[name]:.{DIGITS}g}")
        found.append(fields | common)
    return found


def merged(before: Sequence[Measured], now: Sequence[Measured]) -> list[Measured]:
    """The rows of both, by subject in the order in which they came; a newer one replaces its like.

    One that was skipped now takes no figure's place.
    """
    rows = {(row["subject"], row["what"]): row for row in before}
    for row in now:
        key = (row["subject"], row["what"])
        if row["ours"] is not None or key not in rows:
            rows[key] = row
    subjects = list(dict.fromkeys(subject for subject, _ in rows))
    return sorted(rows.values(), key=lambda row: subjects.index(row["subject"]))


def read(path: Path = FILE) -> list[Measured]:
    """The rows of results.json; none if there is no file yet."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return [row | {"machine": found["machines"][row["machine"]]} for row in found["rows"]]


def write(rows: Sequence[Measured], path: Path = FILE, page: Path = PAGE) -> None:
    """Write results.json, and the table into the page."""
    machines = {machine_id(row): row["machine"] for row in rows}
    short = [{**row, "machine": machine_id(row)} for row in rows]
    files.write_json(path, {"schema_version": 1, "machines": machines, "rows": short})
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    files.write_text(page, f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")


def machine_id(row: Measured) -> str:
    """A machine with its versions, as results.json and the page name it."""
    return files.sha256_json(row["machine"])[:6]


# --- the table ------------------------------------------------------------------------------------


def markdown(rows: Sequence[Measured]) -> str:
    """A table for each subject, and on what it was measured."""
    if not rows:
        return "\nNothing is measured yet: `make bench`.\n"
    parts = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        of_subject = [row for row in rows if row["subject"] == subject]
        lines = [HEAD, ("---",) * len(HEAD), *map(cells, of_subject)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {subject}\n\n{table}\n\n{provenance(of_subject)}")
    if any(row["busy"] for row in rows):
        parts.append(f"{MARK}: others used more than a tenth of the machine. It says little.")
    parts += {machine_id(row): machine_lines(row) for row in rows}.values()
    return "\n" + "\n\n".join(parts) + "\n"


def cells(row: Measured) -> tuple[str, ...]:
    """One row of the table."""
    return (
        row["what"],
        quantity(row["ours"], row["unit"]),
        quantity(row["peer"], row["unit"]),
        spread(row),
        goal(row),
        row["note"].replace("|", "\\|"),
    )


def quantity(value: float | None, unit: str) -> str:
    """A figure to three digits with its unit; nothing for none."""
    if value is None:
        return ""
    # Plain digits: 12300, not 1.23e+04.
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def spread(row: Measured) -> str:
    """The ratio, if there is one, with the extremes in brackets, and the mark."""
    if row["ours"] is None:
        return ""
    text = ""
    if row["ratio"] is not None:
        text = f"**{row['ratio']:.3g}** ({row['min']:.3g} to {row['max']:.3g})"
    elif row["min"] is not None:
        text = f"({quantity(row['min'], '')} to {quantity(row['max'], '')})"
    if row["busy"]:
        text += f" {MARK}"
    return text.strip()


def goal(row: Measured) -> str:
    """What the ratio shall be, and whether it is."""
    wanted = []
    if row["most"] is not None:
        wanted.append(f"≤ {row['most']:g}")
    if row["least"] is not None:
        wanted.append(f"≥ {row['least']:g}")
    if not wanted:
        return ""
    held = {True: "held", False: "missed", None: "not measured"}[row["holds"]]
    return f"{', '.join(wanted)}: {held}"


def provenance(rows: Sequence[Measured]) -> str:
    """When, of which commit and on what the rows were measured: a line for each such set."""
    lines = []
    for row in rows:
        if row["ours"] is None:
            continue
        load = row["load"]
        lines.append(
            f"{row['date']}, commit {row['commit']}, machine {machine_id(row)}, "
            f"{rounds_of(rows, row)}. Load {load['average_before']} before, "
            f"{load['average_after']} after;\nothers used {load['before']:.0%} of the processors "
            f"before, {load['during']:.0%} during, {load['after']:.0%} after."
        )
    return "\n\n".join(dict.fromkeys(lines))


def machine_lines(row: Measured) -> str:
    """What a machine is, and the versions on it."""
    machine = row["machine"]
    packages = machine["packages"].items()
    versions = ", ".join(f"{name} {version}" for name, version in packages if version)
    return (
        f"Machine {machine_id(row)}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB.\n"
        + textwrap.fill(f"{machine['system']}, Python {machine['python']}, {versions}.", 100)
    )


def rounds_of(rows: Sequence[Measured], like: Measured) -> str:
    """The rounds of all rows that were measured together with this one."""
    together = [row for row in rows if row["ours"] is not None and row["load"] == like["load"]]
    counts = [row["rounds"] for row in together]
    least, most = min(counts), max(counts)
    return f"{most} rounds" if least == most else f"{least} to {most} rounds"
