"""Data formats, named ones and the user's: how a row is read, what makes two questions one."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

from regrpo.core.answers.integers import parse_int
from regrpo.core.conversation import QUESTION
from regrpo.core.custom.loading import FORMATS as OWN_FORMATS
from regrpo.core.custom.loading import RAISED, describe, load_alone
from regrpo.core.errors import RegrpoError, entry
from regrpo.core.verifiers import NONE, OWN
from regrpo.inputs.conversations import UnreadableRow, ask, transcript, turns_in

SPLITS = ("sft", "train", "dev", "eval")
"""What prepare writes, a Parquet file each; `train` is grpo's."""
PromptStyle = Literal["text", "chat"]
"""Plain text that the model goes on from, or messages that the chat template renders."""

Canonical = Callable[[str], str]
"""Names the class of a question."""


@dataclass(frozen=True)
class Example:
    """One question as a format reads it; answer and solution may be None.

    `turns` are the chat turns that end with the question, as JSON, where it came as such.
    """

    question: str
    answer: str | None
    solution: str | None
    turns: str | None = None


@dataclass(frozen=True)
class Format:
    """How rows of a kind become examples, and the defaults of prepare's parameters for them."""

    name: str
    columns: tuple[str, ...]
    """The columns that `read` looks up."""
    read: Callable[[Mapping[str, Any]], Example]
    """Raises ValueError for a row that it cannot read."""
    canonical: Canonical
    """The name of a question's class; questions of one class count as one."""
    classes: str
    """In words, what differs within a class."""
    prompt_template: str = QUESTION
    prompt_style: PromptStyle = "text"
    verifier: str = "exact_int"
    convert: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """The user's function: a source's row → one that `read` reads. Raises UnreadableRow."""


def stream_safe(text: str) -> str:
    """The text with U+034F after every 30 combining marks in a row, as UAX #15 has it (section 13).

    Python sorts a run of them in time quadratic in its length; no script needs more than a few.
    """
    if text.isascii():
        return text
    marks = [one for one in set(text) if _is_mark(one)]
    if not marks:
        return text
    return re.sub(f"[{''.join(map(re.escape, marks))}]{{30}}", "\\g<0>\u034f", text)


def _is_mark(character: str) -> bool:
    """Whether normalising a character begins with what combines with the one before it."""
    return unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) > 0


def normalise(text: str) -> str:
    """NFKC, case folded, runs of white space as one space: what near-duplicates share."""
    if text.isascii():  # NFKC changes none of it
        return " ".join(text.lower().split())
    text = stream_safe(text)
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
    """The class of running text: its normalised words, numbers and operators, in order."""
    normalised = normalise(text)
    # A text of nothing but other signs is a class of its own.
    return " ".join(_WORD.findall(normalised)) or normalised


def _text(row: Mapping[str, Any], column: str) -> str:
    """A column that must hold text; ValueError for null, numbers and the rest."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if turns_in(value):
        remedy = (
            f"Set prepare.format: question_answer, and prepare.columns: {{question: {column}}}."
        )
        raise UnreadableRow(f"column {column} holds chat turns", remedy)
    found = "null" if value is None else type(value).__name__
    raise ValueError(f"column {column} holds {found} instead of text")


def _optional(row: Mapping[str, Any], column: str) -> str | None:
    """A column that may be absent, null or empty; of an assistant's turn alone, its text."""
    value = as_text(row.get(column))
    turns = turns_in(value)
    if turns and len(turns) == 1:
        value = turns[0]["content"]
    if value is None or value == "":
        return None
    return _text({column: value}, column)


