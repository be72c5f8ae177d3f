"""Known vulnerabilities of the packages in constraints.txt, by pip-audit (`make audit-deps`).

pip-audit runs in a throwaway environment of its own (uv's), and asks PyPI, or OSV if that knows
nothing. Exit code 0: none is known; 1: some are, and are listed; 2: it could not be checked.

pip-audit says "No known vulnerabilities found", and 0, also where the index has no such package or
no data on vulnerabilities (a mirror). So a service is believed only if it knows a vulnerability of
CANARY, and each package has to be among its answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PIP_AUDIT = "pip-audit==2.10.1"
CANARY = "jinja2==2.10"  # CVE-2019-10906 and later ones
SERVICES = ("pypi", "osv")
SECONDS = 900
"""OSV is asked package by package."""


def ask(service: str, requirements: Path) -> list[dict[str, Any]] | str:
    """pip-audit's answer on each package, or why there is none."""
    command = [str(Path(sys.executable).with_name("uv")), "tool", "run", "--quiet"]
    command += ["--from", PIP_AUDIT, "pip-audit", "--requirement", str(requirements)]
    command += ["--no-deps", "--disable-pip", "--vulnerability-service", service]
    command += ["--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
            command, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        return found
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode} without a word"


def knows_vulnerabilities(service: str) -> str | None:
    """Why a service is not to be believed; None if it is."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "canary.txt")
        requirements.write_text(f"{CANARY}\n")
        answer = ask(service, requirements)
    if isinstance(answer, str):
        return answer
    if not any(one.get("vulns") for one in answer):
        return f"it knows no vulnerability of {CANARY}, which has some"
    return None


def judge(constraints: Path, answer: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """(a line for each known vulnerability, the packages that were not looked at)."""
    wanted = [line for line in constraints.read_text().splitlines() if "==" in line]
    checked = {}
    for one in answer:
        if "vulns" in one and "skip_reason" not in one:
            checked[f"{one['name'].lower()}=={one['version']}"] = one["vulns"]
    lines = []
    for name, vulnerabilities in sorted(checked.items()):
        for one in vulnerabilities:
            fixed = ", ".join(one["fix_versions"]) or "no version yet"
            lines.append(f"{name}: {one['id']} (fixed in {fixed})")
    return lines, [line for line in wanted if line.lower() not in checked]


def main(constraints: Path) -> int:
    problems = []
    for service in SERVICES:
        problem = knows_vulnerabilities(service)
        answer = problem or ask(service, constraints)
        if isinstance(answer, str):
            problems.append(f"{service}: {answer[-300:]}")
            continue
        lines, missing = judge(constraints, answer)
        for line in lines:
            print(line)
        if lines:
            print(f"audit-deps: {len(lines)} known vulnerabilities (says {service})")
            return 1
        if missing:
            problems.append(f"{service}: {len(missing)} packages unknown: {', '.join(missing[:5])}")
            continue
        print(f"audit-deps: no known vulnerability in {len(answer)} packages (says {service})")
        return 0
    print("audit-deps: COULD NOT CHECK, which is not the same as clean:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else Path("constraints.txt")))
