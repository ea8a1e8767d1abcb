"""The Generate page with a gallery of many pictures, in Chromium: time to its first content, to its pictures, to a search.

``python -m benchmarks.studio.gallery`` makes a gallery of random pictures in a temporary directory, starts a studio on it
(without a service that draws) and opens the page several times, each time in a new browser profile. Chromium has to be
installed.
"""

import io
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe, ScaledAdapter

WORDS = ("apple", "owl", "boat", "rocket", "猫", "蝴蝶", "tree", "house")
_START_SECONDS = 120.0


@click.command()
@click.option("--pictures", default=1000, show_default=True, help="Pictures of the gallery.")
@click.option("--side", default=512, show_default=True, help="Width and height of a picture, in px.")
@click.option("--repeats", default=5, show_default=True, help="Times that the page is opened.")
def main(pictures: int, side: int, repeats: int) -> None:
    """Print the shortest, the median and the longest of each time, in seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        fill(Gallery(home / "gallery"), pictures, side)
        with running(home) as url, sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            times = [visit(browser, url) for _ in range(repeats)]
            browser.close()
    print(f"{pictures} pictures of {side} px")
    for name in times[0]:
        values = [measured[name] for measured in times]
        print(
            f"{name}: shortest {min(values):.2f} s, median {statistics.median(values):.2f} s, longest {max(values):.2f} s"
        )


def fill(gallery: Gallery, count: int, side: int) -> None:
    """Add pictures of noise, one a minute."""
    generator = np.random.default_rng(0)
    buffer = io.BytesIO()
    coarse = generator.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side)).save(buffer, "PNG")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        created = start + timedelta(minutes=number)
        recipe = PictureRecipe(
            prompt=f"{WORDS[number % len(WORDS)]} {number}", width=side, height=side, steps=30, guidance_scale=4.5,
            seed=number, adapters=(ScaledAdapter(name="ink@1"),) if number % 3 == 0 else (),
        )  # fmt: skip
        picture = GalleryPicture(
            id=new_id(created), created=created, recipe=recipe, flavour="final", model_hash="0" * 64, seconds=1,
            drawn_prompt=recipe.prompt,
        )  # fmt: skip
        gallery.add(buffer.getvalue(), picture)


@contextmanager
def running(home: Path) -> Iterator[str]:
    """Run a studio on a directory, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "lithograph", "server", "--port", str(port), "--home", str(home),
        "--service-url", "http://127.0.0.1:1",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(url, process)
            yield url
        finally:
            process.terminate()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the studio answers."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/healthz")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    sys.exit("the studio does not start")


def visit(browser: Browser, url: str) -> dict[str, float]:
    """Open the page as somebody new, scroll to its end once, search; return the seconds of each."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(f"{url}/generate", wait_until="commit")
    page.locator(".tile img").first.evaluate("image => image.decode()")
    first_picture = time.perf_counter() - begun
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN") / 1000
    count = page.locator(".tile").count()
    begun = time.perf_counter()
    page.locator(".tile").last.scroll_into_view_if_needed()
    page.locator(".tile").nth(count).wait_for()
    more = time.perf_counter() - begun
    begun = time.perf_counter()
    page.get_by_role("searchbox").fill("猫")
    page.locator(".tile-prompt").filter(has_not_text="猫").first.wait_for(state="detached")
    search = time.perf_counter() - begun
    context.close()
    return {"first content": paint, "first picture": first_picture, "next page": more, "search": search}


if __name__ == "__main__":
    main()
