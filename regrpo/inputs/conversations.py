"""Chat turns as data sets hold them, and the question that they end with.

A cell may be a list of {role, content} (Parquet's list<struct>, JSON), the same written as text, or
ShareGPT's {from, value}.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

Turn = dict[str, str]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""Roles as data sets name them, and as chat templates do."""
FLATTEN = (
    "Flatten it before: one text a row, as row['question'] = row['messages'][-1]['content'], or "
    "turns by system, user and assistant whose content is text, the last one the question or its "
    "answer."
)
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


class UnreadableRow(ValueError):
    """A row that a format cannot read, with what to do about it."""

    def __init__(self, found: str, remedy: str = FLATTEN) -> None:
        super().__init__(found)
        self.remedy = remedy


def turns_in(value: Any) -> list[Turn] | None:
    """The turns of a conversation as {role, content}, or None for a value that is none.

    Raises UnreadableRow for turns of another kind: of tools, of images, without text.
    """
    if isinstance(value, str) and _WRITTEN.match(value):
        value = _parse(value)
    if isinstance(value, Mapping) and value.keys() & {"role", "from"}:
        value = _rows(value)
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(turn, Mapping) for turn in value):
        return None
    return [_turn(turn) for turn in value]


def _rows(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A turn alone, or turns as lists side by side, as `datasets` writes a sequence of structs."""
    if not all(isinstance(part, list) for part in value.values()):
        return [value]
    return [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]


def _parse(text: str) -> Any:
    """JSON, or the text that Python (so pandas) writes of a list."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise UnreadableRow("text that begins as chat turns and is no JSON") from error


def _turn(turn: Mapping[str, Any]) -> Turn:
    role, content = turn.get("role") or turn.get("from"), turn.get("content")
    if content is None:
        content = turn.get("value")
    if role not in ROLES:
        raise UnreadableRow(f"a turn by {role!r}")
    if turn.get("tool_calls"):
        raise UnreadableRow("a turn that calls tools")
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise UnreadableRow(f"a turn by {role} without text")
    return {"role": ROLES[role], "content": content}


def _joined(parts: list[Any]) -> str | None:
    """The text of content that is parts of type text. Returns None for any other part."""
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(map(str, texts))


def ask(turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """The turns up to the last question, and the answer behind it if there is one.

    Raises UnreadableRow where no turn of a user's stands last, or before an assistant's.
    """
    answer = None
    if turns[-1]["role"] == "assistant":
        answer = turns[-1]["content"]
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "user":
        raise UnreadableRow("chat turns that do not end with a user's, or with its answer")
    return turns, answer


def transcript(turns: list[Turn]) -> str:
    """A conversation's text without its system prompt; of a single turn, the text alone."""
    said = [turn for turn in turns if turn["role"] != "system"]
    if len(said) == 1:
        return said[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in said)
