"""The checks of the gate: what each makes sure of, and the columns that it looks at."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.core.verifiers import Verifier
from regrpo.inputs.duplicates import CHAINS, SPELLINGS, spellings

if TYPE_CHECKING:
    import pandas as pd

KEPT = 1000
"""Offending rows of a check in a split that failures.parquet holds; all are counted."""


Row = dict[str, Any]


Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Check:
    """What a check makes sure of, and what to do where it fails."""

    name: str
    holds: str
    remedy: str


_REPEATS = "Remove the repeats from the source, or set prepare.drop_duplicates: true to keep the first of each."


_LEAKS = "Remove them from one split's source, or set prepare.drop_duplicates: true to drop them from training."


_SELF_TEST = "Change the question or prompt template, or choose another prepare.verifier."


CHECKS = {
    check.name: check
    for check in (
        Check(
            "schema",
            "columns and types are the ones that the stages read",
            "Make data/prepared again: `dvc repro`.",
        ),
        Check(
            "row_count", "the split has enough rows", "Bring more data, or lower validate.min_rows."
        ),
        Check(
            "id_present",
            "every row has an id",
            "Give every row an id, or none: prepare then numbers them.",
        ),
        Check(
            "id_unique",
            "no id occurs twice in a split",
            "Give every row its own id, or remove the id column.",
        ),
        Check(
            "id_disjoint",
            "no id occurs in two splits",
            "Give every row its own id, or remove the id column.",
        ),
        Check("not_empty", "no question or prompt is empty", "Fill in or remove the rows."),
        Check(
            "prompt_length",
            "every prompt fits: at least one token, at most the limit, as the base model's tokenizer counts",
            "Remove or shorten the rows, raise validate.max_prompt_tokens, or take a base model with a longer window.",
        ),
        Check("question_unique", "no question occurs twice in a split", _REPEATS),
        Check(
            "question_unique_normalised",
            "nor twice with other case, white space or Unicode forms",
            _REPEATS,
        ),
        Check(
            "class_unique",
            "dev and eval hold one question per canonical class: they are independent",
            _REPEATS,
        ),
        Check("disjoint", "no question occurs in two splits", _LEAKS),
        Check(
            "disjoint_normalised",
            "nor in two with other case, white space or Unicode forms",
            _LEAKS,
        ),
        Check(
            "disjoint_canonical", "nor in two as variants: questions of one canonical form", _LEAKS
        ),
        Check(
            "valid_unicode",
            "text is Unicode scalars without U+FFFD, which stands where a decoder failed",
            "Read the source again in its own encoding and save it as UTF-8.",
        ),
        Check(
            "nfc",
            "text is in Unicode's form NFC",
            "Save the source with unicodedata.normalize('NFC', text).",
        ),
        Check(
            "no_control_characters",
            "text holds no control characters but newline and tab",
            "Remove them (\\r\\n becomes \\n).",
        ),
        Check(
            "answer_parses",
            "the verifier can read every gold answer",
            "Correct the answers, or the prepare.verifier.",
        ),
        Check("gold_scores_1", "self-test: the gold answer scores 1", _SELF_TEST),
        Check(
            "solution_scores_1",
            "self-test: the worked solution scores 1",
            "Correct the solution: it must end in the gold answer in the verifier's form, and state no other.",
        ),
        Check("wrong_scores_0", "self-test: a wrong answer scores 0", _SELF_TEST),
        Check("empty_scores_0", "self-test: an empty completion scores 0", _SELF_TEST),
        Check(
            "echo_scores_0", "self-test: an echo of the question or the prompt scores 0", _SELF_TEST
        ),
        Check(
            "contradiction_scores_0",
            "self-test: two answers that contradict each other score 0",
            _SELF_TEST,
        ),
    )
}


VERIFIED = ("answer_parses", *(name for name in CHECKS if "_scores_" in name))
"""The checks that need a verifier."""


DERIVED = (
    *("row", "id", "source_row", "question", "answer"),
    *("prompt_tokens", "empty", "invalid", "control", "not_nfc", "unparsed", *VERIFIED[1:]),
    "given_id",
    *(f"{name}_{where}" for name in SPELLINGS for where in ("again", "elsewhere")),
)
"""The columns of a derived frame; the first line's identify a row."""


