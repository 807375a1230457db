"""What the page does in a browser. ``--screenshots`` writes the screenshots in docs/."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_fixtures import TIMEOUT, caption, choose, needs_chromium
from playwright.sync_api import Browser, Page, expect
from serve_fixtures import TOKEN
from serving import Server, wait_until

from bitdance_edge.runtime import Pipeline, Request

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = needs_chromium
DROPPED = """bytes => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "seven.png", { type: "image/png" }));
  return transfer;
}"""

# Records the caption and the first image at each change of the caption, which a test may be too slow to see.
WATCH = """() => {
    window.watched = [];
    const caption = document.querySelector("#caption");
    new MutationObserver(() => {
        const canvas = document.querySelector("#frames canvas");
        if (canvas) window.watched.push([caption.textContent, canvas.toDataURL()]);
    }).observe(caption, {childList: true, characterData: true, subtree: true});
}"""

# Lets the page read no more events once 12 to 15 of 16 patches of 6 images are made.
STALL = """() => {
    const read = ReadableStreamDefaultReader.prototype.read;
    const caption = document.querySelector("#caption");
    ReadableStreamDefaultReader.prototype.read = function () {
        const stalled = /patch (7[2-9]|8[0-9]|90) of 96/.test(caption.textContent);
        return stalled ? new Promise(() => {}) : read.call(this);
    };
}"""


@pytest.fixture
def shoot(pytestconfig: pytest.Config, tmp_path: Path) -> Callable[..., None]:
    """``shoot(page, "page")`` takes a screenshot, with --screenshots into docs/."""
    folder = DOCS if pytestconfig.getoption("--screenshots") else tmp_path

    def take(page: Page, name: str, **options: Any) -> None:
        page.screenshot(path=folder / f"{name}.png", **options)
        assert (folder / f"{name}.png").stat().st_size > 10_000

    return take


def seen(page: Page, index: int = 0) -> str:
    """The present content of a canvas of the stage, as a data URL."""
    return page.locator("#frames canvas").nth(index).evaluate("canvas => canvas.toDataURL()")


def pixels(page: Page, index: int = 0) -> np.ndarray:
    """The canvas of a finished image, uint8 [32, 32, 3]."""
    read = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    values = page.locator("#frames canvas").nth(index).evaluate(read)
    return np.array(values, np.uint8).reshape(32, 32, 4)[..., :3]


def test_an_image_grows_patch_by_patch_and_is_the_one_of_its_seed(
    open_page: Callable[..., Page], reference: Pipeline
) -> None:
    page = open_page()
    choose(page, "3")
    page.fill("#n", "6")
    page.fill("#seed", "21")
    page.fill("#steps", "60")
    page.evaluate(WATCH)
    page.click("#generate")
    caption(page, "3 · seed 21–26 · 60 steps")
    partial = {image for text, image in page.evaluate("() => window.watched") if re.search(r"patch \d+ of 96", text)}
    assert len(partial | {seen(page)}) >= 3
    expect(page.locator("#history li")).to_have_count(6)
    expect(page.locator("#times tbody tr")).to_have_count(7)  # stages that ran
    wanted = reference.generate(Request(classes=["3"], seed=21, count=6, steps=60))
    for index, want in enumerate(wanted):
        assert want.pixels is not None and np.array_equal(pixels(page, index), want.pixels)


def test_patches_not_yet_made_are_clear(open_page: Callable[..., Page], shoot: Callable[..., None]) -> None:
    page = open_page(color_scheme="light")
    choose(page, "3")
    page.fill("#n", "6")
    page.fill("#seed", "21")
    page.fill("#steps", "60")
    page.evaluate(STALL)
    page.click("#generate")
    caption(page, re.compile(r"patch (7[2-9]|8\d|90) of 96"))
    shoot(page, "page")
    for canvas in page.locator("#frames canvas").all():
        label = re.fullmatch(r"Image \d, patch (\d+) of 16", canvas.get_attribute("aria-label") or "")
        clear = "c => c.getContext('2d').getImageData(0, 0, 32, 32).data.filter((v, i) => i % 4 == 3 && !v).length"
        assert label is not None and canvas.evaluate(clear) == (16 - int(label[1])) * 8 * 8


def test_cancel_stops_the_images_and_the_page_goes_on(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page()
    page.fill("#n", "10")
    page.fill("#steps", "200")
    page.click("#generate")
    caption(page, "patch")
    page.keyboard.press("Escape")
    caption(page, re.compile(r"Cancelled after \d+ of 160 patches"))
    wait_until(lambda: server.running() == 0)
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#history li")).to_have_count(0)


def test_a_dropped_image_shows_its_bits_and_is_completed(
    open_page: Callable[..., Page], reference: Pipeline, shoot: Callable[..., None]
) -> None:
    (seven,) = reference.generate(Request(classes=["7"], seed=4))
    file = io.BytesIO()
    seven.to_pil().save(file, "PNG")
    page = open_page(color_scheme="dark")
    dropped = page.evaluate_handle(DROPPED, list(file.getvalue()))
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator("#bits-caption")).to_have_text("8 bits of 8 × 8 tokens")
    bits = page.locator("#bits")
    assert bits.evaluate("c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size") > 2
    expect(page.locator("#rows-shown")).to_have_text("2 of 4 rows")
    choose(page, "7")
    page.fill("#n", "4")
    page.fill("#seed", "6")
    page.click("#go-on")
    caption(page, "completed from 8 patches")
    assert seven.pixels is not None
    prefix = reference.tokenize(seven.pixels[None])[0][: 8 * 4]
    (want, *_) = reference.generate(Request(classes=["7"], seed=6, count=4, prefix=prefix))
    assert want.pixels is not None and np.array_equal(pixels(page), want.pixels)
    shoot(page, "page-dark")


@pytest.mark.parametrize("how", ["mask", "all"])
def test_an_image_is_painted_on_and_varied(open_page: Callable[..., Page], reference: Pipeline, how: str) -> None:
    (seven,) = reference.generate(Request(classes=["7"], seed=4))
    file = io.BytesIO()
    seven.to_pil().save(file, "PNG")
    page = open_page()
    dropped = page.evaluate_handle(DROPPED, list(file.getvalue()))
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.check(f"input[name=how][value={how}]")
    choose(page, "7")
    page.fill("#seed", "6")
    if how == "mask":
        page.focus("#kept")
        for key in ("Space", "ArrowRight", "Space"):  # the first two patches of the first row
            page.keyboard.press(key)
    page.click("#go-on")
    caption(page, {"mask": "redrawn in part, strength 1", "all": "varied, strength 0.7"}[how])
    mask = np.zeros((32, 32), bool)
    mask[:8, :16] = True
    changed: dict[str, Any] = {"mask": mask} if how == "mask" else {"strength": 0.7}
    (want,) = reference.generate(Request(classes=["7"], seed=6, init=seven.pixels, **changed))
    assert want.pixels is not None and np.array_equal(pixels(page), want.pixels)


def test_errors_are_shown_at_their_field(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.fill("#steps", "999")
    page.click("#generate")
    error = page.locator('[data-param="num_inference_steps"] .error')
    expect(error).to_have_text("Steps per patch is 999; it must be from 1 to 200")
    assert page.locator("#steps").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "steps"
    page.fill("#steps", "2")
    page.fill("#seed", "many")
    page.click("#generate")
    expect(page.locator('[data-param="seed"] .error')).to_have_text("Seed is 'many'; it must be a whole number")
    expect(error).to_be_hidden()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(page.locator("#complete > .error")).to_contain_text("PNG, JPEG or WebP")


def test_a_lost_worker_is_reported_above_the_images(browser: Browser, small_server: Server) -> None:
    server = small_server
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    page.fill("#n", "10")
    page.fill("#steps", "1000")  # far from done when the caption is seen, however fast the machine
    page.click("#generate")
    caption(page, "patch")
    server.worker().kill()
    expect(page.locator("#notice")).to_contain_text("ended unexpectedly", timeout=TIMEOUT)
    page.fill("#n", "1")
    page.fill("#steps", "2")
    page.click("#generate")
    caption(page, "2 steps")
    expect(page.locator("#notice")).to_be_hidden()
    page.close()


def test_the_keyboard_alone_is_enough(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "steps":
            break
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    caption(page, re.compile("^2 · seed .* 2 steps"))
    page.locator("#reuse").focus()
    page.keyboard.press("Enter")
    assert re.fullmatch(r"\d+", page.input_value("#seed"))


def test_the_sampler_the_published_settings_and_the_format_are_asked_for(
    open_page: Callable[..., Page], server: Server
) -> None:
    (model,) = server.http.get("/v1/capabilities").json()["models"]
    page = open_page()
    page.check("#published")
    assert page.input_value("#steps") == str(model["published"]["num_inference_steps"])
    assert page.input_value("#sampler") == model["published"]["sampler"]
    page.uncheck("#published")
    assert page.input_value("#steps") == str(model["num_inference_steps"])
    page.check("#published")
    page.fill("#steps", "2")  # a setting of one's own is no published one
    expect(page.locator("#published")).not_to_be_checked()
    choose(page, "4")
    page.select_option("#sampler", "ode")
    page.select_option("#format", "webp")
    page.fill("#seed", "70")
    with page.expect_request("**/v1/jobs") as asked:
        page.click("#generate")
    body: Any = asked.value.post_data_json
    assert (body["sampler"], body["output_format"]) == ("ode", "webp") and "published" not in body
    caption(page, "4 · seed 70 · 2 steps")
    caption(page, "· ode ·")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "4-seed70.webp"
    page.select_option("#sampler", "sde")
    page.click("#reuse")
    assert (page.input_value("#sampler"), page.input_value("#format")) == ("ode", "webp")
    page.check("#published")
    with page.expect_request("**/v1/jobs") as asked:
        page.click("#generate")
    body = asked.value.post_data_json
    assert body["published"] is True
    page.keyboard.press("Escape")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_fits_and_follows_the_colour_scheme(
    open_page: Callable[..., Page], scheme: str, shoot: Callable[..., None]
) -> None:
    page = open_page(width=390, height=844, color_scheme=scheme, has_touch=True, device_scale_factor=2)
    choose(page, "8")
    page.fill("#seed", "2")
    page.tap("#generate")
    caption(page, "8 · seed 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(lightness) < 100) == (scheme == "dark")
    small = page.locator("button:visible, #chips span").evaluate_all(
        "all => all.filter(e => e.offsetHeight < 40).length"
    )
    assert small == 0
    shoot(page, f"page-phone-{scheme}")


def test_a_token_is_asked_for_and_kept(browser: Browser, guarded_server: Server) -> None:
    page = browser.new_page()
    page.goto(guarded_server.url)
    page.fill("#token", "wrong-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token")).to_have_value("")  # asked again
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready]")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.close()


def test_a_model_of_text_has_a_prompt_a_negative_prompt_and_sizes(
    open_page: Callable[..., Page], text_server: Server
) -> None:
    page = open_page(text_server.url)
    expect(page.locator("#chips-field")).to_be_hidden()
    page.fill("#steps", "2")
    page.click("#generate")
    expect(page.locator("#prompt-field .error")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("a red fish")
    page.get_by_label("Negative prompt").fill("blue")
    for width, height in ((192, 128), (64, 64)):
        page.select_option("#size", f"{width}x{height}")
        page.click("#generate")
        caption(page, f"{width}\xa0×\xa0{height}")
        assert page.locator("#frames canvas").evaluate("c => [c.width, c.height]") == [width, height]
