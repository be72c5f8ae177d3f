"""Every page of ours in a real headless Chromium.

Quiet, offline, accessible, narrow, by keyboard, on paper.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.audit import audit
from regrpo.inputs import gate
from regrpo.inputs.checks import CHECKS
from regrpo.inputs.expectations import Outcome
from regrpo.records import find, graph
from regrpo.report import contents, pages, report_page
from stages import validate
from tests.support import pages as made
from tests.support.pages import HOSTILE, workspace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


def made_report(folder: Path, out: Path) -> str:
    return report_page.page(contents.read(find.workspace(folder), folder), out)


def whole_report(folder: Path, out: Path) -> str:
    return made_report(workspace(folder), out)


def hostile_report(folder: Path, out: Path) -> str:
    return made_report(workspace(folder, text=HOSTILE), out)


def refused_report(folder: Path, out: Path) -> str:
    workspace(folder, upto="base_model")
    with contextlib.chdir(folder):
        made.write_gate({"answer_parses": 5}, HOSTILE)
    return made_report(folder, out)


def audit_page(folder: Path, out: Path) -> str:
    place = find.workspace(workspace(folder))
    result = audit.audit(place, remote=False, mlflow=False, strict_env=False)
    assert result["faults"]
    return pages.audit_page(result, graph.of_places([place]))


def lineage_page(folder: Path, out: Path) -> str:
    return pages.lineage_page(
        "Lineage, upstream of the workspace", graph.of_places([find.workspace(workspace(folder))])
    )


def gate_page(folder: Path, out: Path, text: str = "") -> str:
    """The gate's page; with `text`, of a verdict that refuses rows which hold it."""
    row = {"id": text, "source_row": 7, "value": text, "question": text, "answer": text}
    outcomes = [
        Outcome(check, split, "expect_column_values_to_be_null", 6, failed, (row,) * failed)
        for check in CHECKS
        for split in ("sft", "train", "dev", "eval")
        for failed in [int(bool(text) and check == "answer_parses")]
    ]
    dataset = {
        "source": text or "a",
        "license": "MIT",
        "format": "chain_sum",
        "verifier": "exact_int",
        "prompt_style": "text",
        "revision": text or "r",
    }
    verdict = gate.Verdict(dict.fromkeys(("sft", "train", "dev", "eval"), 6), tuple(outcomes))
    return validate.page(verdict, dataset, gate.Limits(prompt_tokens=64, rows=5))


def refusing_gate_page(folder: Path, out: Path) -> str:
    return gate_page(folder, out, HOSTILE)


PAGES: dict[str, Callable[[Path, Path], str]] = {
    "report": whole_report,
    "report of hostile text": hostile_report,
    "report of refused data": refused_report,
    "audit": audit_page,
    "lineage": lineage_page,
    "gate": gate_page,
    "gate that refuses": refusing_gate_page,
}
"""Each makes a page in a folder of its own."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if executable is None:
        pytest.skip("no Chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=PAGES)
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page as a file: address.

    Its text is made in the workspace that it is about, as a command makes it.
    """
    folder = tmp_path_factory.mktemp("pages")
    out = folder / "work" / "page.html"
    out.parent.mkdir()
    with contextlib.chdir(out.parent):
        html = PAGES[request.param](out.parent, out)
    out.write_text(html, encoding="utf-8")
    return out.as_uri()


