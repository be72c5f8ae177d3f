"""Evaluation questions as prepare writes them, and a model that answers them as a test says."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regrpo.core import files
from regrpo.evaluate import harness, tasks


def write_data(
    folder: Path,
    style: str = "text",
    verifier: str = "exact_int",
    questions: int = 24,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """data/prepared/ as prepare writes it, evaluation split only, and base_model's source.json.

    With `keep`, the rows have the columns KEPT besides.
    """
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
        if keep:
            rows[-1] |= {name: values[index % 2] for name, values in KEPT.items()}
    (folder / "data/prepared").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/prepared/eval.parquet")
    dataset = {"verifier": verifier, "prompt_style": style}
    if keep:
        dataset["keep"] = list(KEPT)
    files.write_json(folder / "data/prepared/dataset.json", dataset)
    stops = {"text": {"<eos>": 1}, "chat": {"<eos>": 1, "<end_of_turn>": 5}}
    source = {"window": 64, "conversation": {"stop_tokens": stops}}
    files.write_json(folder / "reports/base_model/source.json", source)
    return rows


KEPT: dict[str, list[Any]] = {
    "level": [3, None],
    "meta": [{"source": "x", "tests": ["a", "b"]}, {"source": None, "tests": []}],
    "price": [Decimal("1.50"), Decimal("2.00")],
}
"""Further columns, whose values take turns."""


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

        def tok_encode(self, text: str) -> list[int]:
            return list(map(ord, text))

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
