"""A real headless Chromium for slow tests, and what went wrong on the pages that it showed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if executable is None:
        pytest.skip("no Chromium on PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page said that it should not: errors, and requests that leave this machine."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def on(self, page: Page) -> None:
        page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "response",
            lambda got: (
                self.errors.append(f"{got.status} {got.url}") if got.status >= 400 else None
            ),
        )
        page.on(
            "request", lambda asked: self.outside.append(asked.url) if leaves(asked.url) else None
        )


def leaves(address: str) -> bool:
    """Whether a request for this address leaves this machine."""
    parts = urlsplit(address)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname not in (
        "127.0.0.1",
        "localhost",
    )
