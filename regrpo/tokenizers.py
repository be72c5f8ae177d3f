"""Saving tokenizers to the same bytes everywhere, and the character tokenizer of models made from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regrpo import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as Gemma has them
TURNS = ("<start_of_turn>", "<end_of_turn>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, but not what transformers 5 notes of its loading (HF_HUB_OFFLINE would change the bytes)."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = files.read_json(path)
    for loading in ("is_local", "local_files_only"):
        config.pop(loading, None)
    files.write_json(path, config)


def character_tokenizer(extra_tokens: list[str]) -> PreTrainedTokenizerBase:
    """One token per printable ASCII character and newline, plus `extra_tokens`, one token each.

    The extra tokens are not "special": TRL decodes completions with skip_special_tokens=True before it calls a reward.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *TURNS, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([*SPECIAL, *TURNS])
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in extra_tokens])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
