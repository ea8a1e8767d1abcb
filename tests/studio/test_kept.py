"""In a real Chromium: entered values are never lost, and messages disappear once they no longer apply."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from studio.web.language import load_languages
from tests.studio.browser import RunningStudio, running_studio, visit

LANGUAGES = load_languages()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    folder = tmp_path_factory.mktemp("studio") / "home"
    pictures = folder / "datasets" / "cats"
    pictures.mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (128, 128), "red").save(pictures / f"{name}.png")
    with running_studio(folder) as running:
        yield running


def ready(page: Page) -> None:
    page.goto("/generate")
    expect(page.locator("#width")).to_be_visible()


def test_prompt_and_settings_outlive_reloads_other_pages_languages_and_themes(
    studio: RunningStudio, browser: Browser
) -> None:
    with visit(browser, studio.url, language="en") as page:
        ready(page)
        page.get_by_label("Prompt", exact=True).fill("a cat “喵”")
        page.locator("#steps").fill("7")
        page.locator("#seed").fill("42")

        def check() -> None:
            expect(page.locator("#prompt")).to_have_value("a cat “喵”")
            expect(page.locator("#steps")).to_have_value("7")
            expect(page.locator("[data-slides=steps]")).to_have_value("7")
            expect(page.locator("#seed")).to_have_value("42")

        page.reload()
        check()
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_label("提示词", exact=True)).to_be_visible()
        check()
        page.goto("/jobs")
        page.go_back()
        check()
        page.locator("[name=theme]").click()
        check()
        page.goto("/adapters")
        page.locator("#name").fill("brush")
        page.get_by_role("button", name="English").click()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.locator("#name")).to_have_value("brush")


def test_the_training_form_outlives_an_import_and_a_change_of_language(
    studio: RunningStudio, browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_family": "longcat_image", "model_flavour": "dev", "lora_rank": 24, "seed": 9}))
    with visit(browser, studio.url, language="en") as page:
        page.goto("/train")
        page.locator("#import-file").set_input_files(file)
        expect(page.get_by_role("status").filter(has_text="The file was imported")).to_be_visible()
        expect(page.locator("#option-lora_rank")).to_have_value("24")
        page.locator("#option-adapter_name").fill("mine")
        page.get_by_role("button", name="中文").click()
        expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
        for name, value in (("lora_rank", "24"), ("adapter_name", "mine"), ("model_flavour", "dev"), ("seed", "9")):
            expect(page.locator(f"#option-{name}")).to_have_value(value)
        page.reload()
        expect(page.locator("#option-lora_rank")).to_have_value("24")
        page.get_by_role("button", name="embedded").click()
        expect(page.locator("#option-lora_rank")).not_to_have_value("24")
        page.locator("#all-options > summary").click()
        page.locator("#option-lora_rank").fill("5")
        page.reload()
        expect(page.locator("#option-lora_rank")).to_have_value("5")


def test_a_file_that_is_no_configuration_leaves_the_form_as_it_was(
    studio: RunningStudio, browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text("no JSON")
    with visit(browser, studio.url, language="en") as page:
        page.goto("/train")
        page.locator("#option-adapter_name").fill("mine")
        page.locator("#import-file").set_input_files(file)
        expect(page.locator("#toasts .toast")).to_contain_text("JSON")
        expect(page.locator("#option-adapter_name")).to_have_value("mine")


def test_a_caption_is_saved_while_it_is_typed_and_the_figures_follow(studio: RunningStudio, browser: Browser) -> None:
    folder = studio.home / "datasets" / "cats"
    with visit(browser, studio.url, language="en") as page:
        page.goto(f"/datasets/view?path={folder}")
        expect(page.locator(".left-out textarea")).to_have_count(2)
        page.locator(".left-out textarea").first.press_sequentially("a red square", delay=20)
        expect(page.locator(".left-out .caption-state").first).to_have_text("Saved")
        assert (folder / "a.txt").read_text(encoding="utf-8") == "a red square\n"
        expect(page.locator(".left-out textarea").first).to_have_value("a red square")  # still being typed in
        page.locator("h1").click()
        expect(page.locator(".left-out textarea")).to_have_count(1)
        expect(page.locator("#summary .figure-number").first).to_have_text("1")


def test_messages_are_one_and_go_when_the_field_is_mended(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        ready(page)
        page.locator("#composer").evaluate("form => form.noValidate = true")
        page.get_by_label("Prompt", exact=True).fill("a cat")
        for _ in range(2):
            page.get_by_label("Width").fill("100")
            page.get_by_role("button", name="Draw").click()
            expect(page.locator("#toasts .toast")).to_have_count(1)
        page.get_by_label("Width").fill("128")
        expect(page.locator("#toasts .toast")).to_have_count(0)
        expect(page.locator("#problem-width")).to_be_hidden()


def test_a_studio_that_stops_is_seen_and_that_it_is_back(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en", may_fail=True) as page:
        ready(page)
        studio.stop()
        offline = page.locator(".pill-offline")
        expect(offline).to_be_visible()
        expect(page.locator(".service-slot .pill:not(.pill-offline)")).to_be_hidden()
        studio.start()
        expect(offline).to_be_hidden()
        expect(page.locator("#toasts .toast")).to_have_count(0)
