"""ROUGE-L and chrF: known values, and Ukrainian words."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrpo.evaluate.text_overlap import chrf, rouge_l
from tests.support.chance import BY_CHANCE

few_words = st.lists(st.sampled_from("abcde"), max_size=30).map(" ".join)


@BY_CHANCE
@given(few_words, few_words)
def test_rouge_l_is_rouge_scores_own(completion: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    class Letters:
        def tokenize(self, text: str) -> Any:
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Letters())
    assert rouge_l(completion, reference) == scorer.score(reference, completion)["rougeL"].fmeasure


def test_long_texts_are_compared_in_no_time() -> None:
    words = [str(number % 977) for number in range(20_000)]
    started = time.process_time()
    assert 0.9 < rouge_l(" ".join(words), " ".join(words[500:])) < 1
    assert time.process_time() - started < 5


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence_of_words() -> None:
    # "police kill the gunman" against "police killed the gunman": 3 of 4 words in order, both ways
    # (Lin 2004, 3.1).
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("", "police killed the gunman") == 0.0
    assert rouge_l("So it IS!", "so it is.") == 1.0


def test_ukrainian_words_count() -> None:
    assert rouge_l("У Києві відкрили міст", "У Києві відкрили новий міст.") == pytest.approx(
        2 * 4 / (4 + 5)
    )
    assert rouge_l("комп'ютер", "комп'ютер") == 1.0
    assert rouge_l("школа", "міст") == 0.0


def test_chrf_is_sacrebleus_own() -> None:
    from sacrebleu.metrics import CHRF

    assert chrf("У Києві міст", "У Києві міст") == pytest.approx(100)
    assert chrf("", "У Києві міст") == 0.0
    assert (
        chrf("У Києві школа", "У Києві міст")
        == CHRF().sentence_score("У Києві школа", ["У Києві міст"]).score
    )
    assert 0 < chrf("У Києві школа", "У Києві міст") < 100
