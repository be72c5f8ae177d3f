"""Integers: `exact_int` in an answer tag, `final_number` after GSM8K's ####."""

from __future__ import annotations

import functools
import re

from regrpo.core.answers.protocol import LONGEST, NO_ROW, PatternForm, Row, Verifier

_INTEGER = r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+|[-+]?[0-9]+"
_WHOLE = re.compile(_INTEGER)


def parse_int(text: str) -> int | None:
    """The integer written in `text`, or None.

    Thousands separators are allowed, and a full stop at the end.
    """
    stripped = text.strip().removesuffix(".")
    return None if len(stripped) > LONGEST else _parsed(stripped)


# A row's self-test in the gate, and a group's rewards, read the same few texts many times.
@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> int | None:
    return int(text.replace(",", "")) if _WHOLE.fullmatch(text) else None


class _Integer(Verifier):
    wants = "the integer"
    kind = "an integer"
    reads_integers = True

    def parse(self, text: str, row: Row = NO_ROW) -> int | None:
        return parse_int(text)

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        return str(max(self.require_golds(answer, row)) + 1)


class ExactInt(_Integer):
    """The integer in an answer tag; one that differs in the reasoning contradicts it."""

    name = "exact_int"
    form = PatternForm(
        description="between <answer> and </answer>,"
        " after optional reasoning in <think> … </think>",
        found=re.compile(r"<answer>([^<]*)</answer>"),
        # Empty, or an integer: other text behind `<answer>` is a sentence that mentions it.
        left_open=re.compile(rf"<answer>\s*(?:(?:{_INTEGER})\.?\s*)?<(?!/answer>)"),
        whole=re.compile(
            # The reasoning may hold any text, < and > too, but its own tags.
            r"(?:<think>(?:(?!</?think>).)*</think>\s*)?"
            rf"<answer>\s*(?:{_INTEGER})\.?\s*</answer>\.?",
            re.DOTALL,
        ),
        answer_opening="<answer>",
        answer_closing="</answer>",
        reasoning_opening="<think>",
    )


class FinalNumber(_Integer):
    """The integer after ####, on the last line, as GSM8K writes it."""

    name = "final_number"
    form = PatternForm(
        description="after ####, on the last line, as GSM8K writes it",
        found=re.compile(r"####[ \t]*([^\n]*)"),
        left_open=re.compile(r"(?!)"),  # never: a line ends by itself
        whole=re.compile(rf"(?s:.*\n)?(?:(?!####).)*####[ \t]*(?:{_INTEGER})\.?"),
        answer_opening="#### ",
        answer_closing="",
        # Kojima et al. 2022 (arXiv:2205.11916), section 3: the zero-shot chain-of-thought
        # trigger.
        reasoning_opening="Let's think step by step.\n",
    )
