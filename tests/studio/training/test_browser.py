"""The Train page in a real Chromium: three choices fill in the options, and the plan needs no model files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from studio.web.language import load_languages
from tests import ROOT
from tests.studio.browser import RunningStudio, check_accessibility, running_studio, visit

PICTURES = ROOT / "examples" / "ink" / "pictures"
LANGUAGES = load_languages()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    home = tmp_path_factory.mktemp("studio") / "home"
    for name in ("Ink Dogs", "cats"):
        folder = home / "datasets" / name
        folder.mkdir(parents=True)
        for picture in sorted(PICTURES.glob("*.png"))[:6]:
            (folder / picture.name).write_bytes(picture.read_bytes())
            (folder / f"{picture.stem}.txt").write_text("a dog", encoding="utf-8")
    with running_studio(home) as running:
        yield running


@pytest.mark.parametrize("language", ["en", "zh"])
def test_three_choices_fill_in_the_form(studio: RunningStudio, browser: Browser, language: str) -> None:
    say = LANGUAGES[language]
    with visit(browser, studio.url, language=language, dark=language == "zh") as page:

        def expect_options(**values: str) -> None:
            for name, value in values.items():
                expect(page.locator(f"#option-{name}")).to_have_value(value)

        page.goto("/train")
        page.get_by_role("radio", name="Ink Dogs").check()
        expect_options(instance_data_dir=str(studio.home / "datasets" / "Ink Dogs"), adapter_name="ink-dogs")
        page.get_by_role("radio", name="Ink Dogs").press("ArrowRight")  # by keyboard, as radio buttons are
        expect_options(instance_data_dir=str(studio.home / "datasets" / "cats"), adapter_name="cats")
        page.get_by_role("button", name="final").click()
        page.get_by_role("radio", name=say("train.goal_subject")).check()
        expect_options(model_flavour="final", lora_rank="32", max_train_steps="1200", base_model_precision="auto")
        expect(page.locator("#goal-subject-sets .sets:visible")).to_contain_text("1200")
        page.locator("#option-trigger_words").fill("sks")
        page.locator("#plan-for").select_option("12")
        expect(page.locator("#plan-auto")).to_contain_text(
            "int8"
        )  # without a hub: the plan reads no files of the model
        page.locator("#plan-for").select_option("80")
        expect(page.locator("#plan-auto")).to_contain_text("no_change")
        page.reload()
        expect_options(trigger_words="sks", lora_rank="32", adapter_name="cats")
        expect(page.get_by_role("radio", name="cats")).to_be_checked()
        page.get_by_role("button", name="embedded").click()
        expect_options(resolution="128", lora_rank="32", max_train_steps="600", base_model_precision="no_change")
        check_accessibility(page, "train")


def test_an_option_that_is_wrong_is_unfolded(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/train")
        page.locator(".plan-verdict").wait_for()
        page.locator("#option-max_grad_norm").evaluate("field => { field.value = 'x'; }")
        page.locator("#plan-for").select_option("16")
        expect(page.locator("#problem-max_grad_norm")).to_be_visible()


def test_a_click_on_a_trigger_word_adds_it_to_the_prompt_once(
    studio: RunningStudio, browser: Browser, tmp_path: Path
) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate")
        page.locator("#adapter-choices").evaluate(
            """(choices) => {
              choices.innerHTML = `<div class="adapter-choice"><input type="checkbox" value="ink@1" aria-label="ink">
                <button type="button" data-trigger="ink style">ink style</button></div>`;
            }"""
        )
        page.locator("#prompt").fill("a dog")
        for _ in range(2):
            page.get_by_role("button", name="ink style").click()
            expect(page.locator("#prompt")).to_have_value("ink style, a dog")
        expect(page.get_by_role("checkbox", name="ink")).to_be_checked()
