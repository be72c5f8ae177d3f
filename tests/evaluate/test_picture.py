"""comparison.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regrpo.evaluate import picture
from regrpo.evaluate.results import MODELS


def test_the_picture_shows_what_there_is(tmp_path: Path) -> None:
    def task(role: str, kind: str = "binary") -> dict[str, Any]:
        one = {"value": 0.5, "stderr": 0.1, "ci95": [0.4, 0.6]}
        return {
            "metric": "accuracy",
            "kind": kind,
            "n": 9,
            "role": role,
            "models": dict.fromkeys(MODELS, one),
        }

    for number, (headline, tasks) in enumerate(
        [
            ("heldout", {"heldout": task("headline")}),
            (None, {"heldout_sampled": task("sampled")}),
            (None, {"mine": task("custom", "continuous"), "gsm8k": task("stock")}),
            (
                "text",
                {"text": task("headline", "continuous"), "text_chrf": task("main", "continuous")},
            ),
        ]
    ):
        picture.draw({"headline": headline, "tasks": tasks}, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
