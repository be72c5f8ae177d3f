"""MLflow's real UI in a real browser, over a store that the observers filled.

Table, charts, comparison, artifacts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regrpo.core import files
from regrpo.tracking import address as address_module
from regrpo.tracking import notes
from regrpo.tracking.sync import opened, sync
from tests.support import tracked
from tests.support.browser import Watch, chromium
from tests.support.pipelines import commit, digest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow
WAIT = 90_000
"""ms; the server answers slowly on a busy machine."""
MLFLOWS_OWN = re.compile(r"users/current|ResizeObserver|Failed to load resource")
"""Errors that the UI of 3.17.2 shows over any store.

A failed request is seen by its address as well.
"""
QUIET = """if (location.host) {
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false")
}"""
"""MLflow's assistant opens by itself at the first visit and covers a quarter of the page."""


@dataclass(frozen=True)
class Served:
    """A server over two pipelines: the run ids of their rows, and where to look at them."""

    address: str
    experiment: str
    plain: str
    swept: str
    views: dict[str, str]

    def run(self, run_id: str, rest: str = "") -> str:
        runs = f"{self.address}/#/experiments/{self.experiment}/runs"
        return f"{runs}/{run_id}{rest}?workflowType=machine_learning"


def write_two(root: Path) -> dict[str, str]:
    """A pipeline, and one of a sweep with a parameter that the first has not: {run name.

    Run id} of their rows.
    """
    tracked.write_results(root)
    files.write_json(root / "params.yaml", {"profile": "params.yaml"} | tracked.SECTIONS)
    files.write_json(root / "dvc.lock", {})
    commit(root)
    subprocess.run(["git", "add", "params.yaml"], cwd=root, check=True)
    baseline = commit(root)
    tracked.write_results(root, grpo=1.0, speed=0.5)
    sections = tracked.SECTIONS | {"grpo": {"seed": 3, "learning_rate": 1e-4, "beta": 0.1}}
    tracked.write_journals(
        root, "swept", [2**22 + 5, 1.0], sections, 600, experiment="lr-2", baseline=baseline
    )
    commit(root, f"refs/exps/{baseline[:2]}/{baseline[2:]}/lr-2")
    sync()
    tracked.write_results(root)
    tracked.write_journals(root, "plain", [2**22 + 6, 1.0])
    sync()
    with opened() as store:
        found = store.client.search_runs([store.experiment_id], "tags.`regrpo.kind` = 'pipeline'")
        return {run.info.run_name: run.info.run_id for run in found} | {
            "experiment": store.experiment_id
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("repository")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tracked.repository(root):
        ids = write_two(root)
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        with (root / "server.log").open("w") as log:
            server = subprocess.Popen(
                [*command, "--backend-store-uri", address_module.tracking_uri()],
                cwd=root,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(server, address, root / "server.log")
        [plain] = [run for name, run in ids.items() if name.startswith("tiny-sums ")]
        yield Served(
            address,
            ids["experiment"],
            plain,
            ids["lr-2"],
            notes.addresses(address, ids["experiment"]),
        )
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_until_up(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh profile's page.

    At its end nothing of ours has failed, and nothing was asked of another machine.

    REGRPO_SCREENSHOTS names a folder for a picture of each test's last page.
    """
    watch = Watch()
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(WAIT)
    page.add_init_script(QUIET)
    watch.on(page)
    yield page
    if folder := os.environ.get("REGRPO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    page.close()
    assert [error for error in watch.errors if not MLFLOWS_OWN.search(error)] == []
    assert watch.outside == []


def visit(page: Page, address: str) -> None:
    """Load a page anew.

    The UI's addresses differ behind the # only, and it does not always follow.
    """
    page.goto("about:blank")
    page.goto(address)


def headers(page: Page) -> list[str]:
    """The table's column headers as they stand from left to right."""
    found = page.locator(".ag-header-cell").evaluate_all(
        "cells => cells.map(cell => [cell.getBoundingClientRect().x, cell.innerText.trim()])"
    )
    return [text for _, text in sorted(found) if text]


def curves(place: Locator) -> int:
    """How many different lines a chart has, two at least.

    Each is there twice, for the UI lays one over the other.
    """
    lines = place.locator("svg.main-svg path.js-line")
    lines.nth(3).wait_for()
    return len(set(lines.evaluate_all("paths => paths.map(path => path.getAttribute('d'))")))


def test_the_saved_view_shows_the_headline_first_in_few_columns(page: Page, served: Served) -> None:
    visit(page, served.views["table"])
    page.get_by_text("100.0 %").wait_for()
    wanted = ["Run Name", "Created", *(name.split("`")[1] for name in notes.COLUMNS)]
    found = headers(page)
    assert found == wanted[: len(found)]  # the grid renders no column that is out of sight
    assert len(found) >= 7
    shown = page.locator(".ag-body-viewport").inner_text()
    for text in (
        "lr-2",
        "50.0 % → 100.0 %, +50.0 points [+30.0, +70.0]",
        "50.0 % → 75.0 %, +25.0 points [+5.0, +45.0]",
        "grpo.beta=0.1 grpo.learning_rate=0.0001 grpo.seed=3",
        "healthy",
    ):
        assert text in shown
    assert page.get_by_text(re.compile("tiny-sums [0-9a-f]{12}")).count() == 1
    page.get_by_role("button", name="Pipelines").click()  # the UI lists it among the saved views
    page.get_by_test_id(re.compile("active-pipelines$")).wait_for()


def test_the_views_charts_lay_both_runs_curves_over_each_other(page: Page, served: Served) -> None:
    visit(page, served.views["curves"])
    card = (
        page.get_by_test_id("experiment-view-compare-runs-card")
        .filter(has_text="GRPO/dev_accuracy")
        .first
    )
    assert curves(card) == 2
    assert "lr-2 (GRPO/dev_accuracy)" in card.inner_text()
    assert re.search(r"tiny-sums [0-9a-f]{12} \(GRPO/dev_accuracy\)", card.inner_text())
    titles = page.get_by_test_id("experiment-view-compare-runs-section-header").all_inner_texts()
    assert [re.sub(r"\s", "", title).removesuffix("Addchart") for title in titles[:2]] == [
        "GRPO(7)",
        "headline(6)",
    ]


def test_the_views_samples_stand_side_by_side(page: Page, served: Served) -> None:
    visit(page, served.views["samples"])
    page.get_by_text("grpo on heldout 3").nth(1).wait_for()
    for button in ("Table: evaluate/samples.json", "Group by: prompt", "Compare: grpo"):
        page.get_by_role("combobox").filter(
            has_text=re.compile(button.replace(" ", r"\s*"))
        ).wait_for()


def test_comparing_two_runs_shows_what_each_logged_and_invents_nothing(
    page: Page, served: Served
) -> None:
    runs = json.dumps([served.swept, served.plain]).replace(" ", "")
    visit(
        page, f"{served.address}/#/compare-runs?runs={runs}&experiments=[%22{served.experiment}%22]"
    )
    page.locator("svg").first.wait_for()

    def parameter(name: str) -> list[str]:
        cells = page.locator("tr, [role=row]").filter(has=page.get_by_text(name, exact=True)).first
        cells.wait_for()
        return [text.strip() for text in cells.locator("td, th, [role=cell]").all_inner_texts()][
            -2:
        ]

    def metric(name: str) -> list[str]:
        """The cells right of a name: the UI scrolls names and values as two grids side by side."""
        page.get_by_role("link", name=name, exact=True).wait_for()
        cells = page.locator(".ReactVirtualized__Grid__innerScrollContainer > div").evaluate_all(
            "cells => cells.map(cell => [cell.getBoundingClientRect(), cell.innerText.trim()])"
            ".map(([box, text]) => [Math.round(box.y), box.x, text])"
        )
        [height] = [y for y, _, text in cells if text == name]
        return [text for y, _, text in sorted(cells) if y == height and text != name]

    assert parameter("Run Name:")[0] == "lr-2"
    assert re.fullmatch("tiny-sums [0-9a-f]{12}", parameter("Run Name:")[1])
    assert parameter("grpo.beta") == ["0.1", "(not set)"]
    assert parameter("grpo.learning_rate") == ["0.0001", "0.0003"]
    assert parameter("grpo.seed") == ["3", "0"]
    assert metric("GRPO/reward") == ["0.5", "1"]
    assert metric("GRPO/kl") == ["0.01", "NaN"]  # what the UI says of a metric that was not logged
    page.get_by_role("link", name="GRPO/reward", exact=True).click()
    assert curves(page.locator("main, #root").last) == 2


def test_a_rows_page_says_the_result_first_with_links_that_lead_there(
    page: Page, served: Served
) -> None:
    visit(page, served.run(served.swept))
    page.get_by_text("50.0 % → 100.0 %, +50.0 points [+30.0, +70.0]").first.wait_for()
    page.get_by_text("headline/gain_ci95_low").wait_for()
    metrics = page.get_by_text(re.compile(r"^(headline|evaluate|grpo)[./]\S+$")).all_inner_texts()
    assert metrics[:4] == ["headline/grpo", "headline/sft", "headline/base", "headline/gain"]
    page.get_by_text("Show more").first.click()
    with page.expect_popup() as opened:  # the UI opens a description's links in a new tab
        page.get_by_role("link", name="answers before and after").click()
    opened.value.get_by_role("columnheader", name="prompt").wait_for(timeout=WAIT)
    opened.value.close()


@pytest.mark.parametrize("run", ["plain", "swept"])
def test_artifacts_render(page: Page, served: Served, run: str) -> None:
    run_id = getattr(served, run)
    visit(page, served.run(run_id, "/artifacts/grpo/curves.png"))
    picture = page.locator(
        "img[src^='blob:'], img[src*='get-artifact'], img[src^='data:image/png']"
    ).first
    picture.wait_for()
    page.wait_for_function("e => e.naturalWidth > 100", arg=picture.element_handle())
    visit(page, served.run(run_id, "/artifacts/validate/report.html"))
    page.frame_locator("iframe").get_by_role("heading", name="The gate passed").wait_for()
    visit(page, served.run(run_id, "/artifacts/grpo/samples.json"))
    page.get_by_role("columnheader", name="completion").wait_for()
    assert page.get_by_text("step 0, 1 <b>&", exact=True).count() == 1  # data is text, never markup
    visit(page, served.run(run_id, "/artifacts/evaluate/samples.json"))
    page.get_by_role("columnheader", name="sft → grpo").wait_for()
    page.get_by_text("gained").first.wait_for()


def test_the_dataset_drawer_names_digest_use_columns_and_rows(page: Page, served: Served) -> None:
    visit(page, served.run(served.swept))
    page.get_by_text(re.compile(r"^\S+\.parquet")).first.click()
    page.get_by_text("4 datasets used").wait_for()
    page.get_by_text(re.compile("^eval.parquet")).last.click()
    drawer = page.get_by_role("dialog")
    drawer.get_by_text("data/prepared/eval.parquet").wait_for()
    text = drawer.inner_text()
    for wanted in ("Evaluation", "source_row", "4"):
        assert wanted in text


def test_the_models_tab_names_models_their_source_scores_and_parameters(
    page: Page, served: Served
) -> None:
    visit(
        page,
        f"{served.address}/#/experiments/{served.experiment}/models?workflowType=machine_learning",
    )
    page.get_by_text("tiny-sums-grpo").first.wait_for()
    grid = page.locator(".ag-root").first
    for wanted in ("tiny-sums-base", "tiny-sums-sft", "grpo lr-2", "python -m stages.grpo"):
        grid.get_by_text(wanted).first.wait_for()  # the rows' names come before what they belong to
    page.get_by_text("tiny-sums-grpo").first.click()
    page.get_by_text("heldout", exact=True).wait_for()
    for wanted in (
        "eval.parquet",
        digest("models/grpo 0"),
        "grpo.learning_rate",
        "DVC keeps the bytes",
    ):
        page.get_by_text(wanted).first.wait_for()
