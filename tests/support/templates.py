"""Chat templates as published models have them, and tiny bases that use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.tokenizers import CHAT_TEMPLATE, SPECIAL, TURNS, character_tokenizer

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Family:
    """A template's text, the special tokens that it writes, and the end of sequence beside it."""

    template: str
    special: tuple[str, ...]
    eos: str


GEMMA = Family(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/…') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    TURNS,
    "<eos>",
)
QWEN = Family(
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
)
LLAMA = Family(
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)
R1 = Family(
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
    ("<|User|>", "<|Assistant|>"),
    "<eos>",
)
OURS = Family(CHAT_TEMPLATE, TURNS, "<eos>")
"""The default base's: a turn ends with <end_of_turn>, a text with <eos>."""


def tokenizer(family: Family = OURS, *, plain: tuple[str, ...] = TAGS, **added: Any) -> Any:
    """One token a character and tag; `special` adds special tokens, `letters` plain ones."""
    made = character_tokenizer([*plain, *added.get("letters", "")])
    special = {*family.special, *added.get("special", ())} - {*SPECIAL, *TURNS}
    made.add_special_tokens({"additional_special_tokens": [*TURNS, *sorted(special)]})
    made.eos_token = family.eos
    made.chat_template = family.template
    return made


def write_base(folder: Path, made: Any, generation: dict[str, Any] | None = None) -> Path:
    """What the gate needs of a base model: tokenizer, window, settings of generation."""
    made.save_pretrained(folder)
    files.write_json(folder / "config.json", {"max_position_embeddings": 256})
    stops = {"eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    files.write_json(folder / "generation_config.json", stops | (generation or {}))
    return folder
