"""A real studio in a process of its own, and a real Chromium."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from studio.web.language import load_languages
from tests.conftest import START_SECONDS, free_port
from tests.warm import WarmPopen, lithograph

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
PATIENCE_MS = 240_000
"""Time limit of all waits, which allows for trainings and other load on the machine."""


class RunningStudio:
    """A ``lithograph server`` with its own home, which can be restarted on the same port."""

    def __init__(self, home: Path, *arguments: str, cold: bool = False) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = home.with_name(f"{home.name}.log")
        self._arguments = arguments
        self.is_cold = cold
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as stream:
            self._process = (subprocess.Popen if self.is_cold else WarmPopen)(
                lithograph(
                    "server", "--port", str(self.port), "--home", str(self.home), "--flavour", "embedded",
                    *self._arguments,
                ),
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                pytest.fail(f"the studio does not answer; its log:\n{self._log.read_text(encoding='utf-8')}")
            time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Stop it, wait for its end, and return its exit code; None if it was not started."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(timeout=120)


@contextmanager
def running_studio(home: Path, *arguments: str, cold: bool = False) -> Iterator[RunningStudio]:
    """Run a studio for the duration of the context. ``cold``: it and its service as a shell starts them."""
    studio = RunningStudio(home, *arguments, cold=cold)
    try:
        studio.start()
        yield studio
    finally:
        studio.stop()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Launch the system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, url: str, *, language: str, dark: bool = False, width: int = 1280, may_fail: bool = False
) -> Iterator[Page]:
    """Open a page in a language. Any complaint of the browser, above all about the policy, fails the test.

    ``may_fail``: the test stops the studio, and failed connections are expected.
    """
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # Expected rejections show as a status; a request that a later one replaces is aborted.
        harmless = r"a status of 4|Status Error Code 4|htmx:sendAbort|htmx:afterRequest"
        if message.type == "error" and not re.search(harmless, message.text):
            complaints.append(message.text)

    context = browser.new_context(
        base_url=url,
        locale=language,
        color_scheme="dark" if dark else "light",
        viewport={"width": width, "height": 900},
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert may_fail or not complaints, complaints


def check_accessibility(page: Page, what: str) -> None:
    """Fail if axe finds anything serious on the page."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        f"{violation['id']}: {node['html']} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert not serious, f"{what}: {serious}"


LANGUAGES = load_languages()


def draw(page: Page, language: str, prompt: str, *, steps: int = 4) -> None:
    """Fill in the form and wait until its picture is the newest of the gallery."""
    say = LANGUAGES[language]
    before = page.locator(".tile").count()
    page.get_by_label(say("field.prompt"), exact=True).fill(prompt)
    page.get_by_label(say("field.steps"), exact=True).fill(str(steps))
    page.get_by_role("button", name=say("generate.draw")).click()
    expect(page.locator(".tile")).to_have_count(before + 1)
