"""How a text is rendered, encoded, decoded and stopped: decided here, for every stage alike.

base_model writes what was decided of its base into source.json, and into the model folder what
libraries read there: every token at which generation stops, and no setting of sampling.

Of a prompt that is too long only the question loses its end; the instruction around it, system
messages and the chat's scaffold stay whole. Where to cut stands in dataset.json
(`max_prompt_tokens`, `prompt_template`), so that validate, grpo and evaluate cut alike: the models
that they load share one tokenizer. sft may have a limit of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files, rendering, tokenizers
from regrpo.core.errors import Refused, parsing
from regrpo.core.rendering import Messages, Render

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Prompt = str | Messages
QUESTION = "{question}"
AT_ONCE, CHARACTERS = 512, 2**20
"""Texts that are tokenized together, and their characters: a token takes a hundred bytes."""
LONGEST_WORD = 40
"""Characters; a cut in a longer run (of a script without spaces) is left where it is."""
ROUNDS = 20
"""Times that a prompt is cut by its share of tokens, before it is halved."""
GENERATION = "generation_config.json"
KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "transformers_version",
    "_from_model_config",
)
"""Fields of generation_config.json that change no token which a model would choose."""
NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_length": 20,
}
"""transformers' own defaults; of the other fields nothing, false and 0 change nothing either."""
PROBE = "an answer"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A model folder's tokenizer. Completions are its decoded text, whatever else it offers."""
    tokenizer = tokenizers.load(folder)
    # By this TRL alone would take a completion apart before its rewards see it.
    tokenizer.response_template = None
    return tokenizer


def render(prompts: Sequence[Prompt], renderer: Render) -> list[str]:
    """The text of each prompt, chat messages by the template and with its generation prompt."""
    if not prompts or isinstance(prompts[0], str):  # prepare gives a dataset one style
        return [prompt for prompt in prompts if isinstance(prompt, str)]
    return renderer([prompt for prompt in prompts if not isinstance(prompt, str)], True)


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], is_chat: bool
) -> list[list[int]]:
    """Token ids of rendered prompts; a chat template writes its own special tokens.

    Raises Refused if the tokenizer gives up: its own regular expressions may end a match only after
    ten million steps (Oniguruma's limit, a quarter of a second), and the library then panics.
    """
    if not texts:
        return []
    where = f"{tokenizer.name_or_path}: tokenizer"
    with parsing(where, "to encode the texts", "Give the base another tokenizer.json."):
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=not is_chat)["input_ids"]
    return ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """Completions as rewards, dev accuracy and lm-eval see them: special tokens are left out."""
    if len(ids) == 0:  # they may be a tensor
        return []
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


# --- prompts that are too long --------------------------------------------------------------------


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt], renderer: Render
) -> list[int]:
    """Each prompt's tokens, as the trainers count.

    Special tokens are counted and, for messages, the chat template's. Raises Refused if the
    tokenizer has no chat template, or one that cannot render them.
    """
    counts: list[int] = []
    for batch in files.in_batches(prompts, AT_ONCE, CHARACTERS):
        texts = render(batch, renderer)
        counts += map(len, encode(tokenizer, texts, not isinstance(batch[0], str)))
    return counts


def require_cut(sft: int | None, prepare: int | None) -> None:
    """Refuse a limit of sft's own without prepare's, which says that questions may be cut."""
    if sft and not prepare:
        raise Refused(
            "sft.max_prompt_tokens",
            expected="prepare.max_prompt_tokens beside it, for everything but sft",
            found="none, so that no question may be cut",
            remedy="Set both, or neither.",
        )