def as_text(value: Any) -> Any:
    """Numbers as JSON and Parquet files hold them, as text; NaN is None, 80.0 is 80.

    Anything else stays what it is.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):  # NumPy's as well
        return str(int(value))
    if isinstance(value, Real):
        value = float(value)
    elif not isinstance(value, Decimal):
        return value
    if math.isnan(value):
        return None
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)


def _compact(expression: str) -> str:
    """The expression without white space and without `=` at its end."""
    return re.sub(r"\s+", "", expression).removesuffix("=")


def _terms(expression: str) -> list[str]:
    """`+4`, `+5` and `-7` of `4+5-7`, in order; ValueError for anything else."""
    compact = _compact(expression)
    # Python refuses to read integers beyond 4,300 digits.
    if not re.fullmatch(r"-?[0-9]{1,1000}(?:[-+][0-9]{1,1000})+", compact):
        raise ValueError(f"not a chain of sums: {expression[:60]!r}")
    signed = re.findall(r"([-+]?)([0-9]+)", compact)
    return [f"{sign or '+'}{int(number)}" for sign, number in signed]


def _read_chain_sum(row: Mapping[str, Any]) -> Example:
    """reasoning-gym's row, or one with the expression as `question`.

    ValueError for an answer that is not its sum. The worked solution thinks in running subtotals,
    all but the last, then states the answer: `4+5-7=` → `<think>9</think><answer>2</answer>`.
    """
    metadata = row.get("metadata")
    if isinstance(metadata, Mapping) and "expression" in metadata:
        expression = metadata["expression"]
    else:
        expression = _text(row, "question")
    subtotals = list(itertools.accumulate(map(int, _terms(expression))))
    answer = (_optional(row, "answer") or "").strip()
    # An answer that is no number is left to the gate, which names all of them.
    if parse_int(answer) not in (subtotals[-1], None):
        raise ValueError(f"answer {answer}, but {expression} is {subtotals[-1]}")
    thoughts = " ".join(map(str, subtotals[1:-1]))
    return Example(
        question=_compact(expression) + "=",
        answer=answer,
        solution=f"<think>{thoughts}</think><answer>{answer}</answer>",
    )


def _canonical_chain_sum(question: str) -> str:
    """The sorted signed terms: questions that differ by the order of their terms are one class."""
    try:
        terms = _terms(question)
    except ValueError:
        return words_only(question)
    # Negative terms first, as strings: `4-0` asks something else than `4+0`.
    terms.sort(key=lambda term: (term[0] == "+", int(term[1:])))
    return " ".join(terms)


# To the line's end where none closes it: looking for an end from every << would be quadratic.
_CALCULATION = re.compile(r"<<.*?(?:>>|$)", re.MULTILINE)


def _unless_closed(found: re.Match[str]) -> str:
    return "" if found[0].endswith(">>") else found[0]


def _read_gsm8k(row: Mapping[str, Any]) -> Example:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168, section 2).

    The final number after ####, calculations in <<…>>.
    """
    # A model without a calculator would only learn to write each result twice.
    solution = _CALCULATION.sub(_unless_closed, _text(row, "answer")).strip()
    _, marker, final = solution.rpartition("####")
    answer = final.strip().replace(",", "") if marker else None
    return Example(_text(row, "question").strip(), answer, solution)


def _read_question_answer(row: Mapping[str, Any]) -> Example:
    """Columns of the plain names; `answer` and `solution` may be absent or null.

    Chat turns may stand as `question`. Their last one by an assistant is the solution, if no column
    holds one.
    """
    answer, solution = _optional(row, "answer"), _optional(row, "solution")
    if answer is not None:
        answer = answer.strip()
    turns = turns_in(row.get("question"))
    if turns is None:
        return Example(_text(row, "question"), answer, solution)
    turns, said = ask(turns)
    written = json.dumps(turns, ensure_ascii=False)
    return Example(transcript(turns), answer, solution or said, written)


def _read_xlsum(row: Mapping[str, Any]) -> Example:
    """XL-Sum (Hasan et al. 2021, arXiv:2106.13822): an article's `text` and its `summary`.

    The summary is the reference, as answer and as solution.
    """
    summary = _text(row, "summary").strip()
    return Example(_text(row, "text").strip(), summary, summary)


_ALL = (
    Format(
        name="chain_sum",
        columns=("question", "answer"),
        read=_read_chain_sum,
        canonical=_canonical_chain_sum,
        classes="the order of their terms",
    ),
    Format(
        name="gsm8k",
        columns=("question", "answer"),
        read=_read_gsm8k,
        canonical=words_only,
        classes="case, white space or punctuation",
        prompt_template="Question: {question}\nAnswer:\n",
        verifier="final_number",
    ),
    Format(
        name="question_answer",
        columns=("question",),
        read=_read_question_answer,
        canonical=_canonical_chain_sum,
        classes="case, white space or punctuation; sums, in the order of their terms",
    ),
    Format(
        name="reasoning_gym",
        columns=("question", "answer"),
        read=_read_question_answer,
        canonical=normalise,  # a board is drawn in signs, which are no words
        classes="case or white space",
        verifier="reasoning_gym",
    ),
    Format(
        name="xlsum",
        columns=("id", "text", "summary"),
        read=_read_xlsum,
        canonical=words_only,
        classes="case, white space or punctuation",
        prompt_template="{question}\n\nSummary:\n",
        verifier=NONE,
    ),
)
FORMATS = {form.name: form for form in _ALL}
WHERE = "prepare.format"


def get_format(name: str) -> Format:
    """Look up a format by name; `custom.formats:<name>` is the user's function.

    Raises Refused for an unknown one. A function is imported with the first row.
    """
    if name.startswith(OWN):
        load = functools.cache(partial(load_alone, name, OWN_FORMATS, WHERE, "function"))
        convert = partial(_convert, name, load)
        return replace(FORMATS["question_answer"], name=name, columns=(), convert=convert)
    return entry(FORMATS, name, WHERE, "custom/formats.py (docs/data.md)")


def _convert(name: str, load: Callable[[], Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What the user's function returns of a row: a dict with a `question`; its id, if it has none.

    Raises Refused as `load_alone` does.
    """
    function, remedy = load(), f"Mend the row, or {name}."
    try:
        given = function(dict(row))
    except RegrpoError:
        raise
    except RAISED as error:
        raise UnreadableRow(describe(error), remedy) from error
    if not isinstance(given, dict):
        found = f"that it returned {given!r:.60}"
    elif "question" not in given:
        found = f"that it returned no question among {', '.join(map(str, given)) or 'nothing'}"
    else:
        own_id = {key: row[key] for key in ("id",) if key in row}
        return own_id | given
    raise UnreadableRow(f"{found} instead of a dict of question, answer and solution", remedy)
