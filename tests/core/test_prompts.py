"""Cutting prompts: the question loses its end, the instruction and the chat's scaffold stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.core.prompts import Cutter, count_tokens
from regrpo.core.tokenizers import character_tokenizer

TEMPLATE = "Tell in one sentence:\n{question}\n\nIn short:"
BEFORE, AFTER = "Tell in one sentence:\n", "\n\nIn short:"
SCAFFOLD = len("<bos>") and 1 + len(BEFORE) + len(AFTER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer([]).save_pretrained(folder)
    return folder


def cutter(model: Path, limit: int | None, template: str = TEMPLATE) -> Cutter:
    return Cutter({"max_prompt_tokens": limit, "prompt_template": template}, model)


def prompt(question: str) -> str:
    return TEMPLATE.replace("{question}", question)


def test_a_long_question_loses_its_end_at_a_word_and_nothing_else(model: Path) -> None:
    words = " ".join(f"word{number}" for number in range(400))
    cut = cutter(model, 100)
    long, short = cut([prompt(words), prompt("short")])
    assert short == prompt("short")
    assert long.startswith(BEFORE)
    assert long.endswith(AFTER)
    question = long.removeprefix(BEFORE).removesuffix(AFTER)
    assert words.startswith(question + " "), "whole words of the question's beginning"
    tokens = count_tokens(cut.tokenizer, [long], "")[0]
    assert 100 - len("word123 ") <= tokens <= 100, "as long as it may be, to a word"
    assert cut.cut == 1


def test_chat_prompts_keep_their_system_message_and_scaffold(model: Path) -> None:
    system = {"role": "system", "content": "Be brief. " * 3}
    messages = [system, {"role": "user", "content": prompt("some news " * 200)}]
    cut = cutter(model, 160)
    (found,) = cut([messages])
    assert isinstance(found, list)
    assert found[0] == system
    assert found[1]["content"].startswith(BEFORE)
    assert found[1]["content"].endswith("some news" + AFTER) or found[1]["content"].endswith(
        "some" + AFTER
    )
    assert 150 <= count_tokens(cut.tokenizer, [found], "")[0] <= 160
    assert messages[1]["content"].count("news") == 200, "the data are left as they are"


def test_text_without_spaces_and_exact_fits(model: Path) -> None:
    cut = cutter(model, SCAFFOLD + 50)
    exact, over = cut([prompt("x" * 50), prompt("y" * 500)])
    assert exact == prompt("x" * 50)
    assert over == prompt("y" * 50), "one long run is cut where the limit is"


def test_a_question_that_looks_like_the_template_is_cut_like_any_other(model: Path) -> None:
    (found,) = cutter(model, 120)([prompt(f"{BEFORE} {{question}} {AFTER} " * 40)])
    assert found.startswith(BEFORE + BEFORE)
    assert found.endswith(AFTER)


def test_an_instruction_longer_than_the_limit_is_refused(model: Path) -> None:
    with pytest.raises(
        Refused, match=rf"prepare\.max_prompt_tokens: .*alone is {SCAFFOLD} tokens long; found 20"
    ):
        cutter(model, 20)([prompt("news")])


def test_sft_may_have_a_limit_of_its_own_where_prepare_has_one(model: Path) -> None:
    dataset = {"max_prompt_tokens": SCAFFOLD + 10, "prompt_template": TEMPLATE}
    assert Cutter(dataset, model, 400)([prompt("x" * 300)]) == [prompt("x" * 300)]
    assert Cutter(dataset, model)([prompt("x" * 300)]) == [prompt("x" * 10)]
    with pytest.raises(
        Refused, match=r"sft\.max_prompt_tokens: expected prepare\.max_prompt_tokens beside it"
    ):
        Cutter(dataset | {"max_prompt_tokens": None}, model, 400)


def test_without_a_limit_nothing_is_cut_and_no_tokenizer_loaded(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "prompt": "x" * 9000}]
    assert Cutter({}, tmp_path / "none").rows(rows) == rows
    assert cutter(tmp_path / "none", None).rows(rows) == rows


def test_a_tokenizer_without_chat_template_is_told_what_to_do(tmp_path: Path) -> None:
    tokenizer = character_tokenizer([])
    tokenizer.chat_template = None
    with pytest.raises(
        Refused,
        match=r"chat template.*prompt_style: text, or give the base one \(base_model\.chat_t",
    ):
        count_tokens(tokenizer, [[{"role": "user", "content": "hi"}]], "models/base")