@dataclasses.dataclass
class Heard:
    """What a page said and asked for."""

    console: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, width: int = 1200, scheme: Any = "light"
) -> Iterator[tuple[Page, Heard]]:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, heard = context.new_page(), Heard()
    page.on("console", lambda message: heard.console.append(message.text))
    page.on("pageerror", lambda error: heard.console.append(str(error)))
    page.on("dialog", lambda dialog: heard.console.append(f"dialog: {dialog.message}"))
    page.on("request", lambda asked: heard.requests.append(asked.url))
    page.goto(address)
    yield page, heard
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_quiet_fetches_nothing_and_is_accessible(
    browser: Browser, address: str, scheme: str
) -> None:
    from axe_playwright_python.base import AXE_SCRIPT

    with opened(browser, address, scheme=scheme) as (page, heard):
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (
            scheme == "dark"
        )
        assert (heard.console, heard.requests) == ([], [address])
        assert (
            page.locator("script, iframe, object, embed, form, img:not([src^='data:'])").count()
            == 0
        )
        page.evaluate(AXE_SCRIPT)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
        told = [
            (one["id"], node["target"], node["failureSummary"])
            for one in found["violations"]
            for node in one["nodes"]
        ]
        assert told == []
        assert len(found["passes"]) > 10


@pytest.mark.parametrize("width", [360, 800])
def test_a_phone_never_scrolls_the_page_sideways(
    browser: Browser, address: str, width: int
) -> None:
    with opened(browser, address, width=width) as (page, _):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            """width => [...document.querySelectorAll('body *')].filter(one => {
                const box = one.getBoundingClientRect();
                return box.right > width + 1 && box.width > 0 &&
                    !one.closest('.scroll') && !one.closest('svg');
            }).map(one => one.outerHTML.slice(0, 120))""",
            width,
        )
        assert outside == []
        small = page.evaluate(
            """() => [...document.querySelectorAll('svg.chart text')].filter(one =>
                one.getBoundingClientRect().height > 0 && Math.min(
                    one.getBoundingClientRect().height,
                    one.getBoundingClientRect().width || 99) < 8)
                .map(one => one.textContent)"""
        )
        assert [text for text in small if len(text) > 1] == []


def test_the_keyboard_reaches_every_link_and_scroll_container_and_shows_where_it_is(
    browser: Browser, address: str
) -> None:
    with opened(browser, address, width=360) as (page, _):
        # This Chromium lets the keyboard into scroll containers by itself; others need the
        # attribute.
        assert page.locator(".scroll:not([tabindex='0'])").count() == 0
        wanted = page.evaluate(
            """() => {
                const all = [...document.querySelectorAll('a[href], summary, [tabindex]')];
                const wide = [...document.querySelectorAll('body *')].filter(one =>
                    ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) &&
                    one.scrollWidth > one.clientWidth + 1);
                const both = [...new Set([...all, ...wide])].filter(one => one.checkVisibility());
                both.forEach((one, index) => one.dataset.wanted = index);
                return both.length;
            }"""
        )
        reached: dict[str, list[Any]] = {}
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            name, *look = page.evaluate(
                """() => { const one = document.activeElement, style = getComputedStyle(one);
                    const box = one.getBoundingClientRect();
                    return [one.dataset.wanted ?? 'none', style.outlineStyle,
                            parseFloat(style.outlineWidth),
                            box.right > 0 && box.bottom > 0 && box.top < innerHeight]; }"""
            )
            if name in reached:
                break
            reached[name] = look
        assert {str(index) for index in range(wanted)} <= set(reached)
        unseen = [
            name
            for name, (style, width, in_sight) in reached.items()
            if name != "none" and (style == "none" or width < 1 or not in_sight)
        ]
        assert unseen == []


def test_it_prints(browser: Browser, address: str) -> None:
    with opened(browser, address, width=690, scheme="dark") as (
        page,
        heard,
    ):  # A4 without its margins
        paper = page.pdf(format="A4")
        assert paper.startswith(b"%PDF-")
        assert 1 <= len(re.findall(rb"/Type /Page\b(?!s)", paper)) < 40
        page.emulate_media(media="print")
        if page.locator(
            "main#main"
        ).count():  # pages on our base: dark ink on white, nothing behind a scroll bar
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == "rgb(255, 255, 255)"
            hidden = page.evaluate(
                """() => [...document.querySelectorAll('.scroll')].filter(one =>
                    getComputedStyle(one).overflowX !== 'visible').length"""
            )
            assert hidden == 0
        assert heard.console == []
