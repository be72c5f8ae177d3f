"""Named data formats.

How a source's row becomes question, answer and solution, and what makes two questions one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regrpo.core.errors import entry
from regrpo.core.verifiers import NONE, parse_int

SPLITS = ("sft", "train", "dev", "eval")
"""What prepare writes, a Parquet file each; `train` is grpo's."""
PromptStyle = Literal["text", "chat"]
"""Plain text that the model goes on from, or chat messages that the tokenizer's template renders."""


@dataclass(frozen=True)
class Example:
    """One question as a format reads it; answer and solution may be None."""

    question: str
    answer: str | None
    solution: str | None


@dataclass(frozen=True)
class Format:
    """`columns` are the columns that `read` looks up.

    `canonical` names the class of questions that count as one.

    `classes` says in words what differs within a class.
    """

    name: str
    verifier: str
    prompt_style: PromptStyle
    prompt_template: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]
    canonical: Callable[[str], str]
    classes: str


def normalise(text: str) -> str:
    """NFKC, case folded, runs of white space as one space: what near-duplicates share."""
    raised = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]", r"^\g<0>", text)  # NFKC alone would make 5² and 52 one
    return " ".join(unicodedata.normalize("NFKC", raised).casefold().split())


_WORD = re.compile(
    r"\d+(?:[.,]\d+)*"  # 3.5 is one number, and another than 35
    r"|[^\W\d_]+"
    r"|(?<![^\W\d_])[-−]"  # a minus, not a hyphen
    r"|[+*/^%=<>×÷√()\[\]{}|&]"
    r"|(?<=[\d)])!"  # a factorial, not an exclamation
)


def words_only(text: str) -> str:
    """The normalised text's words, numbers and operators in order, without punctuation.

    The class of running text.
    """
    normalised = normalise(text)
    return " ".join(_WORD.findall(normalised)) or normalised


def _text(row: Mapping[str, Any], column: str) -> str:
    """A column that must hold text; ValueError for null, numbers and the rest."""
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(
            f"column {column} holds {'null' if value is None else type(value).__name__} instead of text"
        )
    return value


def _optional(row: Mapping[str, Any], column: str) -> str | None:
    """A column that may be absent or null.

    Numbers become text, as JSON and Parquet files hold answers as numbers.
    """
    value = row.get(column)
    return (
        str(value)
        if isinstance(value, int | float)
        else None
        if value is None
        else _text(row, column)
    )


def _terms(expression: str) -> list[tuple[int, int]]:
    """(sign, number) for each term of `4+5-7`, in order; ValueError for anything else."""
    compact = re.sub(r"\s+", "", expression).removesuffix("=")
    if not re.fullmatch(r"-?[0-9]{1,1000}(?:[-+][0-9]{1,1000})+", compact):
        raise ValueError(f"not a chain of sums: {expression[:60]!r}")
    signed = re.findall(r"([-+]?)([0-9]+)", compact)
    return [(-1 if sign == "-" else 1, int(number)) for sign, number in signed]


def _read_chain_sum(row: Mapping[str, Any]) -> Example:
    """reasoning-gym's row, or one with the expression as `question`.

    ValueError for an answer that is not its sum.

    The worked solution thinks in running subtotals, all but the last, then states the answer:
    `4+5-7=` → `<think>9</think><answer>2</answer>`.
    """
    metadata = row.get("metadata")
    expression = (
        metadata["expression"]
        if isinstance(metadata, Mapping) and "expression" in metadata
        else _text(row, "question")
    )
    subtotals, total = [], 0
    for sign, number in _terms(expression):
        total += sign * number
        subtotals.append(str(total))
    answer = (_optional(row, "answer") or "").strip()
    if parse_int(answer) not in (total, None):
        raise ValueError(f"answer {answer}, but {expression} is {total}")
    question = re.sub(r"\s+", "", expression).removesuffix("=") + "="
    return Example(
        question, answer, f"<think>{' '.join(subtotals[1:-1])}</think><answer>{answer}</answer>"
    )


def _canonical_chain_sum(question: str) -> str:
    """The sorted signed terms: questions that differ by the order of their terms are one class."""
    try:
        return " ".join(f"{'+-'[sign < 0]}{number}" for sign, number in sorted(_terms(question)))
    except ValueError:
        return words_only(question)


def _read_gsm8k(row: Mapping[str, Any]) -> Example:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168, section 2).

    The final number after ####, calculations in <<…>>.
    """
    solution = re.sub(r"<<.*?>>", "", _text(row, "answer")).strip()
    _, marker, final = solution.rpartition("####")
    return Example(
        _text(row, "question").strip(), final.strip().replace(",", "") if marker else None, solution
    )


def _read_question_answer(row: Mapping[str, Any]) -> Example:
    """Columns of the plain names; `answer` and `solution` may be absent or null."""
    answer = _optional(row, "answer")
    return Example(
        _text(row, "question"),
        None if answer is None else answer.strip(),
        _optional(row, "solution"),
    )


def _read_xlsum(row: Mapping[str, Any]) -> Example:
    """XL-Sum (Hasan et al. 2021, arXiv:2106.13822).

    The article's `text` and its `summary`, the reference.
    """
    summary = _text(row, "summary").strip()
    return Example(_text(row, "text").strip(), summary, summary)


_WORDING = "case, white space or punctuation"

FORMATS = {
    one.name: one
    for one in (
        Format(
            "chain_sum",
            "exact_int",
            "text",
            "{question}",
            ("question", "answer"),
            _read_chain_sum,
            _canonical_chain_sum,
            "the order of their terms",
        ),
        Format(
            "gsm8k",
            "final_number",
            "text",
            "Question: {question}\nAnswer:\n",
            ("question", "answer"),
            _read_gsm8k,
            words_only,
            _WORDING,
        ),
        Format(
            "question_answer",
            "exact_int",
            "text",
            "{question}",
            ("question",),
            _read_question_answer,
            _canonical_chain_sum,
            f"{_WORDING}; sums, in the order of their terms",
        ),
        Format(
            "xlsum",
            NONE,
            "text",
            "{question}\n\nSummary:\n",
            ("id", "text", "summary"),
            _read_xlsum,
            words_only,
            _WORDING,
        ),
    )
}


def get_format(name: str) -> Format:
    """The format of that name. Raises Refused for a name there is not."""
    return entry(FORMATS, name, "prepare.format", "regrpo/inputs/formats.py")
