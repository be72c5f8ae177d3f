"""How near a text is to a reference: ROUGE-L and chrF."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_WORD = re.compile(r"\w+(?:['’ʼ]\w+)*")


def rouge_l(completion: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, "ROUGE", section 3.1).

    F1 of the longest common subsequence of words, 0 to 1, no stemming. Words are those of any
    script: rouge_score's own tokenizer keeps a-z and 0-9 only, so that Ukrainian would score 0.
    """
    said, expected = (_WORD.findall(text.casefold()) for text in (completion, reference))
    common = _longest_common(said, expected)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def _longest_common(words: list[str], others: list[str]) -> int:
    """The length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): a row of the table
    is one integer, of which a zero is a step. rouge_score goes through the table cell by cell, for
    two texts of 10,000 words a minute.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    whole = row = (1 << len(words)) - 1
    for word in others:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & whole
    return len(words) - row.bit_count()


def chrf(completion: str, reference: str) -> float:
    """chrF (Popović 2015, section 2).

    F2 of character 1- to 6-grams, 0 to 100, as sacrebleu computes it.
    """
    return float(_chrf().sentence_score(completion, [reference]).score)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
