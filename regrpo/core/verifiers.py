"""What a correct answer is, for the reward, the gate's self-test and our lm-eval tasks alike.

A verifier knows the asked format (how an answer is written), reads the answer out of a completion
strictly, and compares it with the gold answer. "Strictly" because lenient matchers reward an echo
of the question ("3 + 5" for gold 8).

White space around a block and a full stop behind the answer are no fault, for the score and the
format alike. Every pattern takes time linear in the completion's length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from regrpo.core.errors import entry

_INTEGER = r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+|[-+]?[0-9]+"
_LONGEST = 1000
"""Characters: Python reads no integers beyond 4,300 digits, and a completion may hold one."""


def parse_int(text: str) -> int | None:
    """The integer written in `text`, or None.

    Thousands separators are allowed, and a full stop at the end.
    """
    stripped = text.strip().removesuffix(".")
    if len(stripped) > _LONGEST or not re.fullmatch(_INTEGER, stripped):
        return None
    return int(stripped.replace(",", ""))


@dataclass(frozen=True)
class Verifier:
    """One answer format over integers.

    `found` matches every place where a completion states an answer, the answer in group 1;
    `left_open` one that is begun and not ended. `whole` matches a completion that is in the asked
    format from its first to its last character. `answer_opening` and `reasoning_opening` are the
    texts with which the evaluation's controls prefill the completion.
    """

    name: str
    description: str
    found: re.Pattern[str]
    left_open: re.Pattern[str]
    whole: re.Pattern[str]
    answer_opening: str
    answer_closing: str
    reasoning_opening: str

    def extract(self, completion: str) -> int | None:
        """The answer that the completion states.

        None for no answer, several that differ, and one that is left open beside. A place that
        holds no integer (a heading `#### Step 1`, an `<answer>` that is only mentioned) states no
        answer, and contradicts none.
        """
        stated = {parse_int(text) for text in self.found.findall(completion)} - {None}
        if len(stated) != 1 or self.left_open.search(completion):
            return None
        return stated.pop()

    def score(self, completion: str, answer: str | None) -> float:
        """1.0 where the completion states the gold answer and no other, else 0.0."""
        gold = parse_int(answer) if answer is not None else None
        return float(gold is not None and self.extract(completion) == gold)

    def is_formatted(self, completion: str) -> bool:
        """Whether the whole completion is in the asked format, and states one answer."""
        in_form = self.whole.fullmatch(completion.strip()) is not None
        return in_form and self.extract(completion) is not None

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
    ),
    Verifier(
        name="final_number",
        description="the integer after ####, on the last line, as GSM8K writes it",
        found=re.compile(r"####[ \t]*([^\n]*)"),
        left_open=re.compile(r"(?!)"),  # never: a line ends by itself
        whole=re.compile(rf"(?s:.*\n)?(?:(?!####).)*####[ \t]*(?:{_INTEGER})\.?"),
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
