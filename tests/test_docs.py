"""README, CONTRIBUTING and docs/ against the project: commands, options, links, paths, examples."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from regrpo.cli import COMMANDS, parser_for
from regrpo.core.profiles import STAGES, parse_section, read_yaml
from regrpo.core.verifiers import get_verifier
from regrpo.inputs import checks
from regrpo.train.rewards import get_reward
from tests.support.prepared import splits
from tests.support.projects import ROOT, edit_yaml, run

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
HISTORY = ("decisions.md",)
"""Pages that say what was, of files and commands too."""
TODAY = [page for page in PAGES if page.name not in HISTORY]
WIDTH = 110
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?\n(.*?)```|`([^`]+)`", re.DOTALL)
COMMAND = re.compile(r"\bregrpo ([a-z]+)([^\n#|;&]*)")
PATH = re.compile(
    r"\b(?:regrpo|stages|tests|benchmarks|custom|docs)/[\w./-]*\w\.(?:py|md|yaml|j2)\b"
)
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands_in(page: Path) -> list[tuple[str, str]]:
    """(command, arguments) of every `regrpo …` in a page's code."""
    spans = [block or inline for block, inline in CODE.findall(page.read_text())]
    return COMMAND.findall("\n".join(spans))


def options_of(command: str) -> set[str]:
    """Every option that `regrpo COMMAND --help` names."""
    parser = parser_for(command)
    (subparsers,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return set(subparsers.choices[command]._option_string_actions)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


def examples(page: Path) -> Iterator[dict[str, dict[str, object]]]:
    """The YAML blocks of a page that are sections of a profile."""
    for block in YAML_BLOCK.findall(page.read_text()):
        content = YAML(typ="safe").load(block)
        if set(content) <= set(STAGES):
            yield content


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1100


@pytest.mark.parametrize("page", TODAY, ids=named)
def test_lines_are_narrow(page: Path) -> None:
    """Tables and addresses cannot be broken."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > WIDTH and "https://" not in line] == []


@pytest.mark.parametrize("page", TODAY, ids=named)
def test_every_command_and_option_exists(page: Path) -> None:
    unknown = []
    for command, arguments in commands_in(page):
        if command not in COMMANDS:
            unknown.append(command)
            continue
        given = re.findall(r"--[a-z][a-z-]*", arguments)
        unknown += [f"{command} {name}" for name in given if name not in options_of(command)]
    assert unknown == []


def test_every_command_has_its_place_in_the_docs() -> None:
    named_commands = {command for page in TODAY for command, _ in commands_in(page)}
    assert named_commands == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        address, _, anchor = link.partition("#")
        target = page.parent / address if address else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", TODAY, ids=named)
def test_every_file_of_ours_that_is_named_exists(page: Path) -> None:
    assert [name for name in PATH.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_every_file_and_folder_named_in_contributing_exists() -> None:
    paths = re.findall(r"[\w.][\w.-]*/[\w./-]*", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", TODAY, ids=named)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_the_index_names_every_page() -> None:
    linked = set(LINK.findall((ROOT / "docs/README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"README.md"}


@pytest.mark.parametrize(
    "name", ["README.md", "docs/data.md", "docs/rewards.md", "docs/experiments.md"]
)
def test_yaml_examples_are_valid_sections(name: str) -> None:
    whole = read_yaml(ROOT / "params.yaml")
    found = list(examples(ROOT / name))
    assert found
    for example in found:
        for stage, values in example.items():
            model = importlib.import_module(f"stages.{stage}").Params
            parse_section(model, whole[stage] | values, f"{name}: {stage}")


def test_the_worked_examples_of_custom_code_work(custom: Callable[..., None]) -> None:
    page = (ROOT / "docs/rewards.md").read_text()
    blocks = re.findall(r"```python\n# custom/(\w+)\.py\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in blocks] == ["formats", "verifiers", "rewards"]
    for name, source in blocks:
        custom(source, name)
    rows = []
    for index in range(20):
        item = {"text": f"Is {index} even?", "label": "no" if index % 2 else "Yes"}
        rows.append({"item": item, "meta": {"topic": "law" if index % 3 else "sums"}})
    sections = [one.get("prepare", {}) for one in examples(ROOT / "docs/rewards.md")]
    (prepare,) = [one for one in sections if "format" in one]
    made = [row for split in splits(rows, **prepare).values() for row in split]
    verifier = get_verifier(str(prepare["verifier"]))
    assert verifier
    for row in made:
        scores = checks._self_test(row, verifier)
        assert {name for name, score in scores.items() if score} == {"gold_scores_1"}
    assert verifier.score("<think>4 = 2 · 2</think><answer>TRUE</answer>", "yes") == 1
    reward = get_reward("custom.rewards:brief", verifier, 16)
    topics = [row["topic"] for row in made[:9]]
    values = reward(completions=["Yes."] * 8 + ["long " * 99], topic=topics, answer=[])
    assert [value is None for value in values] == [topic == "law" for topic in topics]


def test_the_readmes_own_data_profile_passes_check(project: Callable[..., Path]) -> None:
    folder = project(with_git=False)
    (example,) = examples(ROOT / "README.md")
    edit_yaml(folder / "params.yaml", example)
    (folder / "data/raw/my_questions.jsonl").write_text('{"question": "1+1=", "answer": 2}\n')
    (folder / "models/raw/my-model").mkdir()
    for name in ("config.json", "model.safetensors"):  # check looks at their names only
        (folder / "models/raw/my-model" / name).touch()
    with (folder / "custom/rewards.py").open("a") as rewards:
        rewards.write("\n\ndef my_reward(completions, answer, **columns):\n    return [0.0]\n")
    checked = run(folder, "python", "-m", "regrpo.cli", "check")
    assert checked.stderr == ""