@dataclass(frozen=True)
class Outcome:
    """One check on one split: of `rows` rows `failed` did.

    `failures` holds the first `KEPT` of these: id, source_row, value, question, answer.
    """

    check: str
    split: str
    expectation: str
    rows: int
    failed: int
    failures: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return not self.failed


def derive(
    start: int,
    rows: list[Row],
    repeats: Mapping[int, Row],
    canonical: Callable[[str], str],
    verifier: Verifier | None,
    count_tokens: Callable[[Sequence[Prompt]], Sequence[int]],
) -> pd.DataFrame:
    """The columns that `suite` looks at, those that identify a row, and `row`, its position in the split.

    `repeats`: of each row that repeats anything, what `Repeats.of` says.
    """
    import pandas as pd

    tokens = iter(
        count_tokens([row["prompt"] for row in rows if row["prompt"]])
    )  # an absent one is told by not_empty
    for index, row in enumerate(rows, start):
        row |= {"row": index, "prompt_tokens": next(tokens) if row["prompt"] else None}
        row["given_id"] = row["id"] if row["id"] and row["id"].strip() else None
        row |= _repeated(row, repeats.get(index, {}), canonical)
        row |= _text_faults(row) | (_self_test(row, verifier) if verifier else {})
    # A null would make floats of all, and 70 tokens "70.0" in what is told of them.
    return pd.DataFrame(rows, columns=DERIVED).astype({"prompt_tokens": "Int64"})


def _repeated(row: Row, repeats: Row, canonical: Callable[[str], str]) -> Row:
    """`<spelling>_again`, the text that the split holds twice, and `<spelling>_elsewhere`, who else has it."""
    spelled = spellings(canonical)
    texts = {
        f"{name}_again": spelled[name](row[column]) if repeats.get(f"{name}_again") else None
        for column, chain in CHAINS.items()
        for name in chain
    }
    return {name: repeats.get(name) for name in DERIVED if name.endswith("_elsewhere")} | texts


def prompt_text(prompt: Prompt | None) -> str:
    """A prompt's text; of chat messages the contents, a line each."""
    return (
        prompt
        if isinstance(prompt, str)
        else "\n".join(message["content"] or "" for message in prompt or [])
    )


_NONCHARACTERS = "".join(
    chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)


_INVALID = re.compile(f"[\ufdd0-\ufdef\ufffd{_NONCHARACTERS}]")


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _text_faults(row: Row) -> Row:
    texts = {name: row[name] or "" for name in ("id", "question", "answer", "solution")}
    texts["prompt"] = prompt_text(row["prompt"])
    faults = {
        "empty": [name for name in ("question", "prompt") if not texts[name].strip()],
        "invalid": _characters(_INVALID, texts),
        "control": _characters(_CONTROL, texts),
        "not_nfc": [
            name for name, text in texts.items() if not unicodedata.is_normalized("NFC", text)
        ],
    }
    return {fault: "; ".join(told) or None for fault, told in faults.items()}


def _characters(pattern: re.Pattern[str], texts: Mapping[str, str]) -> list[str]:
    found = {name: sorted(set(pattern.findall(text))) for name, text in texts.items()}
    return [
        f"{name} holds {', '.join(f'U+{ord(c):04X}' for c in chars)}"
        for name, chars in found.items()
        if chars
    ]


def _self_test(row: Row, verifier: Verifier) -> Row:
    """The verifier's scores of completions whose score is known.

    None where it cannot read the gold answer.
    """
    gold, solution = row["answer"], row["solution"]
    if not verifier.can_parse(gold):
        return {"unparsed": "null" if gold is None else repr(gold)}
    right, wrong = verifier.render(gold), verifier.render(verifier.wrong(gold))
    echoes = (row["question"] or "", prompt_text(row["prompt"]))
    return {
        "unparsed": None,
        "gold_scores_1": verifier.score(right, gold),
        "solution_scores_1": None if solution is None else verifier.score(solution, gold),
        "wrong_scores_0": verifier.score(wrong, gold),
        "empty_scores_0": verifier.score("", gold),
        "echo_scores_0": max(verifier.score(echo, gold) for echo in echoes),
        "contradiction_scores_0": max(
            verifier.score(f"{a}\n{b}", gold) for a, b in ((right, wrong), (wrong, right))
        ),
    }