class Cutter:
    """Cuts prompts as dataset.json says, and counts in `cut` how many were too long.

    Without a limit there, it cuts nothing.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        model: Path,
        sft: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        renderer: Render | None = None,
    ) -> None:
        """`sft` is sft's own limit, `tokenizer` the model's where it is loaded already.

        `renderer` is another than the tokenizer's own. Raises Refused for a limit of sft's if
        prepare cuts nothing.
        """
        self.limit: int | None = sft or dataset.get("max_prompt_tokens")
        self.key = "sft.max_prompt_tokens" if sft else "prepare.max_prompt_tokens"
        require_cut(sft, dataset.get("max_prompt_tokens"))
        self.cut = 0
        if self.limit is None:
            return
        self.tokenizer = tokenizer or load_tokenizer(model)
        self.renderer = renderer or rendering.in_process(self.tokenizer, str(model))
        self.before, _, self.after = dataset["prompt_template"].partition(QUESTION)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts, each of at most `limit` tokens.

        Raises Refused if one is longer even without its question.
        """
        if self.limit is None:
            return list(prompts)
        tokens = count_tokens(self.tokenizer, prompts, self.renderer)
        shortened = []
        for prompt, count in zip(prompts, tokens, strict=True):
            if count > self.limit:
                self.cut += 1
                prompt = self._shortened(prompt, count, self.limit)
            shortened.append(prompt)
        return shortened

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with their prompts cut."""
        cut = self([row["prompt"] for row in rows])
        return [row | {"prompt": prompt} for row, prompt in zip(rows, cut, strict=True)]

    def batches(self, file: files.ParquetFile) -> Iterator[list[dict[str, Any]]]:
        """The file's rows with their prompts cut, some at a time."""
        for _, rows in file.batches(files.BATCH):
            yield self.rows(rows)

    def _shortened(self, prompt: Prompt, tokens: int, limit: int) -> Prompt:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        question = text[len(self.before) : len(text) - len(self.after)]
        shorter = prompt
        kept = len(question)
        rounds = 0
        while tokens > limit:
            if not kept:
                raise Refused(
                    self.key,
                    expected=f"room for the instruction, which alone is {tokens} tokens long",
                    found=str(limit),
                    remedy="Raise it, or shorten prepare.prompt_template or prepare.system_prompt.",
                )
            # Cut the share of the characters by which the tokens are too many. That is never more
            # than needed, as the instruction counts among the tokens, and a few rounds end within
            # a word of the limit.
            kept -= max(1, (tokens - limit) * kept // tokens)
            rounds += 1
            if rounds > ROUNDS:  # of a long end in few tokens each would cut a little
                kept //= 2
            kept = len(_whole_words(question, kept))
            shorter = text = f"{self.before}{question[:kept]}{self.after}"
            if not isinstance(prompt, str):
                shorter = [*prompt[:-1], prompt[-1] | {"content": text}]
            tokens = count_tokens(self.tokenizer, [shorter], self.renderer)[0]
        return shorter


def _whole_words(text: str, length: int) -> str:
    """The first `length` characters, without a part of a word or white space at their end."""
    cut = text[:length]
    if re.match(r"\S", text[length:]):  # the cut is inside a word, or right before one
        # Of the end alone: a longer run stays as it is, and searching the text would be quadratic.
        word = re.search(r"\S*\Z", cut[-LONGEST_WORD - 1 :])
        length = len(word[0]) if word else 0
        if length <= LONGEST_WORD and length < len(cut):
            cut = cut[: len(cut) - length]
    return cut.rstrip()


# --- where generation stops -----------------------------------------------------------------------


def stop_tokens(source: Mapping[str, Any], style: str) -> list[int]:
    """Ids of the tokens at which a completion ends, as base_model decided: `source` is source.json.

    `style` is dataset.json's `prompt_style`, text or chat. A template that renders no conversation
    has none of its own; the gate refuses it for chats.
    """
    decided = source["conversation"]["stop_tokens"]
    return list((decided[style] or decided["text"]).values())


def _model_stops(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig) -> list[int]:
    """The tokenizer's end of sequence, with which sft ends a text, and generation_config's."""
    given = as_ids(config.eos_token_id)
    ids = [one for one in given if tokenizer.convert_ids_to_tokens(one) is not None]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids = [tokenizer.eos_token_id, *ids]
    return ids


def turn_end(tokenizer: PreTrainedTokenizerBase, renderer: Render) -> list[int]:
    """The id of the token that a template writes after an assistant's words; empty for none."""
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": PROBE}]
    (text,) = renderer([turns], False)
    _, said, after = text.rpartition(PROBE)
    if not said:
        return []
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    for token in encode(tokenizer, [after], True)[0]:
        if token in added:
            return [token]
        if tokenizer.decode([token]).strip():
            break
    return []


def as_ids(value: int | list[int] | None) -> list[int]:
    """generation_config's eos_token_id as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def stop_at(config: GenerationConfig, ids: Sequence[int]) -> None:
    """Make a model's generation_config stop at these tokens; one that does already is left."""
    if set(as_ids(config.eos_token_id)) != set(ids):
        config.eos_token_id = list(ids) if len(ids) > 1 else ids[0]


def write_stops(folder: Path, stops: Sequence[int]) -> None:
    """Make a model folder's generation_config.json stop at these tokens."""
    config = generation_config(folder)
    before = config.eos_token_id
    stop_at(config, stops)
    if config.eos_token_id != before:
        config.save_pretrained(folder)


# --- what a base brings ---------------------------------------------------------------------------


def generation_config(folder: Path) -> GenerationConfig:
    """A model folder's settings of generation, from where transformers takes them.

    Raises Refused for a generation_config.json that cannot be read.
    """
    from transformers import GenerationConfig

    if not (folder / GENERATION).exists():
        return GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )
    where = f"base_model.source: {GENERATION}"
    with parsing(where, "transformers' settings of generation", "Correct the file, or remove it."):
        config = GenerationConfig.from_pretrained(folder)
        for one in as_ids(config.eos_token_id):
            if not isinstance(one, int):
                raise TypeError(f"{one!r} as eos_token_id")
    return config


