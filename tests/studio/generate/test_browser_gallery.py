"""The viewer, the gallery and grids in a real Chromium."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from studio.web.language import load_languages
from tests.studio.browser import RunningStudio, check_accessibility, visit
from tests.studio.generate.form import draw, opened

LANGUAGES = load_languages()


def test_the_viewer_is_browsed_zoomed_copied_from_and_its_settings_used_in_place(
    studio: RunningStudio, browser: Browser
) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=studio.url)
        opened(page)
        for seed in (11, 12):
            draw(page, f"a house {seed}", seed=seed)
        page.locator("#prompt").fill("something else")
        page.locator("a[data-view]").first.click()
        viewer = page.get_by_role("dialog")
        expect(viewer.get_by_role("heading")).to_have_text("a house 12")
        page.keyboard.press("ArrowRight")
        expect(viewer.get_by_role("heading")).to_have_text("a house 11")
        viewer.get_by_role("button", name="4:1 Four times its pixels").click()
        expect(viewer.locator(".viewer-picture")).to_have_css("width", "512px")
        viewer.get_by_role("button", name="Copy recipe").click()
        expect(viewer.get_by_role("button", name="Copied")).to_be_visible()
        recipe = json.loads(page.evaluate("navigator.clipboard.readText()"))
        assert (recipe["prompt"], recipe["seed"]) == ("a house 11", 11)
        star = viewer.get_by_role("button", name="Favourite: a house 11")
        star.click()
        expect(star).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".tile .favourite").nth(1)).to_have_attribute("aria-pressed", "true")
        viewer.get_by_role("link", name="Use these settings").click()
        expect(viewer).to_be_hidden()
        expect(page.locator("#prompt")).to_have_value("a house 11")
        expect(page.locator("#seed")).to_have_value("11")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_gallery_is_searched_and_several_pictures_are_deleted_at_once(
    studio: RunningStudio, browser: Browser, language: str
) -> None:
    say = LANGUAGES[language]
    with visit(browser, studio.url, language=language) as page:
        opened(page)
        words = f"key {language}"
        for seed in (1, 2):
            draw(page, f"{words} {seed}", seed=seed)
        page.get_by_role("searchbox", name=say("generate.search")).fill(words)
        expect(page.locator(".tile")).to_have_count(2)
        page.reload()
        expect(page.locator(".tile")).to_have_count(2)
        page.locator(".tile-select").first.focus()
        page.keyboard.press("Space")
        expect(page.locator("#selection")).to_be_visible()
        page.get_by_role("button", name=say("generate.select_all")).click()
        expect(page.locator("[data-selected]")).to_have_text(say("generate.selected", n=2))
        with page.expect_download() as download:
            page.locator("#selection").get_by_role("button", name=say("generate.download")).click()
        assert download.value.suggested_filename == "lithograph-pictures.zip"
        check_accessibility(page, "selected pictures")
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#selection").get_by_role("button", name=say("generate.delete")).click()
        expect(page.locator(".no-match")).to_have_text(say("generate.no_match"))
        page.locator(".history summary").click()
        expect(page.locator(".history-prompts")).not_to_contain_text(words)
        page.locator(".history-prompts button").first.click()
        expect(page.locator("#prompt")).not_to_have_value(f"{words} 2")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_grid_is_drawn_from_one_form_and_downloaded_as_a_sheet(
    studio: RunningStudio, browser: Browser, width: int, tmp_path: Path
) -> None:
    with visit(browser, studio.url, language="zh", width=width) as page:
        opened(page)
        page.locator("#steps").evaluate("field => field.value = 1")
        page.locator(".grid-form summary").click()
        page.get_by_label("提示词（每行一个）").fill("一只猫\na red apple")
        page.locator("#grid_seeds").fill("1, x")
        page.get_by_role("button", name="绘制网格").click()
        expect(page.locator("#problem-grid_seeds")).to_contain_text("逗号")
        page.locator("#grid_seeds").fill("1-2")
        page.get_by_role("button", name="绘制网格").click()
        expect(page.locator("#grid").get_by_role("status")).to_have_text("已绘制 4 / 4")
        expect(page.locator(".picture-grid tbody th")).to_have_count(4)
        expect(page.locator(".picture-grid img")).to_have_count(4)
        check_accessibility(page, "a grid")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        with page.expect_download() as download:
            page.get_by_role("link", name="拼图（PNG）").click()
        download.value.save_as(tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.height > 4 * 128
        page.locator("a[data-view]").first.click()
        page.keyboard.press("ArrowRight")
        viewer = page.get_by_role("dialog")
        expect(viewer).to_contain_text("一只猫")
        page.on("dialog", lambda dialog: dialog.accept())
        viewer.get_by_role("button", name="删除").click()
        expect(page.locator(".picture-grid img")).to_have_count(3)
        page.get_by_role("button", name="补画缺少的图片").click()
        expect(page.locator(".picture-grid img")).to_have_count(4)
        page.locator("a[data-view]").first.click()
        viewer.get_by_role("button", name="重画").click()
        page.wait_for_url(re.compile("/generate$"))  # where it is drawn
        page.goto("/grids")
        check_accessibility(page, "grids")
