"""How near a text is to a reference: ROUGE-L and chrF, by the libraries that lm-eval uses."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_WORD = re.compile(r"\w+(?:['’ʼ]\w+)*")


class _Words:
    """Words of any script.

    Rouge_score's own tokenizer keeps a-z and 0-9 only, so that Ukrainian would score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())


def rouge_l(completion: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, "ROUGE", section 3.1).

    F1 of the longest common subsequence of words, 0 to 1, no stemming.
    """
    return float(_rouge().score(reference, completion)["rougeL"].fmeasure)


def chrf(completion: str, reference: str) -> float:
    """chrF (Popović 2015, section 2).

    F2 of character 1- to 6-grams, 0 to 100, as sacrebleu computes it.
    """
    return float(_chrf().sentence_score(completion, [reference]).score)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
