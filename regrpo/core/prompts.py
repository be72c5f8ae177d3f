"""Prompts as the models see them: their tokens, and how long ones are cut.

Only the question loses its end; the instruction around it, system messages and the chat's scaffold
stay whole. Where to cut stands in dataset.json (`max_prompt_tokens`, `prompt_template`), so that
validate, grpo and evaluate cut alike: the models that they load share one tokenizer. sft may have a
limit of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.errors import Refused, class_and_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
TokenCounter = Callable[[Sequence[Prompt]], list[int]]
QUESTION = "{question}"
AT_ONCE = 512
"""Prompts that are tokenized together: their tokens are in memory."""
LONGEST_WORD = 40
"""Characters; a cut in a longer run (of a script without spaces) is left where it is."""


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], where: str
) -> list[int]:
    """Each prompt's tokens, as the trainers count.

    Special tokens are counted and, for messages, the chat template's. Raises Refused if the
    tokenizer has no chat template, or one that cannot render them.
    """
    counts = []
    for start in range(0, len(prompts), AT_ONCE):
        counts += _count(tokenizer, list(prompts[start : start + AT_ONCE]), where)
    return counts


def _count(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], where: str) -> list[int]:
    if isinstance(prompts[0], str):  # prepare gives a dataset one style
        return list(map(len, tokenizer(prompts)["input_ids"]))
    try:
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, return_dict=True
        )
    except Exception as error:  # a template may raise anything
        raise Refused(
            f"{where}: chat template",
            expected="to render the prompts",
            found=class_and_message(error),
            remedy="Set prepare.prompt_style: text, "
            "or give the base one (base_model.chat_template).",
        ) from error
    return list(map(len, encoded["input_ids"]))


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

    def __init__(self, dataset: Mapping[str, Any], model: Path, sft: int | None = None) -> None:
        """`sft` is sft's own limit. Raises Refused for one if prepare cuts nothing."""
        self.limit: int | None = sft or dataset.get("max_prompt_tokens")
        self.key = "sft.max_prompt_tokens" if sft else "prepare.max_prompt_tokens"
        require_cut(sft, dataset.get("max_prompt_tokens"))
        self.model = model
        self.cut = 0
        if self.limit is None:
            return
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.before, _, self.after = dataset["prompt_template"].partition(QUESTION)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts, each of at most `limit` tokens.

        Raises Refused if one is longer even without its question.
        """
        if self.limit is None:
            return list(prompts)
        tokens = count_tokens(self.tokenizer, prompts, str(self.model))
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

    def _shortened(self, prompt: Prompt, tokens: int, limit: int) -> Prompt:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        question = text[len(self.before) : len(text) - len(self.after)]
        shorter = prompt
        kept = len(question)
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
            kept = len(_whole_words(question, kept))
            shorter = text = f"{self.before}{question[:kept]}{self.after}"
            if not isinstance(prompt, str):
                shorter = [*prompt[:-1], prompt[-1] | {"content": text}]
            tokens = count_tokens(self.tokenizer, [shorter], str(self.model))[0]
        return shorter


def _whole_words(text: str, length: int) -> str:
    """The first `length` characters, without a part of a word or white space at their end."""
    cut = text[:length]
    if re.match(r"\S", text[length:]):  # the cut is inside a word, or right before one
        whole = re.sub(r"\S+\Z", "", cut)
        if whole and len(cut) - len(whole) <= LONGEST_WORD:
            cut = whole
    return cut.rstrip()
