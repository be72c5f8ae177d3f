"""What the YAML files beside this one call: the evaluation questions, the text a model goes on from, and the score.

The score is the dataset's verifier and nothing else, over the opening and the completion together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrpo.files import read_json
from regrpo.verifiers import get_verifier

if TYPE_CHECKING:
    import datasets

PREPARED = Path("data/prepared")
Messages = list[dict[str, str]]


def questions(opening: Literal["", "answer", "reasoning"] = "", **_metadata: object) -> dict[str, datasets.Dataset]:
    """data/prepared/eval.parquet and two columns more: `verifier` (its name), `opening` (the completion's start)."""
    import datasets
    import pyarrow.parquet as pq

    name = read_json(PREPARED / "dataset.json")["verifier"]
    text = getattr(get_verifier(name), f"{opening}_opening") if opening else ""
    rows = pq.read_table(PREPARED / "eval.parquet").to_pylist()
    # Held in memory: a dataset read through `load_dataset` would be cached by path and time stamp.
    return {"eval": datasets.Dataset.from_list([row | {"verifier": name, "opening": text} for row in rows])}


def context(doc: Mapping[str, Any], render: Callable[[Messages], str] | None = None) -> Any:
    """The prompt and the completion's opening; `render` turns chat messages into text, generation prompt included."""
    prompt = doc["prompt"] if render is None else render(doc["prompt"])
    return prompt + doc["opening"] if isinstance(prompt, str) else prompt


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """{accuracy, format} of one completion, each 0.0 or 1.0."""
    verifier = get_verifier(doc["verifier"])
    assert verifier is not None  # evaluate refuses these tasks where there is none
    completion = doc["opening"] + results[0]
    return {"accuracy": verifier.score(completion, doc["answer"]), "format": float(verifier.is_formatted(completion))}
