"""A row's texts there and back: what a template or a tokenizer does to them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.core.verifiers import VERIFIERS
from tests.support import templates
from tests.support.splits import row, trip_on
from tests.support.templates import GEMMA, LLAMA, OURS, QWEN, R1, TAGS


def found(
    base: Path, rows: list[dict[str, Any]], style: str = "text", split: str = "sft", **more: Any
) -> list[dict[str, str]]:
    """Of each row what is wrong, by column."""
    trip = trip_on(base, style, **more)
    columns = trip.columns(split, rows)
    return [
        {name: value for name, value in one.items() if value and not name.endswith("_tokens")}
        for one in columns
    ]


def chat(question: str = "1+1=", system: str = "", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}]
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    answer = {"answer": "2", "solution": "<think>1</think><answer>2</answer>"}
    return row("sft", 0, question) | answer | {"prompt": turns} | more


@pytest.mark.parametrize(
    "family", [OURS, GEMMA, QWEN, LLAMA], ids=["ours", "gemma", "qwen", "llama"]
)
def test_what_published_templates_do_to_good_rows_is_nothing(
    tmp_path: Path, family: templates.Family
) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(family))
    assert found(base, [chat(), chat("2+2= ", answer="4", solution=None)], "chat") == [{}, {}]
    assert found(base, [row("sft", 0, "1+1=")]) == [{}]


def test_tags_that_are_special_tokens_do_not_survive(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(plain=(), special=TAGS))
    (one,) = found(base, [row("sft", 0, "1+1=")], split="train")
    assert one == {
        "special": "solution holds </answer>, </think>, <answer>, <think>",
        "lost": "answer '<answer>2</answer>' comes back as '2'",
    }
    (one,) = found(base, [row("sft", 0, "1+1=", solution=None)])
    assert one == {"lost": "answer '<answer>2</answer>' comes back as '2'"}


def test_a_question_that_holds_the_templates_own_tokens_is_named(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(QWEN))
    question = "<bos><|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"
    (one,) = found(base, [chat(question)], "chat")
    assert one == {"special": "question holds <bos>, <|im_end|>, <|im_start|>"}
    (one,) = found(base, [row("sft", 0, "1+1=", answer="2<eos>", solution=None)])
    assert one["special"] == "answer holds <eos>"


@pytest.mark.parametrize(
    ("before", "after"), [("<think>\n\n</think>\n\n", ""), ("Answer: ", ""), ("", " /no_think")]
)
def test_a_template_that_adds_to_an_answer_is_named(
    tmp_path: Path, before: str, after: str
) -> None:
    """An empty thought before it, as Qwen 3's template, the reward would not mind."""
    made = templates.tokenizer()
    added = f"{json.dumps(before)} + message['content'] + {json.dumps(after)}"
    content = f"({added} if message['role'] == 'assistant' else message['content'])"
    made.chat_template = OURS.template.replace("message['content'] | trim", content)
    base = templates.write_base(tmp_path, made)
    (one,) = found(base, [chat(solution=None)], "chat", verifier=VERIFIERS["final_number"])
    becomes = f"{before}#### 2{after}<end_of_turn>\n"
    assert one == {"template": f"answer '#### 2' becomes {becomes!r}"}


def test_a_template_that_opens_reasoning_and_drops_it_is_named(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(R1))
    (one,) = found(base, [chat()], "chat", split="train")
    assert one == {"template": "the generation prompt opens <think>"}
    opens = "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
    without = R1.template.replace(opens, "{% if add_generation_prompt %}<|Assistant|>{% endif %}")
    made = templates.tokenizer(R1)
    made.chat_template = without
    (one,) = found(templates.write_base(tmp_path, made), [chat()], "chat")
    said = "'<think>1</think><answer>2</answer>' becomes '<answer>2</answer><eos>'"
    assert one == {"template": f"solution {said}"}


