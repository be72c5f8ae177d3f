"""The house: which package may import which, and what only one of them may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.projects import ROOT

ORDER = (
    "core",
    "inputs",
    "train",
    "evaluate",
    "records",
    "tracking",
    "report",
    "audit",
    "compare",
    "plan",
    "release",
    "commands",
)
"""A package imports from those before it, never from one behind it."""
NOT_FOR_STAGES = ("audit", "compare", "plan", "release", "commands")
SOURCES = sorted([*(ROOT / "regrpo").rglob("*.py"), *(ROOT / "stages").rglob("*.py")])


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, as a dotted name.

    Of `from a import b` also a.b.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str | None:
    """`core` of regrpo.core.files; None for what lies directly in regrpo, or elsewhere."""
    parts = module.split(".")
    if parts[0] == "regrpo" and len(parts) > 1 and parts[1] in ORDER:
        return parts[1]
    return None


def test_every_package_has_its_place_in_the_order() -> None:
    folders = {path.name for path in (ROOT / "regrpo").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_from_those_before_it(package: str) -> None:
    upward = []
    for file in (ROOT / "regrpo" / package).rglob("*.py"):
        for module in imports(file):
            other = package_of(module)
            if other and ORDER.index(other) > ORDER.index(package):
                upward.append(f"{file.relative_to(ROOT)} imports {module}")
            if module.startswith("stages") and package != "commands":
                upward.append(f"{file.relative_to(ROOT)} imports {module}")
    assert upward == []


def test_only_tracking_imports_mlflow() -> None:
    importers = {
        file
        for file in SOURCES
        if any(module.split(".")[0] == "mlflow" for module in imports(file))
    }
    elsewhere = [file.relative_to(ROOT) for file in importers if "tracking" not in file.parts]
    assert importers, "the test sees the imports"
    assert elsewhere == []


def test_a_stage_imports_no_other_stage_and_nothing_that_comes_after_a_run() -> None:
    wrong = []
    for file in sorted((ROOT / "stages").glob("*.py")):
        for module in imports(file):
            if module.startswith("stages.") or package_of(module) in NOT_FOR_STAGES:
                wrong.append(f"{file.name} imports {module}")
    assert wrong == []


@pytest.mark.parametrize("package", ORDER)
def test_a_package_says_what_it_is_for_and_re_exports_nothing(package: str) -> None:
    tree = ast.parse((ROOT / "regrpo" / package / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1, "a docstring and nothing else"


@pytest.mark.parametrize("package", [name for name in ORDER if name != "commands"])
def test_a_package_says_where_each_of_its_modules_stands(package: str) -> None:
    folder = ROOT / "regrpo" / package
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    words = set(re.findall(r"\w+", said))
    missing = [file.stem for file in folder.glob("*.py") if file.stem not in words | {"__init__"}]
    assert missing == []
