"""Functions and classes of custom/ by name, `custom.<module>:<name>`.

custom/formats.py and custom/verifiers.py stand alone: prepare, sft, select and model_card depend on
these and on nothing else of custom/, so they may import nothing of the repository but regrpo.core,
on which every stage depends. They are loaded by their path: custom/__init__.py is not run.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck, Refused, RegrpoError, parsing

FOLDER = Path("custom")
FORMATS, VERIFIERS = "custom.formats", "custom.verifiers"
ALONE = {FORMATS: Path("custom/formats.py"), VERIFIERS: Path("custom/verifiers.py")}
"""The modules that stand alone, and where each lies."""
SHARED = "regrpo.core"
OURS = ("regrpo", "stages", "custom")
RAISED = (Exception, SystemExit)
"""What code of others may raise; Ctrl-C is not theirs."""


def load(name: str, where: str, what: str = "function") -> Any:
    """The function `<module>:<function>`, or `<file>.py:<function>` as lm-eval reads a file.

    `what` it is to be, in words. Raises Refused, about `where`, for whatever its import raises,
    `sys.exit` included, and for a name that is not there or cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    expected = f"a {what} {attribute} in {module_name}"
    try:
        found = getattr(_module(module_name), attribute)
    except RegrpoError:
        raise
    except RAISED as error:
        raise Refused(
            where,
            expected=expected,
            found=describe(error),
            remedy="Correct the name or the module.",
        ) from error
    if not callable(found):
        shown = f"{type(found).__name__} {found!r:.60}"
        raise Refused(where, expected=expected, found=shown, remedy=f"Name a {what}.")
    return found


def load_alone(name: str, module: str, where: str, what: str) -> Any:
    """`load` of a name that must lie in one of the modules that stand alone."""
    if name.partition(":")[0] != module:
        raise Refused(
            where,
            expected=f"{module}:<{what}>",
            found=name,
            remedy=f"Put it into {ALONE[module]}, which DVC watches for the stages that use it.",
        )
    return load(name, where, what)


def _module(name: str) -> Any:
    if name in ALONE:
        require_alone(ALONE[name])
        return sys.modules.get(name) or _from_file(name, ALONE[name])
    if name.endswith(".py"):
        return _from_file(Path(name).stem, Path(name), known=False)
    return importlib.import_module(name)


def _from_file(name: str, file: Path, known: bool = True) -> Any:
    """The module of a file; `known` ones are found in sys.modules, as dataclasses look there."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # noqa: S101  (tells mypy a type, checks no input)
    assert spec.loader is not None  # noqa: S101  (tells mypy a type, checks no input)
    module = importlib.util.module_from_spec(spec)
    if known:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known:
            del sys.modules[name]
        raise
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


# --- what stands alone ----------------------------------------------------------------------------


def require_alone(file: Path) -> None:
    """Refuse a file of ALONE that imports what lies in the repository, but regrpo.core.

    Its source is read, not run. Raises CannotCheck if it is not there.
    """
    if not file.is_file():
        raise CannotCheck(
            str(file),
            expected="this file, which DVC watches for the stages that use it",
            found="nothing there",
            remedy=f"Take the project's own, or make an empty one: `touch {file}`.",
        )
    with parsing(file, "Python", "Mend the file."):
        tree = ast.parse(file.read_bytes(), str(file))
    for node in ast.walk(tree):
        for name in _imported(node):
            if _lies_here(name):
                raise Refused(
                    f"{file}, line {getattr(node, 'lineno', 1)}",
                    expected=f"no import of the repository's code but {SHARED}, since DVC watches "
                    "this file alone",
                    found=f"an import of {name}",
                    remedy="Write what it needs into this file.",
                )


def require_all_alone() -> None:
    """The same for each file of ALONE."""
    for file in ALONE.values():
        require_alone(file)


def _imported(node: ast.AST) -> Iterator[str]:
    """The names that an import statement imports, those of relative ones with their dots."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _lies_here(module: str) -> bool:
    """Whether a module is the repository's own, and not of regrpo.core."""
    if f"{module}.".startswith(f"{SHARED}."):
        return False
    top = module.partition(".")[0]
    here = Path(f"{top}.py").is_file() or Path(top, "__init__.py").is_file()
    return top in ("", *OURS) or here
