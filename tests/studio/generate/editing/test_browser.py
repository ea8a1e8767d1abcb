"""The editor in a real Chromium: a mask is brushed, a picture drawn, compared and drawn again; nothing entered is lost."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from longcat.sampling.encoding.source import FEATHER_PX
from studio.web.language import load_languages
from tests.conftest import free_port, serve
from tests.studio.browser import RunningStudio, check_accessibility, running_studio, visit
from tests.studio.generate.form import draw, opened
from tests.studio.generate.test_browser import hand_over

LANGUAGES = load_languages()
NOTHING = 0


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def mask_of(page: Page) -> np.ndarray:
    """Return the opacity of the mask as the page shows it, (H, W)."""
    url = page.locator("#mask").evaluate("mask => mask.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).getchannel("A"))


def brush(page: Page, *path: tuple[float, float]) -> None:
    """Brush along points of the picture, as parts of its sides."""
    mask = page.locator("#mask")
    mask.scroll_into_view_if_needed()
    box = mask.bounding_box()
    assert box is not None
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in path]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def open_apple(page: Page, language: str, *, seed: int) -> bytes:
    """Draw an apple, and open it in the editor by its button; its file."""
    opened(page)
    page.locator(".settings").evaluate("settings => settings.open = true")
    draw(page, f"an apple {seed}", seed=seed)
    address = page.locator(".tile-picture").first.get_attribute("href")
    page.get_by_role("button", name=LANGUAGES[language]("generate.edit")).first.click()
    page.wait_for_url("**/edit/*")
    expect(page.locator("#strength")).to_be_attached()
    return page.request.get(f"{address}/picture.png").body()


def edit_once(page: Page, prompt: str, *, seed: int) -> str:
    """Fill in the form and wait for the result; the address of its picture."""
    if not page.locator("#steps").is_visible():
        page.locator(".settings > summary").click()
    page.locator("#steps").fill("2")
    page.locator("#seed").fill(str(seed))
    page.locator("#prompt").fill(prompt)
    page.locator(".draw").click()
    expect(page.locator(".tile-prompt").first).to_have_text(prompt)
    return str(page.locator(".tile-picture").first.get_attribute("href"))


@pytest.mark.parametrize(("language", "width", "seed"), [("en", 1280, 11), ("zh", 390, 12)])
def test_a_brushed_part_is_drawn_anew_compared_and_repeated_byte_for_byte(
    studio: RunningStudio, browser: Browser, language: str, width: int, seed: int
) -> None:
    say = LANGUAGES[language]
    with visit(browser, studio.url, language=language, width=width) as page:
        before = open_apple(page, language, seed=seed)
        expect(page.locator("#strength")).to_have_value("0.6")
        expect(page.get_by_text(say("edit.scope_whole"))).to_be_visible()
        brush(page, (0.3, 0.3), (0.5, 0.5))
        expect(page.get_by_text(say("edit.scope_masked"))).to_be_visible()
        expect(page.locator("#strength")).to_have_value(re.compile(r"^1(\.0)?$"))
        opacity = mask_of(page)
        assert opacity[50, 50] == 255
        assert opacity[20, 100] == NOTHING
        check_accessibility(page, "editor")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        result = edit_once(page, f"a pear {seed}", seed=seed)
        after = page.request.get(f"{result}/picture.png").body()
        rows, columns = np.nonzero(opacity)
        kept = np.ones(opacity.shape, bool)
        kept[
            rows.min() - FEATHER_PX : rows.max() + FEATHER_PX + 1,
            columns.min() - FEATHER_PX : columns.max() + FEATHER_PX + 1,
        ] = False
        difference = np.abs(pixels(after) - pixels(before)).sum(2)
        assert not difference[kept].any()
        assert difference[opacity == 255].mean() > 1
        newest = page.locator("#before-after")
        expect(newest.get_by_text(say("viewer.before"), exact=True).first).to_be_visible()
        newest.get_by_role("button", name=say("viewer.with_slider")).click()
        expect(newest.get_by_role("slider")).to_be_visible()

        page.goto("/generate")
        expect(page.locator(".tile-prompt").first).to_have_text(f"a pear {seed}")
        page.get_by_role("button", name=say("generate.again"), exact=True).first.click()
        expect(page.locator(".tile-prompt").filter(has_text=f"a pear {seed}")).to_have_count(2)
        repeated = page.locator(".tile-picture").first.get_attribute("href")
        assert repeated != result
        assert page.request.get(f"{repeated}/picture.png").body() == after
        page.locator(".tile-picture").first.click()
        viewer = page.get_by_role("dialog")
        expect(viewer.locator(f"img[src='{repeated}/before.png']")).to_be_visible()
        check_accessibility(page, "viewer")
        viewer.get_by_role("link", name=say("generate.use_settings")).click()
        page.wait_for_url("**/edit/*")
        expect(page.locator("#prompt")).to_have_value(f"a pear {seed}")
        expect(page.get_by_text(say("edit.scope_masked"))).to_be_visible()
        assert np.abs(mask_of(page).astype(int) - opacity).max() <= 1


def test_strokes_are_undone_erased_inverted_and_made_by_keys(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        open_apple(page, "en", seed=21)
        undo, redo = (page.get_by_role("button", name=name, exact=False) for name in ("Undo", "Redo"))
        expect(undo).to_be_disabled()
        brush(page, (0.2, 0.2), (0.4, 0.2))
        brush(page, (0.2, 0.8), (0.4, 0.8))
        both = mask_of(page)
        undo.click()
        one = mask_of(page)
        assert one[26, 38] == 255
        assert not one[100:].any()
        page.locator("#mask").focus()
        page.keyboard.press("Control+Shift+Z")
        assert (mask_of(page) == both).all()
        expect(redo).to_be_disabled()
        page.get_by_role("button", name="Invert").click()
        assert mask_of(page)[26, 38] == NOTHING
        assert mask_of(page)[64, 64] == 255
        page.keyboard.press("Control+z")
        page.get_by_role("button", name="Eraser").click()
        brush(page, (0.2, 0.2), (0.4, 0.2))
        assert not mask_of(page)[:60].any()
        page.get_by_role("button", name="Clear").click()
        assert not mask_of(page).any()
        expect(page.get_by_text("Nothing is brushed")).to_be_visible()

        page.locator("#mask").focus()
        page.keyboard.press("b")
        size = int(page.locator("#brush-size").input_value())
        page.keyboard.press("]")
        assert int(page.locator("#brush-size").input_value()) > size
        page.keyboard.press("[")
        expect(page.locator("#brush-size")).to_have_value(str(size))
        page.keyboard.press("Space")
        dot = (mask_of(page) > 0).sum()
        assert dot > 0
        page.keyboard.press("ArrowLeft")
        assert (mask_of(page) > 0).sum() == dot
        page.keyboard.press("Shift+ArrowLeft")
        assert (mask_of(page) > 0).sum() > dot
        expect(page.locator(".brush-ring")).to_have_css("opacity", "1")
        page.locator("#prompt").fill("a pear")
        page.keyboard.press("Control+z")  # of the text, not of the mask
        assert (mask_of(page) > 0).sum() > dot


def test_mask_words_and_strength_outlive_reloads_languages_and_other_pages(
    studio: RunningStudio, browser: Browser
) -> None:
    with visit(browser, studio.url, language="en") as page:
        open_apple(page, "en", seed=31)
        brush(page, (0.3, 0.3), (0.6, 0.6))
        page.locator("#prompt").fill("a pear “梨”")
        page.locator("#strength").fill("0.6")
        page.locator("details.margins > summary").click()
        page.locator("#left").fill("64")
        mask, address = mask_of(page), page.url

        def check() -> None:
            expect(page.locator("#prompt")).to_have_value("a pear “梨”")
            expect(page.locator("#left")).to_have_value("64")
            expect(page.locator("#result-size")).to_contain_text("192 × 128")
            expect(page.locator("[data-scope=both]")).to_be_visible()
            expect(page.locator("#strength")).to_have_value("0.6")
            assert np.abs(mask_of(page).astype(int) - mask).max() <= 1
            assert page.url == address

        page.reload()
        check()
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_label("那里应该是什么")).to_be_visible()
        check()
        page.goto("/jobs")
        page.go_back()
        check()
        page.locator("[name=theme]").click()
        check()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_picture_of_ones_own_is_chosen_dropped_or_pasted_and_another_file_refused(
    studio: RunningStudio, browser: Browser, tmp_path: Path, language: str
) -> None:
    say = LANGUAGES[language]
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "mine.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    with visit(browser, studio.url, language=language, width=390) as page:
        page.goto("/edit")
        check_accessibility(page, "start")
        page.locator("#edit-file").set_input_files(tmp_path / "notes.txt")
        expect(page.locator("#toasts .toast-trouble")).to_contain_text(say("field.picture"))
        page.locator("#edit-file").set_input_files(tmp_path / "mine.jpg")
        page.wait_for_url("**/edit/*")
        first = page.url
        Image.new("RGB", (64, 64), "navy").save(tmp_path / "mine.jpg")
        for event in ("drop", "paste"):
            page.goto(first)
            expect(page.locator("#mask")).to_have_attribute("width", "90")
            hand_over(page, event, "mine.jpg", (tmp_path / "mine.jpg").read_bytes())
            expect(page.locator("#mask")).to_have_attribute("width", "64")


@pytest.mark.heavy
def test_words_and_mask_are_there_when_a_model_that_edits_starts_after_the_page(
    browser: Browser, edit_folder: Path, tmp_path: Path
) -> None:
    port = free_port()
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "mine.png")
    with (
        running_studio(tmp_path / "home", "--service-url", f"http://127.0.0.1:{port}") as late,
        visit(browser, late.url, language="en") as page,
    ):
        page.goto("/edit")
        page.locator("#edit-file").set_input_files(tmp_path / "mine.png")
        page.wait_for_url("**/edit/*")
        page.locator("#prompt").fill("make it night")
        brush(page, (0.3, 0.3), (0.6, 0.6))
        mask = mask_of(page)
        with serve(tmp_path, "--flavour", str(edit_folder), "--port", str(port), wait=False):
            expect(page.get_by_label("What should change")).to_have_value("make it night")
            expect(page.locator("#strength")).to_have_count(0)
            assert np.abs(mask_of(page).astype(int) - mask).max() <= 1
            page.locator("#steps").fill("1")
            page.locator(".draw").click()
            expect(page.locator("#before-after img")).to_have_count(2)
            page.goto("/generate")
            page.locator("#prompt").fill("an owl")
            page.locator(".draw").click()
            page.wait_for_url("**/edit?prompt=an+owl")
            page.get_by_role("button", name="Edit: make it night").click()
            page.wait_for_url("**/edit/*")
            expect(page.get_by_label("What should change")).to_have_value("an owl")
