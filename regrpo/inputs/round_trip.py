"""A row's texts there and back: rendered, encoded and decoded as training and its rewards do.

What the base's own template and tokenizer do to a text is found here before anything trains. A
model whose tokenizer drops the tags of an answer never earns a reward, and nothing else says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from regrpo.core import conversation
from regrpo.core.answers.protocol import Verifier
from regrpo.core.conversation import Prompt
from regrpo.core.files import in_batches
from regrpo.core.rendering import Messages, Render
from regrpo.core.text import cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
SHOWN = 60
"""Characters of a text that a fault shows."""
OPENINGS = ("<think>", "<thinking>", "<reasoning>")
"""Tags that templates of reasoning models open in front of the completion."""


@dataclass(frozen=True)
class RoundTrip:
    """What the rows of a split become under one tokenizer, template and set of stop tokens.

    `cutter` shortens prompts as prepare's limit says.
    """

    tokenizer: PreTrainedTokenizerBase
    style: str
    verifier: Verifier | None
    renderer: Render
    cutter: Callable[[Sequence[Prompt]], list[Prompt]]
    stops: frozenset[int]

    def columns(self, split: str, rows: Sequence[Row]) -> list[Row]:
        """Of each row its `prompt_tokens`, `answer_tokens` (of the shortest right completion, where
        there is one), and by the name of a derived column what is wrong.

        Raises Refused for a template that does not render.
        """
        found: list[Row] = []
        for batch in in_batches(rows, conversation.AT_ONCE, conversation.CHARACTERS):
            columns: list[Row] = [{} for _ in batch]
            found += columns
            for row, column in zip(batch, columns, strict=True):
                column["special"] = self._special(row)
            asked = self._prompts(batch, columns)
            self._answers(batch, columns)
            if split == "sft":
                self._turns(batch, columns, asked)
        return found

    # --- what every row is looked at for ----------------------------------------------------------

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        """Matches the special tokens as text."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special}
        special |= set(self.tokenizer.all_special_tokens)
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    # Read once: a tokenizer looks them up by name each time.
    @cached_property
    def _unknown_id(self) -> int | None:
        return self.tokenizer.unk_token_id  # type: ignore[no-any-return]

    @cached_property
    def _beginning_id(self) -> int | None:
        return self.tokenizer.bos_token_id  # type: ignore[no-any-return]

    def _special(self, row: Row) -> str | None:
        """Which texts hold special tokens, and which; what a question holds could end its turn."""
        found = []
        for name in ("question", "answer", "solution"):
            tokens = sorted(set(self._tokens.findall(row[name] or "")))
            if tokens:
                found.append(f"{name} holds {', '.join(tokens)}")
        return "; ".join(found) or None

    def _prompts(self, rows: Sequence[Row], columns: Sequence[Row]) -> dict[int, Row]:
        """Look at the prompts; returns those there are, rendered and encoded, by position."""
        places = [place for place, row in enumerate(rows) if row["prompt"]]
        prompts = self.cutter([rows[place]["prompt"] for place in places])
        texts = conversation.render(prompts, self.renderer)
        encoded = conversation.encode(self.tokenizer, texts, self.style == "chat")
        asked = {}
        for place, prompt, text, ids in zip(places, prompts, texts, encoded, strict=True):
            # The model reads tokens: how their text would be tidied up is of no matter.
            back = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            column = columns[place]
            column["prompt_tokens"] = len(ids)
            column["template"] = self._left_out(prompt, text)
            column["framing"] = None if column["special"] else self._framing(ids)
            column["unknown"] = self._unknown("prompt", text, ids)
            if not column["unknown"] and not column["special"]:
                parts = [(said, back) for said in _texts(prompt)]
                column["changed"] = _first_change("prompt", parts)
            asked[place] = {"prompt": prompt, "text": text, "ids": ids}
        return asked

    def _answers(self, rows: Sequence[Row], columns: Sequence[Row]) -> None:
        """Look at gold answers and solutions as a model would write them."""
        given = []
        for place, row in enumerate(rows):
            targets = self._targets(row, columns[place])
            given += [(place, name, text) for name, text in targets.items()]
        encoded = conversation.encode(self.tokenizer, [text for _, _, text in given], True)
        decoded = conversation.decode(self.tokenizer, encoded)
        for (place, name, text), ids, back in zip(given, encoded, decoded, strict=True):
            column = columns[place]
            if self.verifier:
                column["answer_tokens"] = min(len(ids), column.get("answer_tokens", len(ids)))
            unknown = self._unknown(name, text, ids)
            lost = self._lost(name, text, back, rows[place])
            if unknown:
                column["unknown"] = column.get("unknown") or unknown
            elif lost:
                column["lost"] = column.get("lost") or lost
            else:
                column["changed"] = column.get("changed") or _first_change(name, [(text, back)])

    def _targets(self, row: Row, column: Row) -> Row:
        """What training shows as a completion of the row, by name; empty where it cannot."""
        targets = {}
        if self.verifier and self.verifier.can_parse(row["answer"], row):
            targets["answer"] = self.verifier.render(row["answer"])
        if row["solution"] is not None and "solution holds" not in (column["special"] or ""):
            targets["solution"] = row["solution"]
        return targets

    def _unknown(self, name: str, text: str, ids: Sequence[int]) -> str | None:
        """How many of the tokens are the unknown one, and for which characters it stands."""
        unknown = self._unknown_id
        if unknown is None or unknown not in ids:
            return None
        found = f"{name}: {ids.count(unknown)} of {len(ids)} tokens are {self.tokenizer.unk_token}"
        if not self.tokenizer.is_fast:
            return found
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pieces = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        lost = {text[first:last] for one, (first, last) in pieces if one == unknown}
        return f"{found} ({cut(' '.join(sorted(lost)), SHOWN)})"

    def _lost(self, name: str, text: str, back: str, row: Row) -> str | None:
        """Whether the reward of a text that earns one is lost, or its form."""
        verifier = self.verifier
        if verifier is None or back == text:
            return None
        gold = row["answer"]
        scored = verifier.score(text, gold, row) <= verifier.score(back, gold, row)
        formed = verifier.is_formatted(text, row) <= verifier.is_formatted(back, row)
        if scored and formed:
            return None
        return f"{name} {cut(text, SHOWN)!r} comes back as {cut(back, SHOWN)!r}"

    # --- prompts ----------------------------------------------------------------------------------

    def _framing(self, ids: Sequence[int]) -> str | None:
        """A beginning-of-sequence token that stands twice, or an end of the prompt's own."""
        beginnings = ids.count(self._beginning_id)
        if beginnings > 1:
            return f"{beginnings} times {self.tokenizer.bos_token}"
        if len(ids) > 1 and ids[-1] in self.stops:
            return f"ends with {self.tokenizer.convert_ids_to_tokens(ids[-1])}"
        return None

    def _left_out(self, prompt: Prompt, text: str) -> str | None:
        """What the template leaves out of a prompt, or the reasoning that it opens itself."""
        if isinstance(prompt, str):
            return None
        for said in _texts(prompt):
            if said not in text and _packed(said) not in _packed(text):
                return f"{cut(said, SHOWN)!r} of the prompt is not written"
        scaffold = ""
        if _texts(prompt):
            _, _, scaffold = text.rpartition(_texts(prompt)[-1])
        for tag in OPENINGS:
            if scaffold.count(tag) > scaffold.count(tag.replace("<", "</")):
                return f"the generation prompt opens {tag}"
        return None

    # --- completions in their place, as sft trains them -------------------------------------------

    def _turns(self, rows: Sequence[Row], columns: Sequence[Row], asked: dict[int, Row]) -> None:
        """Look at the completions after their prompts, and at the tokens that end them."""
        given = []
        for place, row in enumerate(rows):
            if place in asked:
                targets = self._targets(row, columns[place])
                given += [(place, name, text) for name, text in targets.items()]
        texts = self._completed([(asked[place]["prompt"], text) for place, _, text in given])
        encoded = conversation.encode(self.tokenizer, texts, self.style == "chat")
        for (place, name, text), whole, ids in zip(given, texts, encoded, strict=True):
            column = columns[place]
            dropped = self._dropped(name, text, asked[place]["text"], whole)
            if dropped:
                column["template"] = column.get("template") or dropped
                continue
            completion = ids[_common(asked[place]["ids"], ids) :]
            turn = list(takewhile(lambda one: one not in self.stops, completion))
            if len(turn) == len(completion):
                end = self.tokenizer.decode(completion[-1:])
                column["unended"] = f"{name} ends with {end!r}"
            (back,) = conversation.decode(self.tokenizer, [turn])
            lost = self._lost(f"{name} in its place,", text, back, rows[place])
            column["lost"] = column.get("lost") or lost

    def _completed(self, pairs: Sequence[tuple[Prompt, str]]) -> list[str]:
        """Prompts with their completions, as SFTTrainer renders them (TRL 1.16)."""
        if self.style == "chat":
            turns: list[Messages] = []
            for prompt, text in pairs:
                assert not isinstance(prompt, str)  # noqa: S101  (tells mypy a type, checks no input)
                turns.append([*prompt, {"role": "assistant", "content": text}])
            return self.renderer(turns, False) if turns else []
        return [f"{prompt}{text}{self.tokenizer.eos_token}" for prompt, text in pairs]

    def _dropped(self, name: str, text: str, prompt: str, whole: str) -> str | None:
        """What a template does to a prompt or an answer once that follows."""
        if self.style != "chat":
            return None
        if not whole.startswith(prompt):
            same = _common(prompt, whole)
            return f"before an answer the prompt's end {cut(prompt[same:], SHOWN)!r} is not written"
        # White space around reasoning is the template's own affair; up to the turn's end, more is
        # not: sft would teach it.
        written = _packed(whole[len(prompt) :])
        before, said, after = written.partition(_packed(text))
        if not said or before or self._tokens.split(after)[0]:
            return f"{name} {cut(text, SHOWN)!r} becomes {cut(whole[len(prompt) :], SHOWN)!r}"
        return None


def _texts(prompt: Prompt) -> list[str]:
    """The texts that must be found in a decoded prompt."""
    if isinstance(prompt, str):
        return [prompt.strip()]
    said = [(message["content"] or "").strip() for message in prompt]
    return [text for text in said if text]


def _packed(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def _first_change(name: str, pairs: Sequence[tuple[str, str]]) -> str | None:
    """Where the first text that is not in what came back departs from it."""
    for text, back in pairs:
        said = text.strip()
        if said in back:
            continue
        return f"{name} {cut(said, SHOWN)!r} comes back as {cut(back.strip(), SHOWN)!r}"
    return None


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
