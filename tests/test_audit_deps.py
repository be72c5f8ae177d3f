"""`make audit-deps` calls a set of packages clean only if somebody who knows has said so."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.projects import ROOT

Answer = Callable[[str, str], tuple[int, str]]
"""Of a service and the requirements' text: pip-audit's exit code and output."""
VULNERABLE = [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": []}]


def package(line: str, **more: Any) -> dict[str, Any]:
    name, _, version = line.partition("==")
    return {"name": name, "version": version, "vulns": [], **more}


def skipped(line: str) -> dict[str, Any]:
    return {"name": line.partition("==")[0], "skip_reason": "not found on PyPI"}


def report(*dependencies: dict[str, Any]) -> tuple[int, str]:
    return 0, json.dumps({"dependencies": dependencies, "fixes": []})


def knowing(line: str) -> dict[str, Any]:
    """A package as a service with data tells of it: only the canary is vulnerable."""
    return package(line, vulns=VULNERABLE if line == "jinja2==2.10" else [])


def whole(_: str, text: str) -> tuple[int, str]:
    return report(*map(knowing, text.split()))


def without_data(_: str, text: str) -> tuple[int, str]:
    return report(*map(package, text.split()))


def without_packages(_: str, text: str) -> tuple[int, str]:
    return report(*map(skipped, text.split()))


def without_network(*_: str) -> tuple[int, str]:
    return 1, ""


def with_a_gap(_: str, text: str) -> tuple[int, str]:
    return report(*[skipped(line) if line == "b==2" else knowing(line) for line in text.split()])


def without_a_package(_: str, text: str) -> tuple[int, str]:
    return report(*[knowing(line) for line in text.split() if line != "b==2"])


def with_a_finding(_: str, text: str) -> tuple[int, str]:
    vulnerable = ("jinja2==2.10", "b==2")
    found = [package(line, vulns=VULNERABLE if line in vulnerable else []) for line in text.split()]
    return 1, report(*found)[1]


def only_osv(service: str, text: str) -> tuple[int, str]:
    return whole(service, text) if service == "osv" else without_data(service, text)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (whole, 0, "no known vulnerability in 2 packages (says pypi)"),
        (only_osv, 0, "no known vulnerability in 2 packages (says osv)"),
        (with_a_finding, 1, "b==2: PYSEC-2019-217 (fixed in 2.10.1)"),
        (without_data, 2, "it knows no vulnerability of jinja2==2.10"),
        (without_packages, 2, "it knows no vulnerability of jinja2==2.10"),
        (without_network, 2, "Max retries exceeded"),
        (with_a_gap, 2, "1 packages unknown: b==2"),
        (without_a_package, 2, "1 packages unknown: b==2"),
    ],
)
def test_the_exit_code_tells_clean_from_vulnerable_and_from_not_checked(
    answer: Answer,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a==1\nb==2\n")

    def pip_audit(command: list[str], **_: Any) -> SimpleNamespace:
        text = Path(command[command.index("--requirement") + 1]).read_text()
        ended, out = answer(command[command.index("--vulnerability-service") + 1], text)
        return SimpleNamespace(
            stdout=out, stderr="Traceback\nMax retries exceeded", returncode=ended
        )

    monkeypatch.setattr(subprocess, "run", pip_audit)
    spec = importlib.util.spec_from_file_location("audit_deps", ROOT / ".ci/audit_deps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(constraints) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert ("COULD NOT CHECK" in printed.err) == (code == 2)
