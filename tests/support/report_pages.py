"""Report pages written from made-up workspaces, and read back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.core.profiles import STAGES
from regrpo.records import find
from regrpo.report import contents
from tests.support.pages import workspace

PAGE = Path("reports/index.html")


class Page(HTMLParser):
    """The tags, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += "" if tag in ("bdi", "code", "strong") else " "
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name == "href"]
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.partition("Skip to the content")[2].split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("whole") / "work")


@pytest.fixture
def inside(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a workspace (a whole pipeline's, or as asked) and changes into it."""

    def make(**options: Any) -> Path:
        folder = tmp_path / "work"
        if options:
            workspace(folder, **options)
        else:
            shutil.copytree(whole, folder)
        monkeypatch.chdir(folder)
        return folder

    return make


def read() -> contents.Report:
    return contents.read(find.workspace(Path.cwd()), Path.cwd())


def written(*arguments: str) -> Page:
    assert cli.main(["report", "--no-mlflow", *arguments]) == 0
    return Page(PAGE.read_text())


def states() -> dict[str, str]:
    return {stage.name: stage.state for stage in read().stages}


def reasons(stage: str) -> str:
    return "; ".join(next(one.reasons for one in read().stages if one.name == stage))


def edit_record(stage: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(f"reports/{stage}/run.json")
    (record,) = files.read_json(path)
    change(record)
    files.write_json(path, [record])


def journal(
    stage: str, run: str, execution: list[float] | None, closed: str | None = "FINISHED"
) -> None:
    """What a stage that ran here leaves."""
    second = int((execution or [0])[0])
    folder = Path(f".regrpo/journal/20261122T14{STAGES.index(stage):02}{second:02}-{stage}")
    facts = {
        "stage": stage,
        "run": run,
        "key": "0" * 64,
        "entry": {"cmd": f"python -m stages.{stage}", "params": {}},
        "code": {"revision": None, "dirty": None},
        "diff": "",
        "process": [1, 0.0],
        "execution": execution,
        "experiment": None,
        "baseline": None,
        "profile": "params.yaml",
        "sections": {},
        "workspace": str(Path.cwd()),
        "started": 1795357800.0 + 60 * STAGES.index(stage),
    }
    files.write_json(folder / "open.json", facts)
    if closed:
        files.write_json(
            folder / "closed.json", {"status": closed, "ended": 1795357900.0, "record": None}
        )
    files.write_json(folder / "mlflow.json", {"run_id": "f" * 32, "parent_run_id": "abcd" * 8})
