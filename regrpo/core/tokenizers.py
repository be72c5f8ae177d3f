"""Tokenizers saved to the same bytes everywhere; the one of models made from scratch; windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files
from regrpo.core.errors import Refused, parsing
from regrpo.core.rendering import RenderingProcess

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
WINDOWS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
"""Names that architectures have for the most tokens they can look at; the first one counts."""


def context_window(config: Any) -> int | None:
    """The most tokens that a model can look at, or None if its configuration names no limit."""
    # A model of text and images keeps its text model's sizes apart.
    for part in (config.get_text_config(), config):
        for name in WINDOWS:
            value = getattr(part, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def require_window(source: Mapping[str, Any], tokens: int, key: str) -> None:
    """Refuse a longest text (prompt and completion, in tokens) that a base cannot look at.

    `source` is base_model's source.json.
    """
    window = source["window"]
    if window is not None and tokens > window:
        raise Refused(
            key,
            expected=f"at most {window} tokens, prompt and completion together: the base's window",
            found=f"{tokens} for the longest",
            remedy="Lower it or prepare.max_prompt_tokens, or take a base with a longer window.",
        )


def load(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder. Raises Refused for one that transformers cannot load."""
    from transformers import AutoTokenizer

    with parsing(folder, "a tokenizer that transformers can load", "Check the folder's files."):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, but nothing of how it was used."""
    # tokenizer.json would keep the last call's padding and truncation, which are then everyone's
    # defaults who reads it without transformers.
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    # transformers 5 notes its loading: HF_HUB_OFFLINE would change the bytes.
    path = folder / "tokenizer_config.json"
    config = files.read_json(path)
    for loading in ("is_local", "local_files_only"):
        config.pop(loading, None)
    files.write_json(path, config)


def amend(folder: Path, pad_token: str | None, chat_template: str | None) -> None:
    """Give a model folder's tokenizer what it lacks; a folder that needs nothing keeps its bytes.

    Raises Refused for a token that is not in the vocabulary and a template that cannot render a
    conversation.
    """
    if pad_token is None and chat_template is None:
        return
    tokenizer = load(folder)
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise Refused(
                "base_model.pad_token",
                expected="a token of the base's vocabulary",
                found=repr(pad_token),
                remedy="Name one of its own: a new token would need new weights.",
            )
        tokenizer.pad_token = pad_token
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        _require_rendering(tokenizer)
    save(tokenizer, folder)


def _require_rendering(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template that does not render, or that leaves a message's text out."""
    message = "said"
    found = "one that leaves the message out"
    rendered = ""
    try:
        with RenderingProcess(tokenizer, "base_model.chat_template") as render:
            (rendered,) = render([[{"role": "user", "content": message}]], False)
    except Refused as error:
        found = error.found
    if message not in rendered:
        raise Refused(
            "base_model.chat_template",
            expected="a Jinja template that renders messages (role, content)",
            found=found,
            remedy="Correct it in the profile.",
        )


def character_tokenizer(extra_tokens: list[str]) -> PreTrainedTokenizerBase:
    """One token per printable ASCII character and newline, plus `extra_tokens`, one token each.

    The extra tokens are not "special": TRL decodes completions with skip_special_tokens=True before
    it calls a reward.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *TURNS, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106  (a token of text)
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([*SPECIAL, *TURNS])
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106  (a token of text)
        eos_token="<eos>",  # noqa: S106  (a token of text)
        bos_token="<bos>",  # noqa: S106  (a token of text)
        unk_token="<unk>",  # noqa: S106  (a token of text)
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in extra_tokens]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
