"""`exact_text`: the gold text itself, after the profile's normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from regrpo.core.answers.protocol import NO_ROW, Row, Verifier
from regrpo.core.settings import Section

LONGEST_TEXT = 10_000
"""Characters of an answer that is a text."""
Step = Literal["case", "space", "punctuation", "articles", "accents"]


def folded(text: str, steps: Sequence[Step] = ("case", "space")) -> str:
    """A text in NFC without what the steps leave out, nor white space and a full stop at its end.

    `space` makes one space of each run, `articles` leaves out English a, an and the, as SQuAD's
    script does (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).
    """
    text = unicodedata.normalize("NFC", text)
    if "accents" in steps:
        apart = unicodedata.normalize("NFD", text)
        text = "".join(one for one in apart if not unicodedata.combining(one))
    if "case" in steps:
        text = unicodedata.normalize("NFC", text.casefold())
    if "punctuation" in steps:
        text = "".join(one for one in text if not unicodedata.category(one).startswith("P"))
    if "articles" in steps:
        text = re.sub(r"\b(?:a|an|the)\b", " ", text, flags=re.IGNORECASE)
    if "space" in steps:
        text = " ".join(text.split())
    return text.strip().removesuffix(".").rstrip()


class ExactText(Verifier):
    """A text that must be the gold one, but for what `normalise` names."""

    name = "exact_text"
    wants = "the answer's exact words"
    kind = f"a text of at most {LONGEST_TEXT:,} characters"

    class Settings(Section):
        normalise: list[Step] = Field(default=["case", "space"])

    def parse(self, text: str, row: Row = NO_ROW) -> str | None:
        if len(text) > LONGEST_TEXT:
            return None
        return folded(text, self.settings.normalise) or None

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        golds = self.require_golds(answer, row)
        wrong = "no"
        while self.parse(wrong) in golds:
            wrong += " no"
        return wrong
