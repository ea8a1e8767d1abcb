"""The whole workflow in a real browser, in both languages: upload, caption, train, generate."""

import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from longcat.process.identity import is_process
from studio.web.language import Language, load_languages
from tests import ROOT
from tests.studio.browser import RunningStudio, chromium, running_studio, visit

PICTURES = ROOT / "examples" / "ink" / "pictures"
LANGUAGES = load_languages()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    with running_studio(tmp_path_factory.mktemp("studio") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def upload(tmp_path: Path) -> list[Path]:
    """Upload seven captioned pictures, one without a caption, and a file that is not a picture."""
    for picture in sorted(PICTURES.glob("*.png"))[:8]:
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
        (tmp_path / picture.with_suffix(".txt").name).write_bytes(picture.with_suffix(".txt").read_bytes())
    first = min(tmp_path.glob("*.txt"))
    first.unlink()
    (tmp_path / "notes.exe").write_bytes(b"MZ")
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_from_uploaded_pictures_to_a_picture_with_the_new_adapter(
    studio: RunningStudio, browser: Browser, upload: list[Path], language: str
) -> None:
    say = LANGUAGES[language]
    name = f"ink-{language}"
    with visit(browser, studio.url, language=language) as page:
        upload_dataset(page, say, name, upload)
        write_the_missing_caption(page, say, studio.home / "datasets" / name)
        start_training(page, say)
        if language == "en":
            page.locator("#figures .figure-row").wait_for()
            page = restart(studio, page)
        see_it_through(page, say, name)
        draw_with_it(page, say, name, studio.home)


def upload_dataset(page: Page, say: Language, name: str, files: list[Path]) -> None:
    page.goto("/")
    page.locator(".pages").get_by_role("link", name=say("frame.datasets")).click()
    page.get_by_label(say("datasets.name"), exact=True).fill(name)
    page.get_by_label(say("datasets.files"), exact=True).set_input_files(files)
    page.get_by_role("button", name=say("datasets.upload_button"), exact=True).click()
    expect(page.locator(".refused")).to_contain_text("notes.exe")
    page.get_by_role("link", name=say("datasets.show", name=name), exact=True).click()
    expect(page.locator(".picture")).to_have_count(7)
    expect(page.locator(".left-out")).to_contain_text("没有描述" if say.code == "zh" else "no caption")


def write_the_missing_caption(page: Page, say: Language, folder: Path) -> None:
    box = page.locator(".left-out textarea")
    box.fill("一只狗，版画\na dog, ink style")
    expect(page.locator(".left-out .caption-state")).to_have_text(say("datasets.saved"))
    box.press("Tab")
    expect(page.locator(".left-out")).to_have_count(0)
    missing = min(folder.glob("*.png")).with_suffix(".txt")
    assert missing.read_text(encoding="utf-8") == "一只狗，版画\na dog, ink style\n"
    page.get_by_role("button", name=say("datasets.look")).click()
    expect(page.locator(".picture")).to_have_count(8)
    expect(page.locator(".left-out")).to_have_count(0)


def start_training(page: Page, say: Language) -> None:
    page.get_by_role("link", name=say("datasets.train")).click()
    verdict = page.locator(".plan-verdict")
    verdict.wait_for()
    page.locator("#all-options > summary").click()
    rank = page.locator("#option-lora_rank")
    rank.fill("0")
    rank.press("Tab")
    expect(page.locator("#problem-lora_rank")).to_have_text(re.compile("too small; give at least 1|过小；最小为 1"))
    rank.fill("4")
    page.locator("#option-max_train_steps").fill("12")
    page.locator("#option-validation_prompts").fill("a cat, ink style\n一只猫，版画")
    expect(page.locator("#problem-lora_rank")).to_be_hidden()
    expect(verdict).to_contain_text("MiB")
    for group in ("checkpoints", "validation"):
        page.locator(f"#group-{group} > summary").click()
    page.locator("#option-checkpointing_steps").fill("4")
    page.locator("#option-validation_num_inference_steps").fill("2")
    page.locator("#option-validation_steps").fill("6")
    page.locator("#option-validation_min_change").fill("0")
    page.get_by_role("button", name=say("train.start"), exact=True).click()
    page.wait_for_url(re.compile("/jobs/"))


def restart(studio: RunningStudio, page: Page) -> Page:
    """Kill the studio and start another one, which finds the training still running."""
    identity = page.url.rpartition("/")[2]
    job = json.loads((studio.home / "jobs" / identity / "job.json").read_bytes())
    page.goto("about:blank")
    studio.stop(signal.SIGKILL)
    assert is_process(job["process"]["pid"], job["process"]["started"])
    studio.start()
    page.goto(f"/jobs/{identity}")
    return page


def see_it_through(page: Page, say: Language, name: str) -> None:
    expect(page.locator("#figures .pill")).to_have_text(say("jobs.state_finished"))
    expect(page.locator("#curve canvas")).to_be_visible()
    rows = page.locator(".grid tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first.locator("img")).to_have_count(3)  # the base, and two steps
    widths = page.locator(".grid img").evaluate_all(
        "images => Promise.all(images.map(image => image.decode().then(() => image.naturalWidth)))"
    )
    assert widths == [128] * 6
    expect(page.locator("#log-words")).to_contain_text(f"{name}@1")
    page.locator(".pages").get_by_role("link", name=say("frame.jobs")).click()
    expect(page.locator(".jobs")).to_contain_text(name)
    page.get_by_role("link", name=name, exact=True).click()


def draw_with_it(page: Page, say: Language, name: str, home: Path) -> None:
    expect(page.locator(".service-slot")).to_contain_text(say("frame.service_ready"))
    page.get_by_role("link", name=say("jobs.try", name=f"{name}@1")).click()
    page.wait_for_url(re.compile("/generate"))
    page.get_by_label(say("field.prompt"), exact=True).fill("一只猫，版画")
    expect(page.get_by_role("checkbox", name=re.compile(f"^{name}@1"))).to_be_checked()
    tiles = page.locator(".tile img")
    before = tiles.count()  # the gallery also has those of the other language
    page.get_by_role("button", name=say("generate.draw"), exact=True).click()
    expect(tiles).to_have_count(before + 1)
    tile = tiles.first
    assert tile.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    newest = max((home / "gallery").rglob("*.png"), key=lambda path: path.stat().st_mtime)
    with Image.open(io.BytesIO(newest.read_bytes())) as picture:
        assert f"{name}@1" in picture.info["lithograph"]
