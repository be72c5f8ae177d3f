"""The functions that our lm-eval tasks name: questions, the text to go on from, the score.

Where the dataset has a verifier, the score is that and nothing else, over the opening and the
completion together; without one, completions are compared with a reference.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrpo.core.answers.protocol import Verifier
from regrpo.core.conversation import Cutter
from regrpo.core.errors import Refused
from regrpo.core.files import read_json
from regrpo.core.verifiers import of_dataset
from regrpo.evaluate.text_overlap import chrf, rouge_l

if TYPE_CHECKING:
    import datasets

PREPARED, BASE = Path("data/prepared"), Path("models/base")
Messages = list[dict[str, str]]


def questions(
    opening: Literal["", "answer", "reasoning"] = "", references: bool = False, **_metadata: object
) -> dict[str, datasets.Dataset]:
    """data/prepared/eval.parquet and two columns more.

    `verifier` (its name and settings, as JSON), `opening` (the completion's start).

    Prompts are cut as they were in training. With `references`, every question must have an answer
    to compare with.
    """
    import datasets
    import pyarrow.parquet as pq

    dataset = read_json(PREPARED / "dataset.json")
    named = {name: dataset.get(name) for name in ("verifier", "verifier_settings")}
    text = getattr(of_dataset(dataset), f"{opening}_opening") if opening else ""
    rows = Cutter(dataset, BASE).rows(pq.read_table(PREPARED / "eval.parquet").to_pylist())
    if references and (missing := [row["id"] for row in rows if not row["answer"]]):
        raise Refused(
            f"{PREPARED / 'eval.parquet'}",
            expected="a reference (answer) for every question, as heldout_text compares with it",
            found=f"none for {', '.join(map(str, missing[:20]))}",
            remedy="Bring references, or take heldout_text off evaluate.tasks.",
        )
    # Held in memory: a dataset read through `load_dataset` would be cached by path and time stamp.
    return {
        "eval": datasets.Dataset.from_list(
            [row | {"verifier": json.dumps(named), "opening": text} for row in rows]
        )
    }


def context(doc: Mapping[str, Any], render: Callable[[Messages], str] | None = None) -> Any:
    """The prompt and the completion's opening.

    `render` turns chat messages into text, generation prompt included.
    """
    prompt = doc["prompt"] if render is None else render(doc["prompt"])
    return prompt + doc["opening"] if isinstance(prompt, str) else prompt


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """{accuracy, format} of one completion, each 0.0 or 1.0."""
    verifier = _verifier(doc["verifier"])
    assert verifier is not None  # evaluate refuses these tasks where there is none  # noqa: S101  (tells mypy a type, checks no input)
    completion = doc["opening"] + results[0]
    return {
        "accuracy": verifier.score(completion, doc["answer"], doc),
        "format": float(verifier.is_formatted(completion, doc)),
    }


@functools.cache
def _verifier(named: str) -> Verifier | None:
    return of_dataset(json.loads(named))


def compare(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """{rougeL: 0 to 1, chrf: 0 to 100} of one completion against the reference."""
    completion, reference = results[0].strip(), doc["answer"]
    return {"rougeL": rouge_l(completion, reference), "chrf": chrf(completion, reference)}
