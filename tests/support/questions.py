"""Evaluation questions as prepare writes them, and a model that answers them as a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from regrpo.core import files
from regrpo.evaluate import harness, tasks


def write_data(
    folder: Path, style: str = "text", verifier: str = "exact_int", questions: int = 24
) -> list[dict[str, Any]]:
    """data/prepared/ as prepare writes it, evaluation split only."""
    rows = []
    for index in range(questions):
        a, b, c = index % 10, (index * 7) % 10, (index * 3 + 1) % 10
        text, total = f"{a}+{b}-{c}=", a + b - c
        rows.append(
            {
                "id": f"q{index:02d}",
                "prompt": text if style == "text" else chat(text),
                "question": text,
                "answer": str(total),
                "solution": f"<think>{a + b}</think><answer>{total}</answer>",
                "source_row": index,
            }
        )
    files.write_parquet(folder / "data/prepared/eval.parquet", pd.DataFrame(rows))
    files.write_json(
        folder / "data/prepared/dataset.json", {"verifier": verifier, "prompt_style": style}
    )
    return rows


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Add."}, {"role": "user", "content": text}]


def known(answers: Callable[[str], str]) -> Any:
    """A stand-in for a model: completes every context as `answers` says, and keeps the requests."""
    from lm_eval.api.model import LM

    class Known(LM):  # type: ignore[misc]
        max_length = 64
        asked: list[tuple[str, dict[str, Any]]]

        def generate_until(self, requests: Any) -> list[str]:
            self.asked = [request.args for request in requests]
            return [answers(context) for context, _ in self.asked]

        def loglikelihood(self, requests: Any) -> Any: ...
        def loglikelihood_rolling(self, requests: Any) -> Any: ...

        def apply_chat_template(
            self, messages: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            turns = "".join(f"[{message['role']}]{message['content']}" for message in messages)
            return turns + "[assistant]" * add_generation_prompt

    return Known()


def ask(name: str, lm: Any, **settings: Any) -> list[dict[str, Any]]:
    (task,) = tasks.find_tasks([name], "exact_int")
    return harness.ask(
        task, lm, **{"chat": False, "max_gen_toks": 9, "limit": None, "seed": 0} | settings
    )
