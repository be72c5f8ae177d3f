"""The clone that a command works in: the folder whose `stages` and `custom` it imports."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from regrpo.compare import promotion_rules
from regrpo.core.errors import CannotCheck
from regrpo.core.profiles import SECTIONS
from regrpo.core.settings import Section


def enter() -> None:
    """Put the clone's root, the current folder, first on sys.path, as `python -m` does.

    The console script does not, and `stages` and `custom` belong to a clone: neither is installed.
    Raises CannotCheck where the current folder is no clone's root.
    """
    root = Path.cwd()
    missing = [name for name in ("dvc.yaml", "stages/__init__.py") if not (root / name).is_file()]
    if missing:
        raise CannotCheck(
            "current folder",
            expected="the root of a clone of regrpo",
            found=f"{root.name}/, without {' and '.join(missing)}",
            remedy="Change to the clone's root and run the command again.",
        )
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))


def section_models() -> dict[str, type[Section]]:
    """The parameters of each section: of the stages, and of `regrpo promote`."""
    models: dict[str, type[Section]] = {}
    for name in SECTIONS:
        if name == "promote":
            models[name] = promotion_rules.Params
        else:
            models[name] = importlib.import_module(f"stages.{name}").Params
    return models
