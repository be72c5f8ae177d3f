"""Small splits as prepare writes them, and what the gate found in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regrpo.core import conversation, files, rendering
from regrpo.core.answers.protocol import Verifier
from regrpo.core.conversation import Cutter
from regrpo.core.verifiers import VERIFIERS
from regrpo.inputs import gate
from regrpo.inputs.formats import get_format
from regrpo.inputs.round_trip import RoundTrip

Rows = list[dict[str, Any]]


Splits = dict[str, Rows]


CANONICAL = get_format("chain_sum").canonical


EXACT = VERIFIERS["exact_int"]


LIMITS = gate.Limits(prompt_tokens=16, rows=3)


def row(split: str, index: int, question: str, **extra: Any) -> dict[str, Any]:
    total = str(eval(question.rstrip("="))) if re.fullmatch(r"[-+0-9]+=", question) else "1"
    made = {
        "id": f"{split}-{index}",
        "prompt": question,
        "question": question,
        "answer": total,
        "source_row": index,
    }
    return made | {"solution": f"<think>1</think><answer>{total}</answer>"} | extra


def good() -> Splits:
    """Four rows a split; no two questions share their terms."""
    numbers = {"sft": 10, "train": 20, "dev": 30, "eval": 40}
    return {
        name: [row(name, i, f"{number}+{i}=") for i in range(4)] for name, number in numbers.items()
    }


def table(rows: Rows, chat: bool = False) -> pa.Table:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns: dict[str, pa.DataType] = dict.fromkeys(
        ("id", "prompt", "question", "answer", "solution"), pa.string()
    )
    columns |= {"source_row": pa.int64()} | ({"prompt": pa.list_(message)} if chat else {})
    return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))


def write(path: Path, given: pa.Table) -> files.ParquetFile:
    pq.write_table(given, path)
    return files.ParquetFile(path)


def stops_of(folder: Path, style: str) -> list[int]:
    """What base_model decides of a folder that has it settled already."""
    tokenizer = conversation.load_tokenizer(folder)
    config = conversation.generation_config(folder)
    in_process = rendering.in_process(tokenizer, str(folder))
    decided = conversation.decide_stops(tokenizer, config, in_process)
    return conversation.stop_tokens({"conversation": {"stop_tokens": decided}}, style)


def trip_on(
    folder: Path, style: str = "text", verifier: Verifier | None = EXACT, **dataset: Any
) -> RoundTrip:
    """The round trip of rows by a base model's folder; `dataset` is dataset.json's."""
    tokenizer = conversation.load_tokenizer(folder)
    stops = frozenset(stops_of(folder, style))
    renderer = rendering.in_process(tokenizer, str(folder))  # the same, without starting a process
    cutter = Cutter(dataset, folder, renderer=renderer)
    return RoundTrip(tokenizer, style, verifier, renderer, cutter, stops)


def failed(verdict: gate.Verdict) -> dict[tuple[str, str], list[str]]:
    return {
        (one.check, one.split): [failure["id"] for failure in one.failures]
        for one in verdict.failed
    }
