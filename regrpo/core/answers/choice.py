"""`choice`: one of the row's options, by its letter or its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from regrpo.core.answers.exact_text import folded
from regrpo.core.answers.protocol import LONGEST, NO_ROW, Row, Verifier, column
from regrpo.core.settings import Section

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTIONS = "options"
_LETTERED = re.compile(r"\(?([A-Za-z])(?:[).:]+\s*|\s+|$)(.*)", re.DOTALL)
"""`B`, `(B)`, `B.`, and either with the option's text behind it."""


class Choice(Verifier):
    """The letter of an option (A for the first), its text, or both."""

    name = "choice"
    wants = "the letter or the text of an option"
    kind = "one of the row's options"
    columns = (OPTIONS,)

    class Settings(Section):
        # The source's column: a list, {letter: text}, or {label: […], text: […]}.
        options: str = OPTIONS
        # Golds that are the number of an option, counted from here: 0 as MMLU has it.
        index_from: int | None = Field(default=None, ge=0, le=1)

    def parse(self, text: str, row: Row = NO_ROW) -> int | None:
        """The number of the option, from 0; None for none, and for a text that means two."""
        if len(text) > LONGEST:
            return None
        known = [folded(option) for option in row.get(OPTIONS) or []]
        said = folded(text)
        meant = {number for number, option in enumerate(known) if option == said}
        lettered = _LETTERED.fullmatch(text.strip())
        if lettered:
            number = LETTERS.index(lettered[1].upper())
            rest = folded(lettered[2])
            if number < len(known) and rest in ("", known[number]):
                # All that are spelled alike: two options with one text are no choice.
                meant |= {other for other, text in enumerate(known) if text == known[number]}
        return meant.pop() if len(meant) == 1 else None

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        golds = self.require_golds(answer, row)
        for number, letter in enumerate(LETTERS[: len(row[OPTIONS])]):
            if number not in golds:
                return letter
        raise ValueError(f"every option is a gold answer: {answer!r}")

    def bring(self, row: Row, answer: str | None) -> tuple[str | None, dict[str, Any]]:
        name = self.settings.options
        try:
            options = option_texts(column(row, name))
        except KeyError as error:
            missing = f"no column {name} with the options (verifier_settings.options)"
            raise ValueError(missing) from error
        start = self.settings.index_from
        if start is None or answer is None:
            return answer, {OPTIONS: options}
        number = answer.strip()
        places = [str(start + place) for place in range(len(options))]
        if number not in places:
            raise ValueError(f"answer {answer!r} is no number from {places[0]} to {places[-1]}")
        return LETTERS[places.index(number)], {OPTIONS: options}


def option_texts(value: Any) -> list[str]:
    """The options as texts, in their order. Raises ValueError for other shapes and sizes."""
    if isinstance(value, Mapping):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    if not isinstance(value, list):
        raise ValueError(f"options are a {type(value).__name__} instead of a list of texts")
    texts = []
    for option in value:
        if isinstance(option, bool) or not isinstance(option, str | int | float):
            raise ValueError(f"an option is {option!r:.60} instead of a text")
        texts.append(str(option))
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{len(texts)} options instead of 2 to {len(LETTERS)}")
    return texts


def listed(options: list[str]) -> str:
    """The options as a prompt shows them, a line each: `A. Paris`."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
