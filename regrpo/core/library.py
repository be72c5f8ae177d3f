"""A library's configuration classes: their fields, types and defaults.

They are read from the installed source text, since importing TRL takes five seconds and a profile
is checked in one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import typing
from functools import cache
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck

BUILTINS = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, tuple)}
TYPING = {
    name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union", "Callable")
}


@cache
def library_fields(library: str) -> dict[str, Any]:
    """Field names and types of a dataclass ("package.module:Class") and of its bases.

    An annotation that is not made of builtins and typing's names counts as Any. Raises CannotCheck
    if the package is not installed.
    """
    return {name: _annotation(node.annotation) for name, node in _fields(library).items()}


@cache
def library_defaults(library: str) -> dict[str, Any]:
    """Defaults of a dataclass and of its bases; one that is no literal (a factory) is left out."""
    defaults = {}
    for name, node in _fields(library).items():
        try:
            defaults[name] = ast.literal_eval(_default(node))
        except ValueError:
            continue
    return defaults


def constructor_parameters(library: str) -> set[str]:
    """The names that a class's own `__init__` takes, without importing it."""
    module, _, class_name = library.partition(":")
    for node in _classes(_parse(module))[class_name].body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
    return set()


def library_class(library: str) -> Any:
    """The configuration class itself, imported."""
    module, _, name = library.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def _fields(library: str) -> dict[str, ast.AnnAssign]:
    """The annotated assignments in the bodies of a class and its bases, by name."""
    module, _, class_name = library.partition(":")
    tree = _parse(module)
    classes = _classes(tree)
    if class_name not in classes:  # a name that the module only passes on: a mixin without fields
        return {}
    fields: dict[str, ast.AnnAssign] = {}
    for base in classes[class_name].bases:
        source = _imported_from(tree, base.id, module) if isinstance(base, ast.Name) else None
        if source:
            fields |= _fields(source)
    for node in classes[class_name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = node
    return fields


def _parse(module: str) -> ast.Module:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CannotCheck(
            package, expected="the package installed", found="nothing", remedy="Run `make install`."
        )
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _imported_from(tree: ast.Module, name: str, module: str) -> str | None:
    """Where a base class comes from ("package.module:Class"). None if it is not imported."""
    if name == "TrainingArguments":  # TRL imports it from transformers itself, which loads lazily
        return "transformers.training_args:TrainingArguments"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or name not in [one.name for one in node.names]:
            continue
        parent = module.split(".")[: -node.level] if node.level else []
        return ".".join([*parent, node.module or ""]).rstrip(".") + f":{name}"
    return None


def _annotation(node: ast.expr) -> Any:
    quoted = isinstance(node, ast.Constant) and isinstance(node.value, str)
    text = ast.literal_eval(node) if quoted else ast.unparse(node)
    try:
        # The text is the installed library's own; names beyond these raise NameError.
        return eval(text, {"__builtins__": {}}, TYPING | BUILTINS)  # noqa: S307  (see above)
    except (NameError, TypeError, AttributeError):
        return Any


def _default(node: ast.AnnAssign) -> ast.expr:
    """The expression of a field's default. Raises ValueError if it has none."""
    if node.value is None:
        raise ValueError
    if isinstance(node.value, ast.Call):  # field(default=…)
        for keyword in node.value.keywords:
            if keyword.arg == "default":
                return keyword.value
    return node.value
