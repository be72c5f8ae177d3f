"""What the user's code is and asks for, found out in a child process: an import may end or hang it.

`regrpo check` asks, before anything runs. The child is `python -m regrpo.core.custom.probe`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from regrpo.core.custom.loading import FOLDER, load
from regrpo.core.errors import RegrpoError
from regrpo.core.files import Json
from regrpo.core.verifiers import get_verifier

SECONDS = 10.0
"""How long `check` lets an import take: whoever loads a model does so in the function."""


def parameters(function: Any) -> Json:
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


# --- in a child process ---------------------------------------------------------------------------


def probe(names: Collection[str]) -> dict[str, Json]:
    """Import each name in a child process: its `parameters`, or {"error": what it raised}.

    Names after one that ends the process, or does not end in time, are left out.
    """
    return _asked(dict.fromkeys(names))


def probe_verifier(name: str, settings: Mapping[str, Any]) -> Json:
    """The `columns` of the user's verifier with these settings; or `error`, as in `probe`."""
    return _asked({name: dict(settings)})[name]


def _asked(questions: Mapping[str, Json | None]) -> dict[str, Json]:
    if not questions:
        return {}
    content = [(str(file), file.stat().st_mtime_ns) for file in sorted(FOLDER.rglob("*.py"))]
    state = (str(Path.cwd()), tuple(content), frozenset(os.environ.items()))
    return _answered(json.dumps(questions, default=str), state)


@functools.lru_cache(maxsize=4)  # several rules ask, of the same names
def _answered(questions: str, _state: Any) -> dict[str, Json]:
    command = [sys.executable, "-m", __name__, questions]
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
    unanswered = [name for name in json.loads(questions) if name not in found]
    if unanswered:
        found[unanswered[0]] = {"error": end}
    return found


def _facts(name: str, settings: Json | None) -> Json:
    if settings is None:
        return parameters(load(name, name))
    verifier = get_verifier(name, settings)
    return {"columns": list(verifier.columns if verifier else ())}


def main(questions: str) -> None:
    """Print [name, facts] as a line of JSON for each name."""
    answers = os.fdopen(os.dup(1), "w")
    # What the user's code prints is no answer.
    os.dup2(2, 1)
    for name, settings in json.loads(questions).items():
        try:
            facts = _facts(name, settings)
        except RegrpoError as error:
            facts = {"error": error.found}
            if settings is not None:
                facts |= {part: getattr(error, part) for part in ("where", "expected", "remedy")}
        print(json.dumps([name, facts]), file=answers, flush=True)
    # Not waiting for threads that an import started.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
