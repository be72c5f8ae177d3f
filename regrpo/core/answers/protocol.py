"""What every verifier is: a form of answers, a way to read one, and what is wrong beside it.

A verifier reads the answer out of a completion strictly, and compares it with the gold answer.
"Strictly" because lenient matchers reward an echo of the question ("3 + 5" for gold 8).

White space around a block and a full stop behind the answer are no fault, for the score and the
format alike. Every pattern takes time linear in the completion's length, and what is parsed is
bounded by its size: no score depends on a clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from regrpo.core.settings import Section

LONGEST = 1000
"""Characters of an answer: Python reads no integers beyond 4,300 digits, and one may be longer."""
GOLDS = "golds"
"""The column of a row with several gold answers (prepare.several_answers)."""
Row = Mapping[str, Any]
NO_ROW: Row = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an answer stands in a completion.

    `answer_opening` and `reasoning_opening` are the texts with which the evaluation's controls
    prefill the completion. With `reasoning_closing`, only what follows the last of these is read.
    """

    description: str
    answer_opening: str
    answer_closing: str
    reasoning_opening: str
    reasoning_closing: str = ""

    def stated(self, completion: str) -> list[str]:
        """The texts that a completion states as its answer; none if one is left open."""
        raise NotImplementedError

    def is_whole(self, completion: str) -> bool:
        """Whether a completion is in the asked format from its first to its last character."""
        raise NotImplementedError

    def behind_reasoning(self, completion: str) -> str:
        if self.reasoning_closing:
            return completion.rpartition(self.reasoning_closing)[2]
        return completion


@dataclass(frozen=True, kw_only=True)
class PatternForm(Form):
    """A form that regular expressions read.

    `found` matches every place where a completion states an answer, the answer in group 1;
    `left_open` one that is begun and not ended; `whole` a completion in the asked format.
    """

    found: re.Pattern[str]
    left_open: re.Pattern[str]
    whole: re.Pattern[str]

    def stated(self, completion: str) -> list[str]:
        completion = self.behind_reasoning(completion)
        if self.left_open.search(completion):
            return []
        return self.found.findall(completion)

    def is_whole(self, completion: str) -> bool:
        return self.whole.fullmatch(completion) is not None


TAGGED = PatternForm(
    description="between <answer> and </answer>, after optional reasoning in <think> … </think>",
    found=re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL),
    left_open=re.compile(r"<answer>(?:(?!</?answer>).)*<answer>", re.DOTALL),
    whole=re.compile(
        r"(?:<think>(?:(?!</?think>).)*</think>\s*)?"
        r"<answer>(?:(?!</?(?:answer|think)>).)*</answer>\.?",
        re.DOTALL,
    ),
    answer_opening="<answer>",
    answer_closing="</answer>",
    reasoning_opening="<think>",
    reasoning_closing="</think>",
)
"""Answers that may be any text: what the reasoning states is no answer."""


class Verifier:
    """One kind of answer in one form. Subclasses say how an answer is read, and what is wrong.

    A subclass has `name`, `parse` and `wrong`, and of the rest what differs. `wants` is what a
    completion states, in words; `kind` what one gold answer is. `columns` are those that `bring`
    adds to a row.
    """

    name: ClassVar[str]
    wants: ClassVar[str] = "the answer"
    kind: ClassVar[str] = "an answer"
    columns: ClassVar[tuple[str, ...]] = ()
    reads_integers: ClassVar[bool] = False
    """Whether `80.0` in a table, as pandas writes integers, means 80."""
    form: Form = TAGGED

    class Settings(Section):
        """The keys of prepare.verifier_settings."""

    def __init__(self, settings: Any = None) -> None:
        """`settings` are of the class's Settings; none are its defaults."""
        self.settings: Any = self.Settings() if settings is None else settings

    # --- what a kind of answer is -----------------------------------------------------------------

    def parse(self, text: str, row: Row = NO_ROW) -> Any:
        """The value that an answer's text states; None if it states none."""
        raise NotImplementedError

    def equal(self, gold: Any, found: Any) -> bool:
        """Whether two values that `parse` gave are the same answer, in either order."""
        return bool(gold == found)

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        """An answer of the same kind that is none of the gold ones, for the gate's self-test.

        Raises ValueError for a gold that cannot be parsed.
        """
        raise NotImplementedError

    def bring(self, row: Row, answer: str | None) -> tuple[str | None, dict[str, Any]]:
        """What prepare writes of a source's row: its gold answer, and the values of `columns`.

        Raises ValueError for a row that cannot be read.
        """
        return answer, {}

    def require_packages(self) -> None:
        """Raise CannotCheck where a package that it compares with is not installed."""

    # --- the same for all -------------------------------------------------------------------------

    @property
    def description(self) -> str:
        """What a completion is asked for, in words."""
        return f"{self.wants} {self.form.description}"

    @property
    def answer_opening(self) -> str:
        return self.form.answer_opening

    @property
    def reasoning_opening(self) -> str:
        return self.form.reasoning_opening

    def extract(self, completion: str, row: Row = NO_ROW) -> Any:
        """The value of the answer that the completion states.

        None for no answer, several that differ, and one that is left open beside. A place that
        holds no such answer (a heading `#### Step 1`, an `<answer>` that is only mentioned) states
        none, and contradicts none.
        """
        stated = None
        for text in dict.fromkeys(self.form.stated(completion)):
            value = self.parse(text, row)
            if value is None:
                continue
            if stated is not None and value != stated:
                return None
            stated = value
        return stated

    def score(self, completion: str, answer: str | None, row: Row = NO_ROW) -> float:
        """1.0 where the completion states a gold answer and no other, else 0.0."""
        found = self.extract(completion, row)
        if found is None:
            return 0.0
        golds = self.golds(answer, row)
        return float(any(self.equal(gold, found) for gold in golds))

    def is_formatted(self, completion: str, row: Row = NO_ROW) -> bool:
        """Whether the whole completion is in the asked format, and states one answer."""
        in_form = self.form.is_whole(completion.strip())
        return in_form and self.extract(completion, row) is not None

    def golds(self, answer: str | None, row: Row = NO_ROW) -> list[Any]:
        """The values of a row's gold answers; none if one of them cannot be parsed."""
        values = [self.parse(text, row) for text in gold_texts(answer, row)]
        return [] if None in values else values

    def can_parse(self, answer: str | None, row: Row = NO_ROW) -> bool:
        """Whether a row's gold answers are such as this verifier can compare with."""
        return bool(self.golds(answer, row))

    def render(self, answer: str) -> str:
        """A completion that states the answer and nothing else."""
        return f"{self.form.answer_opening}{answer}{self.form.answer_closing}"

    def require_golds(self, answer: str, row: Row) -> list[Any]:
        """The values of the gold answers; ValueError if one of them cannot be parsed."""
        values = self.golds(answer, row)
        if not values:
            raise ValueError(f"not {self.kind}: {answer!r}")
        return values


def column(row: Row, name: str) -> Any:
    """A row's column, or what lies inside one (`reward_model.ground_truth`).

    Raises KeyError if there is none.
    """
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    if inner and isinstance(row.get(outer), Mapping):
        return column(row[outer], inner)
    raise KeyError(name)


def gold_texts(answer: str | None, row: Row) -> list[str]:
    """A row's gold answers, any of which counts."""
    several: list[str] | None = row.get(GOLDS)
    if several:
        return several
    return [] if answer is None else [answer]