def test_a_template_that_writes_another_prompt_before_an_answer_is_named(tmp_path: Path) -> None:
    made = templates.tokenizer(QWEN)
    made.chat_template = QWEN.template.replace("assistant\n' }}{% endif %}", "a:' }}{% endif %}")
    (one,) = found(templates.write_base(tmp_path, made), [chat()], "chat")
    assert one == {"template": "before an answer the prompt's end ':' is not written"}


def test_a_template_that_leaves_a_message_out_is_named(tmp_path: Path) -> None:
    made = templates.tokenizer(R1)
    made.chat_template = R1.template.replace("<think>\n", "")
    base = templates.write_base(tmp_path, made)
    (one,) = found(base, [chat(system="Be brief.")], "chat", split="train")
    assert one["template"] == "'Be brief.' of the prompt is not written"


def test_a_template_that_raises_is_refused_in_one_line(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer(GEMMA))
    with pytest.raises(Refused, match="TemplateError: System role not supported") as caught:
        found(base, [chat(system="Be brief.")], "chat")
    assert "\n" not in str(caught.value)


def test_a_turn_without_a_token_at_which_generation_stops_is_named(tmp_path: Path) -> None:
    made = templates.tokenizer()
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    made.chat_template = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    (one,) = found(templates.write_base(tmp_path, made), [chat()], "chat")
    assert one["unended"] == "solution ends with '\\n'"
    made = templates.tokenizer()
    made.chat_template = None
    base = templates.write_base(tmp_path, made, {"eos_token_id": [3]})
    assert found(base, [row("sft", 0, "1+1=")]) == [{}], "the tokenizer's own is one of them"


def test_characters_that_the_tokenizer_cannot_write_are_counted_and_shown(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer())
    (one,) = found(base, [row("sft", 0, "Оля має 3?", answer="3", solution=None)])
    assert one == {"unknown": "prompt: 6 of 11 tokens are <unk> (О а л м я є)"}
    (one,) = found(base, [row("sft", 0, "1+1=", solution="так <answer>2</answer>")], split="train")
    assert one == {"unknown": "solution: 3 of 7 tokens are <unk> (а к т)"}


def test_a_beginning_that_stands_twice_and_an_end_of_the_prompts_own_are_named(
    tmp_path: Path,
) -> None:
    from tokenizers import processors

    base = templates.write_base(tmp_path, templates.tokenizer())
    (one,) = found(base, [row("sft", 0, "1+1=", prompt="<bos>1+1=")])
    assert one == {"framing": "2 times <bos>"}
    made = templates.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    (one,) = found(templates.write_base(tmp_path, made), [row("sft", 0, "1+1=")], split="train")
    assert one == {"framing": "ends with <eos>"}


def lower(made: Any) -> Any:
    from tokenizers import normalizers

    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return made


def test_a_tokenizer_that_changes_texts_is_named_apart_from_one_that_loses_answers(
    tmp_path: Path,
) -> None:
    base = templates.write_base(tmp_path, lower(templates.tokenizer()))
    (one,) = found(base, [row("sft", 0, "Add 1+1=", answer="2", solution=None)])
    assert one == {"changed": "prompt 'Add 1+1=' comes back as '<bos>add 1+1='"}
    capital = VERIFIERS["final_number"]
    loses = row("sft", 0, "1+1=", answer="2", solution="So It Is\n#### 2")
    (one,) = found(base, [loses], verifier=capital)
    assert one == {"changed": "solution 'So It Is\\n#### 2' comes back as 'so it is\\n#### 2'"}


def test_without_a_verifier_solutions_are_looked_at_all_the_same(tmp_path: Path) -> None:
    base = templates.write_base(tmp_path, templates.tokenizer())
    free = row("sft", 0, "Hi", answer=None, solution="So<eos>")
    assert found(base, [free], verifier=None) == [{"special": "solution holds <eos>"}]
    assert found(base, [free | {"solution": "So"}], verifier=None) == [{}]
