"""Named data formats: how a source's row becomes prompt, question, answer and solution, and what makes two questions one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regrpo.errors import Refused

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
    """`columns` are the columns that `read` looks up; `canonical` names the class of questions that count as one."""

    name: str
    verifier: str
    prompt_style: PromptStyle
    prompt_template: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]
    canonical: Callable[[str], str]


def normalise(text: str) -> str:
    """NFKC, case folded, all white space removed: what near-duplicates share."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).casefold())


def words_only(text: str) -> str:
    """NFKC, case folded, letters and digits only, words in order: the canonical form of running text."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _terms(expression: str) -> list[tuple[int, int]]:
    """(sign, number) for each term of `4+5-7`, in order; ValueError for anything else."""
    compact = re.sub(r"\s+", "", expression).removesuffix("=")
    if not re.fullmatch(r"-?\d+(?:[-+]\d+)+", compact):
        raise ValueError(f"not a chain of sums: {expression!r}")
    signed = re.findall(r"([-+]?)(\d+)", compact)
    return [(-1 if sign == "-" else 1, int(number)) for sign, number in signed]


def _read_chain_sum(row: Mapping[str, Any]) -> Example:
    """reasoning-gym's row, or a plain one whose `question` is the expression.

    The worked solution thinks in running subtotals, all but the last, then states the answer:
    `4+5-7=` → `<think>9</think><answer>2</answer>`.
    """
    metadata = row.get("metadata")
    expression = metadata["expression"] if isinstance(metadata, Mapping) else row["question"]
    terms = _terms(str(expression))
    subtotals, total = [], 0
    for sign, number in terms:
        total += sign * number
        subtotals.append(str(total))
    answer = str(row["answer"]).strip()
    question = re.sub(r"\s+", "", str(expression)).removesuffix("=") + "="
    return Example(question, answer, f"<think>{' '.join(subtotals[1:-1])}</think><answer>{answer}</answer>")


def _canonical_chain_sum(question: str) -> str:
    """The sorted signed terms: questions that differ by the order of their terms are one class."""
    try:
        return " ".join(f"{sign * number:+d}" if number else f"{'+-'[sign < 0]}0" for sign, number in sorted(_terms(question)))
    except ValueError:
        return words_only(question)


def _read_gsm8k(row: Mapping[str, Any]) -> Example:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168, section 2): the final number stands after ####, calculator notes in <<…>>."""
    solution = re.sub(r"<<.*?>>", "", str(row["answer"])).strip()
    _, marker, final = solution.rpartition("####")
    return Example(str(row["question"]).strip(), final.strip().replace(",", "") if marker else None, solution)


def _read_question_answer(row: Mapping[str, Any]) -> Example:
    """Columns of the plain names; `answer` and `solution` may be absent or null."""
    answer, solution = row.get("answer"), row.get("solution")
    return Example(
        str(row["question"]),
        None if answer is None else str(answer).strip(),
        None if solution is None else str(solution),
    )


FORMATS = {
    one.name: one
    for one in (
        Format("chain_sum", "exact_int", "text", "{question}", ("question", "answer"), _read_chain_sum, _canonical_chain_sum),
        Format(
            "gsm8k", "final_number", "text", "Question: {question}\nAnswer: ", ("question", "answer"), _read_gsm8k, words_only
        ),
        Format("question_answer", "exact_int", "text", "{question}", ("question",), _read_question_answer, words_only),
    )
}


def get_format(name: str) -> Format:
    """The format of that name. Raises Refused for a name there is not."""
    if name not in FORMATS:
        raise Refused(
            "prepare.format",
            expected=f"one of {', '.join(FORMATS)}",
            found=repr(name),
            remedy="Name one of these, or add yours to regrpo/formats.py.",
        )
    return FORMATS[name]
