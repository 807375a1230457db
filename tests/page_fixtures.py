"""The page in Debian's Chromium, driven by Playwright."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import Server

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
TIMEOUT = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options: dict[str, Any] = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}  # root has none to enter
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as opened:
        yield opened


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[Callable[..., Page]]:
    """``open_page(width=390)`` opens the page; no script may fail, and nothing may be fetched from another host."""
    pages, faults = [], []

    def visit(url: str = server.url, width: int = 1360, height: int = 900, **options: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        pages.append(page)
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if not of_the_page(request.url, url) else None)
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        return page

    yield visit
    for page in pages:
        page.close()
    assert not faults


def of_the_page(requested: str, url: str) -> bool:
    return requested.startswith((url, "data:", "blob:"))


def choose(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check(force=True)


def caption(page: Page, text: "str | re.Pattern[str]") -> None:
    expect(page.locator("#caption")).to_contain_text(text, timeout=TIMEOUT)
