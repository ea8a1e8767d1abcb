"""Pages of the studio in Chromium, as pictures."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from recipes.screenshots.studio import ADAPTER, Studio

LANGUAGES = ("en", "zh")
_WIDTH_PX = 1280
_PATIENCE_MS = 600_000
_PROMPTS = ("a butterfly", "一只猫头鹰", "a house", "一把伞", "a car", "一条鱼")
_COLOURS = 256


@contextmanager
def chromium() -> Iterator[Browser]:
    """Launch the system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise click.ClickException("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_in(browser: Browser, studio: Studio, language: str, *, height: int) -> Iterator[Page]:
    """Open a window in a language."""
    viewport: ViewportSize = {"width": _WIDTH_PX, "height": height}
    context = browser.new_context(base_url=studio.url, locale=language, viewport=viewport, device_scale_factor=1)
    page = context.new_page()
    page.set_default_timeout(_PATIENCE_MS)
    yield page
    context.close()


def generate(page: Page) -> None:
    """Generate pictures, the first with the base model alone and the others with the adapter."""
    _compose(page, "a cat", steps=30, adapter=False)
    for prompt in _PROMPTS:
        _compose(page, prompt, steps=30, adapter=True)
        page.locator(".tile").nth(_PROMPTS.index(prompt) + 1).wait_for()


def generating(page: Page) -> int:
    """Begin to generate a picture, and wait for its preview. Return the number of finished pictures."""
    _compose(page, "a butterfly", steps=100, adapter=True)
    page.locator("#gallery img[src*=preview], #gallery .generation img").first.wait_for()
    return page.locator(".tile").count()


def compare(page: Page) -> None:
    """Open the comparison of the newest picture with the same without adapters."""
    page.goto("/generate")
    page.locator(".tile [hx-post$='/compare']").first.click()
    page.locator(".compare figure > img").nth(1).wait_for()


def wait_for_more(page: Page, shown: int) -> None:
    """Wait for one more finished picture than there were."""
    page.locator(".tile").nth(shown).wait_for()


def _compose(page: Page, prompt: str, *, steps: int, adapter: bool) -> None:
    page.goto("/generate")
    page.locator(f"input[name=adapter][value={ADAPTER}]").set_checked(adapter)
    page.locator("#prompt").fill(prompt)
    page.locator("#steps").fill(str(steps))
    page.locator("#seed").fill("3")
    page.locator("#composer button[type=submit]").click()


def save(page: Page, path: Path) -> None:
    """Save the window as a small PNG."""
    page.evaluate("document.querySelector('.composer-rest')?.scrollTo(0, 0)")
    page.wait_for_timeout(500)  # fonts and transitions
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        shot.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    click.echo(f"{path}: {path.stat().st_size // 1024} KiB")
