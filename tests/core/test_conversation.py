"""What base_model decides of a base, where completions stop, and how long prompts are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrpo.core import conversation, files, rendering
from regrpo.core.conversation import Cutter, count_tokens
from regrpo.core.errors import Refused
from regrpo.core.tokenizers import character_tokenizer
from tests.support import templates
from tests.support.splits import stops_of
from tests.support.templates import GEMMA, LLAMA, OURS, QWEN, R1, Family

SAMPLING = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 5,
    "suppress_tokens": [7],
    "forced_eos_token_id": 9,
}


def bytes_of(folder: Path) -> dict[str, str]:
    return {file.name: files.sha256(file) for file in folder.iterdir()}


def test_the_settings_that_a_base_brings_are_set_aside_and_named(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(), SAMPLING)
    assert conversation.settle(base)["set_aside"] == SAMPLING
    left = files.read_json(base / conversation.GENERATION)
    assert {"eos_token_id": 1, "pad_token_id": 0}.items() <= left.items()
    assert not set(left) & set(SAMPLING)
    before = bytes_of(base)
    assert conversation.settle(base)["set_aside"] == {}
    assert bytes_of(base) == before


def test_settings_in_config_json_are_set_aside_as_well(tmp_path: Path) -> None:
    """Before generation_config.json there was, models kept them there."""
    base = templates.write_base(tmp_path, templates.tokenizer())
    (base / conversation.GENERATION).unlink()
    config = files.read_json(base / "config.json")
    files.write_json(base / "config.json", config | {"repetition_penalty": 1.2, "eos_token_id": 1})
    assert conversation.settle(base)["set_aside"] == {"repetition_penalty": 1.2}
    assert conversation.generation_config(base).repetition_penalty is None


def test_a_base_that_brings_nothing_keeps_its_bytes(tmp_path: Path) -> None:
    neutral = {"do_sample": False, "temperature": 1.0, "output_attentions": False}
    base = templates.write_base(tmp_path, templates.tokenizer(), neutral)
    before = bytes_of(base)
    decided = conversation.settle(base)
    assert decided == {
        "beginning": "<bos>",
        "set_aside": {},
        "stop_tokens": {"text": {"<eos>": 1}, "chat": {"<eos>": 1, "<end_of_turn>": 5}},
    }
    assert bytes_of(base) == before


@pytest.mark.parametrize(
    ("family", "ends"),
    [(OURS, "<end_of_turn>"), (GEMMA, "<end_of_turn>"), (QWEN, "<|im_end|>"), (R1, "<eos>")],
    ids=["ours", "gemma", "qwen", "r1"],
)
def test_a_chat_stops_at_the_end_of_turn_besides(tmp_path: Path, family: Family, ends: str) -> None:
    made = templates.tokenizer(family)
    base = templates.write_base(tmp_path, made)
    end = made.convert_tokens_to_ids(ends)
    assert stops_of(base, "text") == [made.eos_token_id]
    assert set(stops_of(base, "chat")) == {made.eos_token_id, end}


def test_every_stop_token_of_model_and_tokenizer_is_kept(tmp_path: Path) -> None:
    made = templates.tokenizer(LLAMA)
    base = templates.write_base(tmp_path, made, {"eos_token_id": [1, 3]})
    stops = [made.eos_token_id, 1, 3]
    assert stops_of(base, "text") == stops
    conversation.settle(base)
    assert conversation.generation_config(base).eos_token_id == stops, "where vLLM reads them"


def test_an_end_of_sequence_that_no_token_has_is_left_out(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(), {"eos_token_id": [1, 99_999]})
    assert conversation.settle(base)["stop_tokens"]["text"] == {"<eos>": 1}
    assert conversation.generation_config(base).eos_token_id in (1, [1])


def test_a_template_without_an_end_of_turn_gives_none(tmp_path: Path) -> None:
    made = templates.tokenizer()
    made.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    base = templates.write_base(tmp_path, made)
    assert stops_of(base, "chat") == [1]
    made.chat_template = "{{ raise_exception('no') }}"
    made.save_pretrained(base)
    assert stops_of(base, "chat") == [1]
    assert conversation.settle(base)["stop_tokens"]["chat"] is None


def test_a_template_that_writes_todays_date_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = templates.tokenizer()
    made.chat_template = "{{ strftime_now('%d') }}" + OURS.template
    conversation.settle(templates.write_base(tmp_path, made))
    assert "its chat template writes today's date" in capsys.readouterr().out


def test_a_model_folder_is_made_to_stop_where_its_style_ends(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer())
    before = bytes_of(base)
    conversation.write_stops(base, [1])
    assert bytes_of(base) == before
    conversation.write_stops(base, [1, 5])
    assert set(conversation.generation_config(base).eos_token_id) == {1, 5}


@pytest.mark.parametrize("content", ["{", '"text"', '{"eos_token_id": "x", "max_length": -1}'])
def test_a_broken_generation_config_is_one_line(tmp_path: Path, content: str) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer())
    (base / conversation.GENERATION).write_text(content)
    with pytest.raises(Refused, match=r"base_model\.source: generation_config\.json") as caught:
        conversation.settle(base)
    assert "\n" not in str(caught.value)


def test_a_response_template_takes_no_completion_apart(tmp_path: Path) -> None:
    made: Any = templates.tokenizer()
    made.response_template = {"fields": {"content": {}}}
    base = templates.write_base(tmp_path, made)
    assert conversation.load_tokenizer(base).response_template is None


# --- prompts that are too long --------------------------------------------------------------------

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
    tokens = count_tokens(cut.tokenizer, [long], cut.renderer)[0]
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
    assert 150 <= count_tokens(cut.tokenizer, [found], cut.renderer)[0] <= 160
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
        count_tokens(
            tokenizer,
            [[{"role": "user", "content": "hi"}]],
            rendering.in_process(tokenizer, "models/base"),
        )


def test_tokens_are_counted_as_the_trainers_feed_them() -> None:
    tokenizer = character_tokenizer(["<answer>"])
    renderer = rendering.in_process(tokenizer, "models/base")
    assert count_tokens(tokenizer, ["1+1=", "", "<answer>"], renderer) == [5, 1, 2]
    rendered = ["<bos>", "<start_of_turn>", *"user\n1", "<end_of_turn>", "\n"]
    rendered += ["<start_of_turn>", *"model\n"]
    chat = [[{"role": "user", "content": "1"}]]
    assert count_tokens(tokenizer, chat, renderer) == [len(rendered)]
    assert count_tokens(tokenizer, [], renderer) == []


def test_a_tokenizer_whose_pattern_gives_up_is_one_line() -> None:
    """Oniguruma ends a match that backtracks for ever; the tokenizer then panics in Rust."""
    from tokenizers import Regex, pre_tokenizers

    made = templates.tokenizer()
    split = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    made.backend_tokenizer.pre_tokenizer = split
    with pytest.raises(
        Refused, match=r"tokenizer: expected to encode the texts; found Onig: Regex"
    ):
        conversation.encode(made, ["a" * 30 + "!", "b"], False)
