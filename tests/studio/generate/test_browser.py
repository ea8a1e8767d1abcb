"""The Generate page in a real Chromium: the model's name, recipes from PNG files, requests that are mended."""

import base64
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from studio.web.language import load_languages
from tests.conftest import free_port, serve
from tests.studio.browser import RunningStudio, running_studio, visit
from tests.studio.generate.form import draw, opened

LANGUAGES = load_languages()


def hand_over(page: Page, event: str, name: str, content: bytes) -> None:
    """Drop or paste a file onto the page, as a person does."""
    page.evaluate(
        """([event, name, encoded]) => {
          const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name));
          const Kind = event === "paste" ? ClipboardEvent : DragEvent;
          const data = event === "paste" ? { clipboardData: transfer } : { dataTransfer: transfer };
          document.body.dispatchEvent(new Kind(event, { ...data, bubbles: true, cancelable: true }));
        }""",
        [event, name, base64.b64encode(content).decode()],
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_model_is_named_in_the_pill_and_under_pictures_and_the_demo_model_offers_examples(
    studio: RunningStudio, browser: Browser, language: str
) -> None:
    say = LANGUAGES[language]
    name = say("generate.model_embedded")
    with visit(browser, studio.url, language=language) as page:
        opened(page)
        expect(page.locator(".service-slot .pill-model")).to_have_text(name)
        expect(page.locator("#model-note")).to_contain_text("475")
        examples = page.locator("#model-note [data-prompt]")
        expect(examples).to_have_count(6)
        page.locator("#steps").fill("1")
        examples.first.click()
        expect(page.locator(".tile-prompt").first).to_have_text(say("generate.example_1"))
        expect(page.locator(".tile-model").first).to_have_text(name)


def test_settings_appear_when_a_service_is_started_after_the_page(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    held: list[Route] = []
    with (
        running_studio(tmp_path / "home", "--service-url", f"http://127.0.0.1:{port}") as late,
        visit(browser, late.url, language="en") as page,
    ):
        page.goto("/generate")
        expect(page.locator("#width")).to_have_count(0)
        page.route("**/generate/controls*", lambda route: held.append(route), times=1)
        for _ in range(2):
            page.evaluate("document.body.dispatchEvent(new Event('service-changed'))")
        expect(page.locator("#controls.htmx-request")).to_be_attached()
        with page.expect_request("**/generate/controls*"):  # the second piece of news waits and is not dropped
            held[0].continue_()
        with serve(tmp_path, "--port", str(port), wait=False):
            expect(page.locator("#width")).to_have_value("128")
            expect(page.locator("#model-note")).to_contain_text("475")
            expect(page.locator("#tokens-prompt")).to_contain_text("/ 32")


def test_a_png_that_is_dropped_or_pasted_fills_the_form_and_other_files_are_refused_clearly(
    studio: RunningStudio, browser: Browser, tmp_path: Path
) -> None:
    with visit(browser, studio.url, language="en") as page:
        opened(page)
        page.locator("#negative_prompt").fill("blue")
        page.locator("#width").fill("192")
        draw(page, "an owl", steps=2, seed=41)
        source = page.locator(".tile-picture").first.get_attribute("href")
        drawn = page.request.get(f"{source}/picture.png").body()
        for event in ("drop", "paste"):
            page.locator("#prompt").fill("something else")
            page.locator("#seed").fill("7")
            page.locator("#negative_prompt").fill("")
            hand_over(page, event, "owl.png", drawn)
            expect(page.locator("#prompt")).to_have_value("an owl")
            for field, value in (("negative_prompt", "blue"), ("seed", "41"), ("width", "192"), ("steps", "2")):
                expect(page.locator(f"#{field}")).to_have_value(value)
            expect(page.locator("#toasts")).to_contain_text("recipe of the picture")
        page.reload()
        expect(page.locator("#prompt")).to_have_value("an owl")
        Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
        Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
        Image.new("RGB", (8, 8)).save(tmp_path / "moving.gif")
        (tmp_path / "notes.png").write_bytes(b"\x89PNG no picture")
        for name, problem in (
            ("plain", "carries no recipe"),
            ("photo", "carries no recipe"),
            ("moving", "is a GIF picture"),
            ("notes", "is not a picture"),
        ):
            (file,) = tmp_path.glob(f"{name}.*")
            hand_over(page, "drop", file.name, file.read_bytes())
            expect(page.locator("#toasts .toast-trouble")).to_contain_text(f"{file.name}: {problem}")
        expect(page.locator("#prompt")).to_have_value("an owl")


def test_what_was_refused_is_mended_in_the_form_and_not_sent_again(studio: RunningStudio, browser: Browser) -> None:
    long_prompt = " ".join(["word"] * 200)
    with visit(browser, studio.url, language="zh") as page:
        opened(page)
        page.locator("#prompt").fill(long_prompt)
        page.locator("#steps").fill("1")
        page.locator(".draw").click()
        failed = page.locator(".generation-failed")
        expect(failed).to_be_visible()
        expect(failed.get_by_role("button", name="重试")).to_have_count(0)
        page.locator("#prompt").fill("别的")
        failed.get_by_role("button", name="修改请求").click()
        expect(page.locator("#prompt")).to_have_value(long_prompt)
        expect(page.locator("#prompt")).to_be_focused()
        expect(page.locator("#problem-prompt")).to_contain_text("32")
        page.locator("#prompt").fill("一只猫")
        expect(page.locator("#problem-prompt")).to_be_hidden()
        page.locator(".draw").click()
        expect(page.locator(".tile-prompt").first).to_have_text("一只猫")


@pytest.mark.parametrize("width", [1280, 390])
def test_prompt_and_draw_stay_in_sight_and_tokens_are_counted_against_the_limit(
    studio: RunningStudio, browser: Browser, width: int
) -> None:
    with visit(browser, studio.url, language="en", width=width) as page:
        opened(page)
        page.locator("#prompt").fill("an owl")
        expect(page.locator("#tokens-prompt")).to_have_text(re.compile(r"^\d / 32 tokens$"))
        page.locator("#prompt").fill(" ".join(["word"] * 80))
        expect(page.locator("#tokens-prompt")).to_have_class(re.compile("is-over"))
        page.locator(".settings").evaluate("settings => settings.open = true")
        page.locator("#recipe-hint").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('.results').style.minHeight = '4000px'; window.scrollTo(0, 3000)")
        for part in ("#prompt", ".draw"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)


def test_a_waiting_drawing_takes_one_line(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        opened(page)
        page.locator("#steps").fill("100")
        page.locator("#num_images").fill("8")
        page.locator("#prompt").fill("a cat on a blue background")
        for _ in range(3):
            page.locator(".draw").click()
        waiting = page.locator(".generation:not(:has(.previews))")
        expect(waiting.first).to_be_visible()
        assert waiting.first.bounding_box()["height"] < 60
        page.locator(".generation button").evaluate_all("buttons => buttons.forEach((button) => button.click())")
        expect(page.locator(".generation")).to_have_count(0)


def test_among_many_adapters_one_is_searched_and_a_negative_scale_typed(
    studio: RunningStudio, browser: Browser
) -> None:
    names = [f"ink-{number}" for number in range(9)]
    with visit(browser, studio.url, language="en") as page:
        page.route("**/generate/adapters*", lambda route: route.fulfill(status=204))
        page.goto("/generate?" + "&".join(f"adapter={name}" for name in names))
        expect(page.locator("#width")).to_be_attached()
        for box in page.get_by_role("checkbox", name="ink-", exact=False).all():
            box.uncheck()
        page.get_by_role("searchbox", name="Find an adapter").fill("ink-7")
        expect(page.locator(".adapter-choice:visible")).to_have_count(1)
        strength = page.get_by_label("Strength of ink-7")
        strength.fill("-3.5")
        page.get_by_role("checkbox", name="ink-7").check()
        with page.expect_request("**/generate") as sent:
            page.locator("#prompt").fill("a cat")
            page.locator(".draw").click()
        assert "scale%3Aink-7=-3.5" in (sent.value.post_data or "")
        expect(page.locator(".generation-failed").first).to_contain_text("ink-7")  # this service has no such adapter


def test_an_adapter_of_few_steps_sets_them_and_gives_back_what_was_there(
    studio: RunningStudio, browser: Browser
) -> None:
    with visit(browser, studio.url, language="zh") as page:
        opened(page)
        steps, guidance, turbo = (
            page.locator("#steps"),
            page.locator("#guidance_scale"),
            page.get_by_label("turbo", exact=True),
        )
        expect(page.locator(".adapter-choice", has=turbo)).to_contain_text("加速（4 步）")
        steps.fill("12")
        turbo.check()
        expect(steps).to_have_value("4")
        expect(guidance).to_have_value("1")
        turbo.uncheck()
        expect(steps).to_have_value("12")
        expect(guidance).to_have_value("2")
        turbo.check()
        steps.fill("6")
        turbo.uncheck()
        expect(steps).to_have_value("6")
        expect(guidance).to_have_value("2")
        steps.fill("12")
        turbo.check()
        page.reload()
        page.get_by_role("button", name="English").click()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(steps).to_have_value("4")
        turbo.uncheck()
        expect(steps).to_have_value("12")
        page.goto("/generate?adapter=turbo")  # as the Adapters page links to it
        expect(guidance).to_have_value("1")
        with page.expect_request("**/generate") as sent:
            draw(page, "一个红苹果", steps=4, seed=3)
        assert {"adapter=turbo", "steps=4", "guidance_scale=1"} <= set((sent.value.post_data or "").split("&"))
