"""ROUGE-L and chrF: known values, and Ukrainian words."""

import pytest

from regrpo.evaluate.text_overlap import chrf, rouge_l


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
