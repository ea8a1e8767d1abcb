"""The studio in a real Chromium: generating, adapters, keyboard, languages, themes, narrow screens."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save_file

from studio.web.navigation import NAVIGATION
from tests.longcat.adapter.foreign.test_reading import PREFIXED, layers_of
from tests.studio.browser import LANGUAGES, RunningStudio, check_accessibility, draw, visit

PATHS = [*(page.path for page in NAVIGATION), "/verify"]


def pixels_differ(page: Page) -> bool:
    """Return True if the two pictures of the comparison differ."""
    return page.evaluate(
        """async () => {
          const read = async (image) => {
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
            canvas.drawImage(image, 0, 0);
            return canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data;
          };
          const [one, other] = await Promise.all([...document.querySelectorAll(".compare figure > img")].map(read));
          return one.length === other.length && one.some((value, i) => value !== other[i]);
        }"""
    )


@pytest.mark.parametrize(("language", "prompt"), [("en", "a red apple"), ("zh", "一只猫头鹰")])
def test_a_sentence_becomes_a_picture_that_can_be_looked_at_varied_and_deleted(
    studio: RunningStudio, browser: Browser, language: str, prompt: str
) -> None:
    say = LANGUAGES[language]
    with visit(browser, studio.url, language=language) as page:
        page.goto("/")
        expect(page.locator(".service-slot")).to_contain_text(say("frame.service_ready"))
        page.get_by_label(say("field.prompt"), exact=True).fill(prompt)
        page.get_by_label(say("field.steps"), exact=True).fill("24")
        page.get_by_label(say("field.num_images"), exact=True).fill("2")
        page.get_by_role("button", name=say("generate.draw")).click()
        page.locator(".generation:has(.preview img)").get_by_role("progressbar").wait_for()  # looked for at every frame
        expect(page.locator(".generation")).to_have_count(0)
        page.locator(".tile-picture").first.click()
        viewer = page.get_by_role("dialog")
        expect(viewer.get_by_role("heading")).to_have_text(prompt)
        expect(viewer).to_contain_text("24")
        page.keyboard.press("Escape")
        expect(viewer).to_be_hidden()
        before = page.locator(".tile").count()
        page.locator(".tile").first.get_by_role("button", name=say("generate.vary")).click()
        expect(page.locator(".tile")).to_have_count(before + 4)
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator(".tile").first.get_by_role("button", name=say("generate.delete")).click()
        expect(page.locator(".tile")).to_have_count(before + 3)
        page.reload()
        expect(page.locator(".tile")).to_have_count(before + 3)


def test_a_drawing_is_cancelled_on_every_page_that_shows_it(studio: RunningStudio, browser: Browser) -> None:
    say = LANGUAGES["en"]
    with visit(browser, studio.url, language="en") as page, visit(browser, studio.url, language="zh") as other:
        page.goto("/generate")
        page.get_by_label(say("field.prompt"), exact=True).fill("a cat")
        page.get_by_label(say("field.steps"), exact=True).fill("100")
        page.get_by_label(say("field.num_images"), exact=True).fill("8")
        page.get_by_role("button", name=say("generate.draw")).click()
        page.locator(".preview img").first.wait_for()
        other.goto("/generate")
        expect(other.locator(".generation")).to_have_count(1)
        page.get_by_role("button", name=say("generate.cancel")).click()
        expect(page.locator(".generation")).to_have_count(0)
        expect(other.locator(".generation")).to_have_count(0)


def test_a_problem_is_shown_beside_its_field_which_gets_the_focus(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="zh") as page:
        page.goto("/generate")
        page.locator("#composer").evaluate("form => form.noValidate = true")
        page.get_by_label("提示词", exact=True).fill("一只猫")
        page.get_by_label("宽度").fill("100")
        page.get_by_role("button", name="开始绘制").click()
        expect(page.locator("#problem-width")).to_have_text("100：不是 64 的倍数；请给出 64 的倍数，例如 128")
        expect(page.get_by_label("宽度")).to_be_focused()
        expect(page.get_by_role("alert")).to_contain_text("宽度")
        page.get_by_label("宽度").fill("128")
        page.get_by_label("步数").fill("2")
        page.get_by_role("button", name="开始绘制").click()
        expect(page.locator("#problem-width")).to_be_hidden()


def test_a_rejection_of_the_service_is_shown_in_the_place_of_the_picture(
    studio: RunningStudio, browser: Browser
) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate")
        page.get_by_label("Prompt", exact=True).fill("word " * 200)
        page.get_by_role("button", name="Draw").click()
        failed = page.locator(".generation-failed")
        expect(failed).to_contain_text("at most 32")
        expect(page.locator("#problem-prompt")).to_contain_text("at most 32")
        page.get_by_label("Prompt", exact=True).fill("a cat")
        expect(page.locator("#problem-prompt")).to_be_hidden()
        failed.get_by_role("button", name="Dismiss").click()
        expect(failed).to_have_count(0)


def test_the_keyboard_is_enough(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate")
        expect(page.locator(".service-slot")).to_contain_text("Ready")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
        before = page.locator(".tile").count()
        page.keyboard.type("a sailboat")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".tile")).to_have_count(before + 1)
        page.locator(".tile-picture").first.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.querySelector('dialog[open]').contains(document.activeElement)")
        page.keyboard.press("Escape")
        expect(page.locator(".tile-picture").first).to_be_focused()


def test_an_adapter_is_tried_and_compared_with_none(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="zh") as page:
        page.goto("/adapters")
        expect(page.locator("#adapter-wash .pill")).to_contain_text("使用中")
        page.get_by_role("link", name="试用 wash@1").click()
        strength = page.get_by_label("wash@1 的强度")
        strength.fill("1.5")
        expect(page.locator(f"[data-slides='{strength.get_attribute('id')}']")).to_have_value("1.5")
        draw(page, "zh", "一个红苹果")
        expect(page.locator(".tile").first).to_contain_text("wash@1 · 1.5")
        page.locator(".tile").first.get_by_role("button", name="有无适配器对比").click()
        expect(page.locator(".compare figure > img")).to_have_count(2)
        assert pixels_differ(page)
        expect(page.locator(".slide-pictures img")).to_have_count(2)
        page.get_by_role("slider").fill("25")
        expect(page.locator(".slide-over")).to_have_css("clip-path", "inset(0px 0px 0px 25%)")
        check_accessibility(page, "compare")


def test_a_file_is_dropped_refused_with_its_reason_then_another_imported_rolled_back_and_pinned(
    studio: RunningStudio, browser: Browser, tmp_path: Path
) -> None:
    named = {f"lora_unet_{name.removeprefix('transformer.').replace('.', '_')}": at for name, at in PREFIXED.items()}
    save_file(layers_of(named, down="lora_down", up="lora_up"), tmp_path / "Brush Pen.safetensors")
    with visit(browser, studio.url, language="en") as page:
        page.goto("/adapters")
        drop(page, "notes.safetensors", b"no weights")
        expect(page.get_by_label("Name")).to_have_value("notes")
        page.get_by_role("button", name="Import").click()
        expect(page.locator("#problem-file")).to_contain_text("no safetensors file")
        page.get_by_label("Name").fill("")
        drop(page, "Brush Pen.safetensors", (tmp_path / "Brush Pen.safetensors").read_bytes())
        expect(page.get_by_label("Name")).to_have_value("brush-pen")
        page.get_by_role("button", name="Import").click()
        expect(page.locator("#toasts")).to_contain_text("brush-pen@1: kohya format")
        expect(page.locator("#adapter-brush-pen .pill")).to_contain_text("Served")
        wash = page.locator("#adapter-wash")
        wash.get_by_role("button", name="Roll back to 1").click()
        expect(wash.locator(".pill")).to_contain_text("@1")
        wash.get_by_role("button", name="Make latest").click()
        expect(wash.locator(".pill")).to_contain_text("@2")
        wash.get_by_role("button", name="Pin").click()
        expect(wash.get_by_role("button", name="Unpin")).to_be_visible()
        wash.get_by_role("button", name="Unpin").click()
        with page.expect_download() as download:
            wash.get_by_role("link", name="Download wash@2").click()
        assert download.value.suggested_filename == "wash-2.safetensors"


def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file onto the page, as a user does."""
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name));
          return transfer;
        }""",
        [name, list(content)],
    )
    page.locator(".drop").dispatch_event("dragover", {"dataTransfer": transfer})
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": transfer})


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_passes_the_accessibility_checks(
    studio: RunningStudio, browser: Browser, language: str, dark: bool
) -> None:
    with visit(browser, studio.url, language=language, dark=dark) as page:
        for path in (*PATHS, "/adapters/wash/2", "/nothing"):
            page.goto(path)
            page.wait_for_load_state("networkidle") if path != "/generate" else page.wait_for_load_state()
            check_accessibility(page, path)
        page.goto("/generate")
        page.locator(".tile-picture").first.click()
        page.get_by_role("dialog").wait_for()
        check_accessibility(page, "the viewer")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_narrow_screen(studio: RunningStudio, browser: Browser, width: int) -> None:
    with visit(browser, studio.url, language="en", width=width) as page:
        for path in (*PATHS, "/adapters/wash/2"):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_language_and_colours_are_changed_on_the_page_that_is_there(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/adapters")
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("适配器")
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.get_by_role("button", name=re.compile("切换到深色")).click()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        assert page.evaluate(background) != light
        assert page.url.endswith("/adapters")


def test_the_focus_goes_to_the_next_picture_when_one_is_deleted(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate")
        expect(page.locator(".service-slot")).to_contain_text("Ready")
        for prompt in ("a cup", "a key"):
            draw(page, "en", prompt, steps=1)
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator(".tile").first.get_by_role("button", name="Delete").click()
        expect(page.locator(".tile-prompt").first).to_have_text("a cup")
        expect(page.locator(".tile-picture").first).to_be_focused()
