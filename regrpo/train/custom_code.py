"""The user's own code in custom/: imported, asked what it wants, tried before anything is trained.

`regrpo check` does the first two in a child process (`python -m regrpo.train.custom_code`), which
may end or hang without harm; validate calls each reward once, and grpo before its first step.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import Refused

FOLDER = Path("custom")
SECONDS = 10.0
"""How long `check` lets an import take: whoever loads a model does so in the function."""
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL hands to a reward besides the data's columns."""
DATA = ("id", "question", "answer", "solution", "source_row")
"""The columns of any data; prepare.keep brings more."""
THOUGHT = "<think>"
"""How reasoning opens, to TRL's rewards and ours."""
RAISED = (Exception, SystemExit)
"""What code of others may raise; Ctrl-C is not theirs."""


def load(name: str, where: str) -> Callable[..., Any]:
    """The function `<module>:<function>`, or `<file>.py:<function>` as lm-eval reads a file.

    Raises Refused, about `where`, for whatever its import raises, `sys.exit` included, and for a
    name that is not there or is no function.
    """
    module_name, _, attribute = name.partition(":")
    expected = f"a function {attribute} in {module_name}"
    try:
        found: Callable[..., Any] = getattr(_module(module_name), attribute)
    except RAISED as error:
        raise Refused(
            where,
            expected=expected,
            found=describe(error),
            remedy="Correct the name or the module.",
        ) from error
    if not callable(found):
        what = f"{type(found).__name__} {found!r:.60}"
        raise Refused(where, expected=expected, found=what, remedy="Name a function.")
    return found


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None  # noqa: S101  (tells mypy a type, checks no input)
    assert spec.loader is not None  # noqa: S101  (tells mypy a type, checks no input)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe(error: BaseException) -> str:
    """What was raised, and the last line of the user's own code that it went through."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].removesuffix(": ")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if FOLDER.absolute() in Path(frame.filename).absolute().parents:
            place = f"{_shown(frame.filename)}, line {frame.lineno}: "
    return place + text


def _shown(filename: str) -> str:
    path = Path(filename)
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return path.name


# --- what a function asks for ---------------------------------------------------------------------


def is_async(function: Any) -> bool:
    """Whether TRL awaits what the function returns (as trl.trainer.utils.is_async_callable)."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, function.__call__)))


def parameters(function: Any) -> dict[str, Any]:
    """What a function asks for, by name.

    `needs`: parameters without default; `reads`: those that default to None, and what it looks up
    in its **columns; `takes`: all, or None if it takes any.
    """
    try:
        known = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # of C
        return {"needs": [], "reads": [], "takes": None}
    rest = [one.name for one in known if one.kind is one.VAR_KEYWORD]
    named = [one for one in known if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    reads = [one.name for one in named if one.default is None]
    return {
        "needs": [one.name for one in named if one.default is one.empty],
        "reads": reads + _reads(function, rest[0]) if rest else reads,
        "takes": None if rest else [one.name for one in named],
    }


def _reads(function: Any, columns: str) -> list[str]:
    """The names in `columns["name"]` and `columns.get("name")` of a function's source, in order."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return []
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(ast.Name(of), ast.Constant(str(key))) | ast.Call(
                ast.Attribute(ast.Name(of), "get"), [ast.Constant(str(key)), *_]
            ) if of == columns:
                found[key] = None
    return list(found)


# --- rewards, before anything is trained ----------------------------------------------------------


def require_columns(name: str, asked: Mapping[str, Any], columns: Collection[str]) -> None:
    """Refuse a reward (its custom_code.parameters) that wants other columns than the data's."""
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
        asked = parameters(function)
        require_columns(name, asked, columns)
        absent = [one for one in asked["reads"] if one not in (*GIVEN, *columns)]
        note = f"looks up {', '.join(dict.fromkeys(absent))}, which the data lack (prepare.keep)"
        try:
            value = _call(function, rows, texts, encode)[0]
        except Refused as error:
            if not absent:
                raise
            found = f"{error.found}; it {note}"
            raise Refused(
                error.where, expected=error.expected, found=found, remedy=error.remedy
            ) from error
        if absent and FOLDER.name == name.partition(".")[0]:
            notes.append(f"{name} {note}")
        if shown and not value and THOUGHT not in shown:
            thought = [f"{THOUGHT}\nSo.\n</think>\n{shown}", *texts[1:]]
            if (_call(function, rows, thought, encode)[0] or 0) > 0:
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


def _call(
    function: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    texts: list[str],
    encode: Callable[[str], list[int]],
) -> list[float | None]:
    """A guarded reward's values of these completions, in the shapes that TRL 1.16 passes."""
    from transformers import TrainerState

    completions: list[Any] = texts
    if not isinstance(rows[0]["prompt"], str):
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    values = function(
        **columns,
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        completion_ids=[encode(text) for text in texts],
        trainer_state=TrainerState(max_steps=1),
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    if inspect.isawaitable(values):
        values = asyncio.run(_awaited(values))
    found: list[float | None] = values
    return found


async def _awaited(values: Awaitable[Any]) -> Any:
    return await values


# --- in a child process ---------------------------------------------------------------------------


def probe(names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Import each name in a child process: its `parameters`, or {"error": what it raised}.

    Names after one that ends the process, or does not end in time, are left out.
    """
    if not names:
        return {}
    content = [(str(file), file.stat().st_mtime_ns) for file in sorted(FOLDER.rglob("*.py"))]
    state = (str(Path.cwd()), tuple(content), frozenset(os.environ.items()))
    return _probed(tuple(names), state)


@functools.lru_cache(maxsize=2)  # several rules ask, of the same names
def _probed(names: tuple[str, ...], _state: Any) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", __name__, *names]
    with subprocess.Popen(  # noqa: S603  (no shell, and the command is ours)
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        try:
            output = child.communicate(timeout=SECONDS)[0]
            end = f"its import ends the process (exit code {child.returncode})"
        except subprocess.TimeoutExpired:
            child.kill()
            output = child.communicate()[0]
            end = f"its import takes more than {SECONDS:.0f} s: do in the function what is slow"
    found = {}
    for line in output.splitlines():
        name, facts = json.loads(line)
        found[name] = facts
    unanswered = [name for name in names if name not in found]
    if unanswered:
        found[unanswered[0]] = {"error": end}
    return found


def main(names: list[str]) -> None:
    """Print [name, facts] as a line of JSON for each name."""
    answers = os.fdopen(os.dup(1), "w")
    # What the user's code prints is no answer.
    os.dup2(2, 1)
    for name in names:
        try:
            facts = parameters(load(name, name))
        except Refused as error:
            facts = {"error": error.found}
        print(json.dumps([name, facts]), file=answers, flush=True)
    # Not waiting for threads that an import started.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
