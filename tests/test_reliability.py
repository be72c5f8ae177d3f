"""docs/reliability.md names tests that are there, and tells of the campaign what its log says."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator

from tests.support.faults import FAULTS
from tests.support.projects import ROOT

PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
KNOWN = 26
"""The trial of which the page says what was left."""
LOG = ROOT / "benchmarks/fault_campaign.jsonl"


def named() -> Iterator[tuple[str, str]]:
    """(file, function) of each test that the page names; "" for a file as a whole."""
    file = ""
    for path, function in re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", PAGE):
        file = path or file
        if path or function:
            yield file, function


def test_every_test_that_the_page_names_is_there() -> None:
    missing = []
    for file, function in named():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if function and function not in there:
            missing.append(f"{file}::{function}")
    assert missing == []
    assert len(set(named())) > 50


def test_every_line_of_the_matrix_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    for row in rows:
        is_head = row.startswith(("| fault | what is promised", "| kind |", "|---"))
        is_of_campaign = row.split("|")[1].strip() in FAULTS
        assert is_head or is_of_campaign or "tests/" in row, row


def test_the_campaigns_table_is_its_logs() -> None:
    trials = [json.loads(line) for line in LOG.read_text().splitlines()]
    assert len({(trial["seed"], trial["trial"]) for trial in trials}) == len(trials)
    assert [trial["trial"] for trial in trials if trial["problems"]] == [KNOWN]
    counts = Counter(trial["kind"] for trial in trials)
    for kind in FAULTS:
        assert f"| {kind} | {counts[kind]} |" in PAGE
    assert f"{len(trials)} trials" in PAGE
