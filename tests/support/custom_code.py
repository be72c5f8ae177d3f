"""custom/ of a test's own, and what is wrong with a module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.projects import ROOT

BROKEN = {
    'import os\nKEY = os.environ["JUDGE_KEY"]': "line 2: KeyError: 'JUDGE_KEY'",
    'open("no/such/prompt.txt")': "line 1: FileNotFoundError: [Errno 2] No such file",
    "import no_such_package": "line 1: ModuleNotFoundError: No module named 'no_such_package'",
    "undefined_name": "line 1: NameError: name 'undefined_name' is not defined",
    "def judged(:": "line 1: SyntaxError: ",
    "import sys\nsys.exit(3)": "line 2: SystemExit: 3",
    "def f():\n    raise RuntimeError('no\\nGPU')\nf()": "line 2: RuntimeError: no GPU",
    "1 / 0": "line 1: ZeroDivisionError",
}
"""Modules whose import fails, and what is said of it."""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes custom/judge.py, or another module, in a folder of its own, where the test stands.

    formats.py and verifiers.py are the examples that ship.
    """

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "custom"]:
            del sys.modules[name]

    def write(source: str, module: str = "judge") -> None:
        forget()
        (tmp_path / f"custom/{module}.py").write_text(source)

    (tmp_path / "custom").mkdir()
    (tmp_path / "custom/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for module in ("formats", "verifiers"):
        write((ROOT / f"custom/{module}.py").read_text(), module)
    yield write
    forget()


def clock_rows(count: int) -> list[dict[str, Any]]:
    """Rows that custom/formats.py's example reads, no two alike."""
    rows = []
    for index in range(count):
        start, add = index * 37 % 1440, 10 + index % 50
        end = (start + add) % 1440
        rows.append(
            {
                "start": {"hour": start // 60, "minute": start % 60},
                "add": add,
                "end": f"{end // 60}:{end % 60:02}",
            }
        )
    return rows
