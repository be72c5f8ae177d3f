"""The user's rewards before anything is trained: what they want, and one call of each.

`regrpo check` asks what they want (regrpo.core.custom); validate calls each reward once, and grpo
before its first step.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from regrpo.core.answers.protocol import Verifier
from regrpo.core.custom.loading import FOLDER
from regrpo.core.custom.probe import parameters
from regrpo.core.errors import Refused

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL hands to a reward besides the data's columns."""
DATA = ("id", "question", "answer", "solution", "source_row")
"""The columns of any data; prepare.keep brings more."""
THOUGHT = "<think>"
"""How reasoning opens, to TRL's rewards and ours."""


def is_async(function: Any) -> bool:
    """Whether TRL awaits what the function returns (as trl.trainer.utils.is_async_callable)."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, function.__call__)))


def require_columns(name: str, asked: Mapping[str, Any], columns: Collection[str]) -> None:
    """Refuse a reward (by its `parameters`) that wants other columns than the data's."""
    given = [*GIVEN, *columns]
    where = f"grpo.reward_funcs: {name}"
    missing = [one for one in asked["needs"] if one not in given]
    if missing:
        listed = ", ".join(missing)
        raise Refused(
            where,
            expected=f"a reward of columns that the data bring: {', '.join(columns)}",
            found=f"it needs {listed}",
            remedy=f"Set prepare.keep: [{listed}], if the source has it.",
        )
    if asked["takes"] is not None:
        left = [one for one in given if one not in asked["takes"]]
        if left:
            raise Refused(
                where,
                expected="a function that ends in **columns: TRL passes every column by name",
                found=f"none, so that it cannot be given {', '.join(left)}",
                remedy="Add **columns to its parameters.",
            )


def try_out(
    rewards: Mapping[str, Callable[..., Any]],
    verifier: Verifier | None,
    rows: Sequence[Mapping[str, Any]],
    encode: Callable[[str], list[int]],
) -> list[str]:
    """Call each guarded reward once, as TRL does, on these rows with stand-in completions.

    The first row is answered with its solution, the last beside the format and with nothing.
    Returns what is no fault and may not be meant: a column that is looked up and not there, a
    reward of reasoning that the solution lacks. Raises Refused as the rewards do, and
    `require_columns`.
    """
    rows = [rows[0], rows[-1], rows[-1]]
    shown = _shown_answer(verifier, rows[0])
    texts = [shown or "I do not know.", "I do not know.", ""]
    columns = [name for name in rows[0] if name != "prompt"]
    notes = []
    for name, function in rewards.items():
        is_custom = name.partition(".")[0] == FOLDER.name
        call = functools.partial(_call, function, rows, encode, _trainer_state(is_custom))
        asked = parameters(function)
        require_columns(name, asked, columns)
        absent = [one for one in asked["reads"] if one not in (*GIVEN, *columns)]
        note = f"looks up {', '.join(dict.fromkeys(absent))}, which the data lack (prepare.keep)"
        try:
            value = call(texts)[0]
        except Refused as error:
            if not absent:
                raise
            found = f"{error.found}; it {note}"
            raise Refused(
                error.where, expected=error.expected, found=found, remedy=error.remedy
            ) from error
        if absent and is_custom:
            notes.append(f"{name} {note}")
        if shown and not value and THOUGHT not in shown:
            thought = [f"{THOUGHT}\nSo.\n</think>\n{shown}", *texts[1:]]
            if (call(thought)[0] or 0) > 0:
                notes.append(
                    f"{name} pays for reasoning ({THOUGHT}…</think>) and gives {value} to the "
                    f"answer of row {rows[0]['id']}, as the data show it: sft teaches none"
                )
    return notes


def _shown_answer(verifier: Verifier | None, row: Mapping[str, Any]) -> str | None:
    """How the data answer a row: its solution, or else its answer as the verifier wants it."""
    if row["solution"] is None and verifier and row["answer"] is not None:
        return verifier.render(row["answer"])
    solution: str | None = row["solution"]
    return solution


def _trainer_state(is_custom: bool) -> Any:
    """What a reward of the user's may look at; importing it takes a second, and no other does."""
    if not is_custom:
        return None
    from transformers import TrainerState

    return TrainerState(max_steps=1)


def _call(
    function: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    encode: Callable[[str], list[int]],
    state: Any,
    texts: list[str],
) -> list[float | None]:
    """A guarded reward's values of these completions, in the shapes that TRL 1.16 passes."""
    completions: list[Any] = texts
    if not isinstance(rows[0]["prompt"], str):
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    values = function(
        **columns,
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        completion_ids=[encode(text) for text in texts],
        trainer_state=state,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    if inspect.isawaitable(values):
        values = asyncio.run(_awaited(values))
    found: list[float | None] = values
    return found


async def _awaited(values: Awaitable[Any]) -> Any:
    return await values
