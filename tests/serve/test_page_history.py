"""The images that the page keeps over a reload."""

import re
from collections.abc import Callable
from pathlib import Path

from page_fixtures import caption, choose, needs_chromium
from PIL import Image
from playwright.sync_api import Page, expect

pytestmark = needs_chromium


def test_history_is_there_after_a_reload_until_it_is_cleared(open_page: Callable[..., Page]) -> None:
    page = open_page()
    choose(page, "4")
    page.fill("#steps", "2")
    page.fill("#n", "2")
    page.fill("#seed", "70")
    page.click("#generate")
    caption(page, "4 · seed 70–71 · 2 steps")
    for _ in range(2):
        page.reload()
        page.wait_for_selector("body[data-ready]")
        expect(page.locator("#history li")).to_have_count(2)
        expect(page.locator("#past-empty")).to_be_hidden()
    page.locator("#history button").first.click()
    caption(page, "4 · seed 71 · 2 steps")
    page.click("#reuse")
    assert page.input_value("#seed") == "71"
    page.click("#clear")
    expect(page.locator("#history li")).to_have_count(0)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#history li")).to_have_count(0)
    expect(page.locator("#past-empty")).to_be_visible()


def test_the_history_keeps_the_newest_only(open_page: Callable[..., Page]) -> None:
    page = open_page()
    kept = page.evaluate(
        """async () => {
            const { Past } = await import("/page/past.js");
            const past = new Past(3);
            for (let seed = 0; seed < 7; seed += 1) await past.add({ seed });
            return (await past.entries()).map(({ seed }) => seed);
        }"""
    )
    assert kept == [4, 5, 6]


def test_history_opens_again_and_downloads_with_settings(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    for digit in ("1", "2"):
        choose(page, digit)
        page.fill("#steps", "2")
        page.click("#generate")
        caption(page, re.compile(f"^{digit} · seed"))
    page.locator("#history button").last.click()
    caption(page, re.compile("^1 · seed"))
    with page.expect_download() as download:
        page.click("#download")
    assert re.fullmatch(r"1-seed\d+\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        assert '"class": 1' in image.info["bitdance"]
