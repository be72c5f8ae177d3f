"""Every pattern that meets data or completions takes time linear in their length.

A megabyte of each hostile text goes through all that reads, normalises, cuts, checks or scores
text, in a process that a limit of processor time ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from custom.rewards import short_thought
from custom.verifiers import TimeOfDay
from regrpo.core import conversation, text
from regrpo.core.answers.protocol import Verifier
from regrpo.core.verifiers import VERIFIERS
from regrpo.evaluate import text_overlap
from regrpo.inputs import checks, examples
from regrpo.inputs.formats import FORMATS, Format, normalise
from tests.support import hostile

Reads = Callable[[str], object]


def read(form: Format, said: str) -> None:
    """As the question and as the answer of a row."""
    for columns in (("question", "text"), ("answer", "summary")):
        row: dict[str, Any] = {"id": "1", "question": "1+1", "answer": "2"}
        row |= {"text": "a", "summary": "b"} | dict.fromkeys(columns, said)
        with contextlib.suppress(ValueError):
            form.read(row)


def score(verifier: Verifier, said: str) -> None:
    verifier.score(said, "1")
    verifier.score("<answer>1</answer>", said)
    verifier.is_formatted(said)
    verifier.form.is_whole(said)


def find_faults(said: str) -> None:
    row = dict.fromkeys(("id", "question", "answer", "solution", "prompt"), said)
    checks._text_faults(row)


def cut_at_a_word(said: str) -> None:
    conversation._whole_words(f"{said} bbbb", len(said) + 3)
    conversation._whole_words(said, len(said) - 3)


def show(said: str) -> None:
    for shown in (text.visible, text.one_line, text.prose, text.code, text.fence, text.mermaid):
        shown(said)


READERS: dict[str, Reads] = {
    **{f"format {name}": partial(read, form) for name, form in FORMATS.items()},
    **{f"class of {name}": form.canonical for name, form in FORMATS.items()},
    **{f"verifier {name}": partial(score, one) for name, one in VERIFIERS.items()},
    "normalise": normalise,
    "whole numbers": examples.WHOLE.fullmatch,
    "faults": find_faults,
    "cutting": cut_at_a_word,
    "showing": show,
    "words": text_overlap._WORD.findall,
    "the example of a reward": lambda said: short_thought([said]),
    "the example of a verifier": partial(score, TimeOfDay()),
}
HARD = {
    "format gsm8k": ("calculations opened", "angles"),
    "format question_answer": ("turns of lists", "turns of objects", "turns of signs"),
    "class of question_answer": ("a sum", "a sum without an end", "combining marks"),
    "verifier exact_int": ("answers opened", "an answer and spaces", "thoughts opened"),
    "verifier final_number": ("marks of an answer", "lines with answers", "hashes"),
    "verifier math": ("boxes opened", "a box of braces"),
    "normalise": ("combining marks in two runs", "marks only after NFKC"),
    "whole numbers": ("zeros behind a point",),
    "faults": ("combining marks in two runs", "escapes"),
    "cutting": ("no spaces, then a word", "no spaces"),
    "showing": ("escapes", "newlines"),
    "words": ("words apart",),
    "the example of a reward": ("thoughts opened",),
}
"""The texts that are hard on each, as far as is known."""


@pytest.mark.parametrize("reader", HARD)
def test_a_megabyte_of_what_is_hard_to_read_takes_seconds(reader: str) -> None:
    for name in HARD[reader]:
        assert hostile.ended(partial(READERS[reader], hostile.TEXTS[name])) == "", name


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_megabyte_of_any_hostile_text_takes_seconds(reader: str) -> None:
    for name, said in hostile.TEXTS.items():
        assert hostile.ended(partial(READERS[reader], said)) == "", name


def test_a_process_without_an_end_is_ended_and_fails() -> None:
    def loop() -> None:
        while True:
            pass

    with pytest.raises(pytest.fail.Exception, match="no end within 1 s"):
        hostile.ended(loop, seconds=1)
