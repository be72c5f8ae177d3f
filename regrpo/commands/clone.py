"""The clone that a command works in: the current folder, whose `stages` and `custom` it imports."""

from __future__ import annotations

import sys
from pathlib import Path

from regrpo.core.errors import CannotCheck


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
