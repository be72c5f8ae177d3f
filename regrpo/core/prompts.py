"""Prompts as the models see them.

Cut to a number of tokens so that the question loses its end and nothing else.

The instruction around the question, system messages and the chat's scaffold stay whole. Where to
cut stands in dataset.json (`max_prompt_tokens`, `prompt_template`), so that validate, grpo and
evaluate cut alike: the models that they load share one tokenizer. sft may read on to a limit of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.errors import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
QUESTION = "{question}"
AT_ONCE = 512
"""Prompts that are tokenized together: their tokens are in memory."""
LONGEST_WORD = 40
"""Characters.

A cut inside a longer run without white space (a script without spaces) is left where it is.
"""


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], where: str
) -> list[int]:
    """Each prompt's tokens, as the trainers count.

    Special tokens and, for messages, the chat template included.

    Raises Refused where the tokenizer has no chat template, or one that cannot render them.
    """
    return [
        tokens
        for start in range(0, len(prompts), AT_ONCE)
        for tokens in _count(tokenizer, list(prompts[start : start + AT_ONCE]), where)
    ]


def _count(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], where: str) -> list[int]:
    if isinstance(prompts[0], str):  # prepare gives a dataset one style
        return list(map(len, tokenizer(prompts)["input_ids"]))
    try:
        ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    except Exception as error:  # a template may raise anything
        raise Refused(
            f"{where}: chat template",
            expected="to render the prompts",
            found=f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}",
            remedy="Set prepare.prompt_style: text, or give the base one (base_model.chat_template).",
        ) from error
    return list(map(len, ids))


class Cutter:
    """Cuts prompts as dataset.json says; `cut` counts how many it had to.

    Without a limit there, it cuts nothing.
    """

    def __init__(self, dataset: Mapping[str, Any], model: Path, sft: int | None = None) -> None:
        """`sft`: sft's own limit. Raises Refused for one where prepare cuts nothing."""
        self.limit: int | None = sft or dataset.get("max_prompt_tokens")
        self.key = "sft.max_prompt_tokens" if sft else "prepare.max_prompt_tokens"
        if sft and not dataset.get("max_prompt_tokens"):
            raise Refused(
                self.key,
                expected="prepare.max_prompt_tokens beside it, for everything but sft",
                found="none, so that no question may be cut",
                remedy="Set both, or neither.",
            )
        self.model, self.cut = model, 0
        if self.limit is None:
            return
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.before, _, self.after = dataset["prompt_template"].partition(QUESTION)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts, each of at most `limit` tokens.

        Raises Refused where one is longer without its question.
        """
        if self.limit is None:
            return list(prompts)
        tokens = count_tokens(self.tokenizer, prompts, str(self.model))
        return [
            one if count <= self.limit else self._shortened(one, count)
            for one, count in zip(prompts, tokens, strict=True)
        ]

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with their prompts cut."""
        cut = self([row["prompt"] for row in rows])
        return [row | {"prompt": prompt} for row, prompt in zip(rows, cut, strict=True)]

    def _shortened(self, prompt: Prompt, tokens: int) -> Prompt:
        assert self.limit is not None
        self.cut += 1
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        question = text[len(self.before) : len(text) - len(self.after)]
        shorter, kept = prompt, len(question)
        while tokens > self.limit:
            if not kept:
                raise Refused(
                    self.key,
                    expected=f"room for the instruction, which alone is {tokens} tokens long",
                    found=str(self.limit),
                    remedy="Raise it, or shorten prepare.prompt_template or prepare.system_prompt.",
                )
            # The share of the tokens that are too many, of the characters: never more than needed,
            # as the instruction
            # counts among the tokens; a few rounds end within a word of the limit.
            kept -= max(1, (tokens - self.limit) * kept // tokens)
            kept = len(_whole_words(question, kept))
            text = f"{self.before}{question[:kept]}{self.after}"
            shorter = (
                text if isinstance(prompt, str) else [*prompt[:-1], prompt[-1] | {"content": text}]
            )
            tokens = count_tokens(self.tokenizer, [shorter], str(self.model))[0]
        return shorter


def _whole_words(text: str, length: int) -> str:
    """The first `length` characters without the part of a word at their end, and without white space there."""
    cut = text[:length]
    if cut and not cut[-1].isspace() and length < len(text) and not text[length].isspace():
        whole = re.sub(r"\S+$", "", cut)
        cut = whole if whole and len(cut) - len(whole) <= LONGEST_WORD else cut
    return cut.rstrip()
