"""What a correct answer is, for the reward, the gate's self-test and our lm-eval tasks alike.

A verifier knows the asked format (how an answer is written), reads the answer out of a completion
strictly, and compares it with the gold answer. "Strictly" because lenient matchers reward an echo
of the question ("3 + 5" for gold 8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from regrpo.core.errors import entry

_INTEGER = r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+|[-+]?[0-9]+"
_LONGEST = 1000
"""Characters: Python reads no integers beyond 4,300 digits, and a completion may hold one."""


def parse_int(text: str) -> int | None:
    """The integer written in `text` (thousands separators allowed), or None."""
    stripped = text.strip()
    if len(stripped) > _LONGEST or not re.fullmatch(_INTEGER, stripped):
        return None
    return int(stripped.replace(",", ""))


@dataclass(frozen=True)
class Verifier:
    """One answer format over integers.

    `found` matches every place where a completion states an answer, the answer in group 1; `whole`
    matches a completion that is in the asked format from its first to its last character.
    `answer_opening` and `reasoning_opening` are the texts with which the evaluation's controls
    prefill the completion.
    """

    name: str
    description: str
    found: re.Pattern[str]
    whole: re.Pattern[str]
    answer_opening: str
    answer_closing: str
    reasoning_opening: str

    def extract(self, completion: str) -> int | None:
        """The answer that the completion states; None for no answer, or several that differ."""
        stated = {parse_int(match) for match in self.found.findall(completion)}
        return stated.pop() if len(stated) == 1 else None

    def score(self, completion: str, answer: str | None) -> float:
        """1.0 where the completion states the gold answer and no other, else 0.0."""
        gold = parse_int(answer) if answer is not None else None
        return float(gold is not None and self.extract(completion) == gold)

    def is_formatted(self, completion: str) -> bool:
        """Whether the whole completion is in the asked format."""
        return self.whole.fullmatch(completion.strip()) is not None

    def can_parse(self, answer: str | None) -> bool:
        """Whether a gold answer is one that this verifier can compare with."""
        return answer is not None and parse_int(answer) is not None

    def render(self, answer: str) -> str:
        """A completion that states the answer and nothing else."""
        return f"{self.answer_opening}{answer}{self.answer_closing}"

    def wrong(self, answer: str) -> str:
        """An answer of the same kind that is not the gold one.

        Raises ValueError for a gold that cannot be parsed.
        """
        gold = parse_int(answer)
        if gold is None:
            raise ValueError(f"not an integer: {answer!r}")
        return str(gold + 1)


_ALL = (
    Verifier(
        name="exact_int",
        description="the integer between <answer> and </answer>,"
        " after optional reasoning in <think> … </think>",
        found=re.compile(r"<answer>(.*?)</answer>", re.DOTALL),
        whole=re.compile(rf"(?:<think>[^<>]*</think>)?<answer>(?:{_INTEGER})</answer>"),
        answer_opening="<answer>",
        answer_closing="</answer>",
        reasoning_opening="<think>",
    ),
    Verifier(
        name="final_number",
        description="the integer after ####, on the last line, as GSM8K writes it",
        found=re.compile(r"####[ \t]*([^\n]*)"),
        whole=re.compile(rf"(?:(?!####).)*####[ \t]*(?:{_INTEGER})", re.DOTALL),
        answer_opening="#### ",
        answer_closing="",
        # Kojima et al. 2022 (arXiv:2205.11916), section 3: the zero-shot chain-of-thought
        # trigger.
        reasoning_opening="Let's think step by step.\n",
    ),
)
VERIFIERS = {verifier.name: verifier for verifier in _ALL}

NONE = "none"
"""The verifier name of a dataset without verifiable answers."""


def get_verifier(name: str) -> Verifier | None:
    """Look up a verifier by name, None for "none". Raises Refused for an unknown one."""
    return entry(VERIFIERS | {NONE: None}, name, "prepare.verifier", "regrpo/core/verifiers.py")
