"""The page of a large dataset in Chromium: time to its first content, to its first picture, and to its report.

``python -m benchmarks.studio.dataset`` makes pictures with captions, starts a studio without a service of its own, and opens
the page of the dataset twice: nothing is known of the pictures the first time.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

import click
import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

_PORT = 18091
_SECONDS = 120
_FIRST_CONTENT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@click.command()
@click.option("--pictures", default=500, show_default=True)
@click.option("--side-px", default=768, show_default=True)
def main(pictures: int, side_px: int) -> None:
    """Print the times in seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        folder = home / "datasets" / "large"
        _make(folder, pictures, side_px)
        command = [
            sys.executable, "-m", "lithograph", "server", "--port", str(_PORT), "--home", str(home),
            "--service-url", "http://127.0.0.1:9",
        ]  # fmt: skip
        studio = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait()
            url = f"http://127.0.0.1:{_PORT}/datasets/view?{urlencode({'path': folder})}"
            with sync_playwright() as playwright:
                path = shutil.which("chromium")
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                browser.new_page().goto(
                    f"http://127.0.0.1:{_PORT}/jobs"
                )  # styles and scripts are known, as to any visitor
                for name in ("first visit", "second visit"):
                    print(f"{name}, {pictures} pictures: {_measured(browser.new_page(), url)}")
                browser.close()
        finally:
            studio.terminate()
            studio.wait()


def _measured(page: Page, url: str) -> str:
    begin = time.monotonic()
    page.goto(url, wait_until="commit")
    page.locator("main img").first.evaluate("image => image.decode()", timeout=1000 * _SECONDS)
    picture = time.monotonic() - begin
    page.locator("#summary").wait_for(timeout=1000 * _SECONDS)
    report = time.monotonic() - begin
    first = page.evaluate(_FIRST_CONTENT) / 1000
    return f"first content {first:.2f}, first picture {picture:.2f}, report {report:.2f}"


def _make(folder: Path, pictures: int, side_px: int) -> None:
    folder.mkdir(parents=True)
    noise = np.random.default_rng(1)
    for number in range(pictures):
        coarse = noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg")
        (folder / f"{number:04}.txt").write_text(f"a picture of noise, number {number}\n", encoding="utf-8")


def _wait() -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{_PORT}/healthz")
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
