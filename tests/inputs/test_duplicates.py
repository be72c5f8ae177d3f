"""Repeats are found on disk as they would be in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from regrpo.inputs import scratch_db
from regrpo.inputs.duplicates import CHAINS, Repeats, spellings
from tests.support.splits import CANONICAL, Splits


def expected_repeats(
    splits: Splits, canonical: Callable[[str], str]
) -> dict[tuple[str, int], dict[str, Any]]:
    """What `Repeats` must find, with all rows in memory."""
    told: dict[tuple[str, int], dict[str, Any]] = {
        (name, i): {} for name in splits for i in range(len(splits[name]))
    }
    spelled = spellings(canonical)
    for column, chain in CHAINS.items():
        places: dict[tuple[str, str], dict[str, str]] = {}
        shown: dict[tuple[str, str, str], list[int]] = {}
        for split, rows in splits.items():
            for index, one in enumerate(rows):
                keys = {
                    name: spelled[name](one[column])
                    for name in chain
                    if (one[column] or "").strip()
                }
                for depth, (name, text) in enumerate(keys.items()):
                    places.setdefault((name, text), {}).setdefault(split, str(one["id"]))
                    finer = list(keys.items())[:depth]
                    if not any(
                        (split, n, t) in shown and shown[split, n, t][0] < index for n, t in finer
                    ):
                        shown.setdefault((split, name, text), []).append(index)
                    else:
                        shown.setdefault((split, name, text), [index])
                        told[split, index][f"{name}_hidden"] = True
        for split, rows in splits.items():
            for index, one in enumerate(rows):
                leaks = False
                for name in chain if (one[column] or "").strip() else ():
                    text = spelled[name](one[column])
                    hidden = told[split, index].pop(f"{name}_hidden", False)
                    told[split, index][f"{name}_again"] = (
                        not hidden and len(shown[split, name, text]) > 1
                    )
                    others = [f"{s} {i}" for s, i in places[name, text].items() if s != split]
                    told[split, index][f"{name}_elsewhere"] = (
                        "also " + ", ".join(others) if others and not leaks else None
                    )
                    leaks = leaks or bool(others)
    return told


@pytest.mark.parametrize("seed", range(20))
def test_repeats_are_found_on_disk_as_they_would_be_in_memory(seed: int) -> None:
    draw = random.Random(seed)
    questions = [
        "1+2=",
        "2+1=",
        "1 + 2=",
        "1+2 =",
        "3+4=",
        "4+3=",
        "9+9=",
        "",
        " ",
        None,
        "ＡＢ",
        "ab",
        "a b.",
    ]
    splits = {
        name: [
            {
                "id": draw.choice(["a", "b", "c", None, " ", f"{name}-{i}"]),
                "question": draw.choice(questions),
            }
            for i in range(draw.randrange(12))
        ]
        for name in ("sft", "train", "dev", "eval")
    }
    with scratch_db.database() as database:
        repeats = Repeats(database, CANONICAL)
        for name, rows in splits.items():
            for start in range(0, max(len(rows), 1), 5):
                repeats.add(name, start, rows[start : start + 5])
        repeats.settle()
        found = {name: repeats.of(name, 0, len(rows)) for name, rows in splits.items()}
    for (name, index), told in expected_repeats(splits, CANONICAL).items():
        assert {k: v for k, v in found[name].get(index, {}).items() if v} == {
            k: v for k, v in told.items() if v
        }