def settle(folder: Path) -> dict[str, Any]:
    """Decide for a base, and write into its folder what libraries read there.

    Returns source.json's `conversation`: `beginning` (the token, or None), `stop_tokens` (text
    and chat: token → id; chat None where the template renders no conversation), `set_aside` (the
    base's own settings of generation that are used nowhere). A folder that says the same already
    keeps its bytes.
    """
    tokenizer = load_tokenizer(folder)
    config = generation_config(folder)
    settings = config.to_diff_dict()
    set_aside = {
        name: value
        for name, value in settings.items()
        if name not in KEPT and value and value != NEUTRAL.get(name)
    }
    with rendering.RenderingProcess(tokenizer, "base_model.source") as renderer:
        decided = decide_stops(tokenizer, config, renderer)
    stops = list((decided["text"] or {}).values())
    if set_aside or set(stops) != set(as_ids(config.eos_token_id)):
        kept = {name: value for name, value in settings.items() if name in KEPT}
        kept["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        files.write_json(folder / GENERATION, kept)
    if "strftime_now" in str(tokenizer.chat_template):
        print(
            "base_model: its chat template writes today's date, so that chats of another day train "
            "another model; base_model.chat_template can state a date",
            flush=True,
        )
    return {"beginning": tokenizer.bos_token, "stop_tokens": decided, "set_aside": set_aside}


def decide_stops(
    tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, renderer: Render
) -> dict[str, dict[str, int] | None]:
    """source.json's `stop_tokens`: the model's own, and in a chat its template's besides."""
    stops = _model_stops(tokenizer, config)
    in_chat = None
    if tokenizer.chat_template is not None:
        try:
            in_chat = _named(tokenizer, [*stops, *turn_end(tokenizer, renderer)])
        except Refused as error:  # plain text may do; the gate refuses it for chats
            print(f"base_model: its chat template cannot be used: {error.found}", flush=True)
    return {"text": _named(tokenizer, stops), "chat": in_chat}


def _named(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> dict[str, int]:
    return {str(tokenizer.convert_ids_to_tokens(one)): one for one in ids}
