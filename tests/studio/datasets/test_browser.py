"""The page of a dataset in a real Chromium: captions filtered, changed in bulk, undone, and written by a model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from studio.web.language import load_languages
from tests.studio.browser import RunningStudio, check_accessibility, running_studio, visit
from tests.trainer.data.captioning.test_captioning import Handler, vision_server  # noqa: F401

LANGUAGES = load_languages()
CAPTIONS = {"a": "a red square, old", "b": "一个红方块", "c": ""}


@pytest.fixture
def studio(tmp_path: Path, vision_server: tuple[type[Handler], str]) -> Iterator[RunningStudio]:  # noqa: F811
    folder = tmp_path / "home" / "datasets" / "squares"
    folder.mkdir(parents=True)
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (256, 128), "red").save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
    with running_studio(tmp_path / "home", "--caption-endpoint", vision_server[1], "--caption-model", "vl") as running:
        yield running


def caption(studio: RunningStudio, name: str) -> str | None:
    path = studio.home / "datasets" / "squares" / f"{name}.txt"
    return path.read_text(encoding="utf-8") if path.exists() else None


def test_captions_are_changed_in_bulk_undone_and_written_by_a_model(studio: RunningStudio, browser: Browser) -> None:
    say = LANGUAGES["zh"]
    with visit(browser, studio.url, language="zh") as page:
        page.goto(f"/datasets/view?path={studio.home / 'datasets' / 'squares'}")
        expect(page.locator(".picture")).to_have_count(2)
        expect(page.locator(".picture .crop")).to_have_count(2)  # wide pictures, square buckets
        page.get_by_label(say("datasets.filter"), exact=True).select_option("zh")
        page.get_by_role("button", name=say("datasets.filter_button")).click()
        expect(page.locator(".picture")).to_have_count(1)

        page.locator("#bulk > summary").press("Enter")
        page.locator("#bulk-action").select_option("prepend")
        expect(page.locator("#bulk-find")).to_be_hidden()
        page.locator("#bulk-text").fill("sks")
        page.reload()
        expect(page.locator("#bulk-text")).to_have_value("sks")
        page.get_by_role("button", name=say("datasets.bulk_button", n=1)).click()
        expect(page.locator(".changes li")).to_contain_text("sks")
        expect(page.locator("#bulk-text")).to_have_value("")  # it is sent
        assert (caption(studio, "a"), caption(studio, "b")) == ("a red square, old\n", "sks，一个红方块\n")
        check_accessibility(page, "dataset")
        page.get_by_role("button", name=say("datasets.undo")).click()
        expect(page.locator(".changes li")).to_have_count(0)
        assert caption(studio, "b") == "一个红方块\n"

        page.get_by_role("link", name=say("datasets.filter_off")).click()
        page.locator("#bulk > summary").click()
        page.locator("#bulk-find").fill("nowhere")
        page.get_by_role("button", name=say("datasets.bulk_button", n=2)).click()
        expect(page.locator("#problem-find")).to_be_visible()

        page.get_by_role("button", name=say("datasets.describe", n=1)).click()
        expect(page.locator(".changes li")).to_contain_text("vl")
        assert caption(studio, "c") == "一个红色方块\na red square\n"
        expect(page.locator(".picture")).to_have_count(3)
        page.get_by_role("button", name=say("datasets.undo")).click()
        expect(page.locator(".picture")).to_have_count(2)
        assert caption(studio, "c") is None
