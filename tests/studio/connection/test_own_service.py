"""The studio's own service: it is restarted after it was killed, and ends with a studio that was killed."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import START_SECONDS
from tests.hub import hub
from tests.studio.browser import RunningStudio, running_studio

SECONDS = 60


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[RunningStudio]:
    with running_studio(tmp_path / "home", cold=True) as running:
        yield running


def service(studio: RunningStudio, *, other_than: int = 0) -> psutil.Process:
    """Return the main process of the service, once it answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        try:
            process = psutil.Process(int((studio.home / "service.pid").read_text(encoding="utf-8").split()[0]))
            command = process.cmdline()
            if process.pid != other_than and httpx.get(f"{url_of(command)}/healthz").status_code == 200:
                return process
        except (OSError, ValueError, psutil.NoSuchProcess, httpx.TransportError):
            continue


def url_of(command: list[str]) -> str:
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"


def test_a_service_whose_main_process_is_killed_is_started_again_on_its_port(studio: RunningStudio) -> None:
    first = service(studio)
    url = url_of(first.cmdline())
    family = [first, *first.children(recursive=True)]
    first.kill()
    second = service(studio, other_than=first.pid)
    assert url_of(second.cmdline()) == url
    assert not psutil.wait_procs(family, timeout=SECONDS)[1]


def test_the_service_of_a_studio_that_is_killed_ends(studio: RunningStudio) -> None:
    main = service(studio)
    family = [main, *main.children(recursive=True)]
    studio.stop(signal.SIGKILL)
    assert not psutil.wait_procs(family, timeout=SECONDS)[1]


def test_a_studio_that_chooses_its_model_gives_the_reason_in_both_languages(tmp_path: Path) -> None:
    with running_studio(tmp_path / "home", "--flavour", "auto", cold=True) as studio:
        service(studio)
        for language, reason in (("en", "there is no CUDA GPU"), ("zh", "没有 CUDA GPU")):
            wait_for(studio, language, reason)
        assert "flavour auto is embedded" in (studio.home / "logs" / "service.log").read_text(encoding="utf-8")


def test_a_download_is_shown_with_what_is_there_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    with hub(holds=released) as (url, _):
        for name, value in {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}.items():
            monkeypatch.setenv(name, value)
        try:
            with running_studio(tmp_path / "home", "--flavour", "final", cold=True) as studio:
                wait_for(studio, "en", r"LongCat-Image is being downloaded: \d+ MB of \d+ MB")
                wait_for(studio, "zh", r"正在下载 meituan-longcat/LongCat-Image：已下载 \d+ MB，共 \d+ MB")
                released.set()
                service(studio)
                wait_for(studio, "en", r'pill-model">LongCat-Image final')
                assert "is being downloaded" not in generate_page(studio, "en")
        finally:
            released.set()


def generate_page(studio: RunningStudio, language: str) -> str:
    return httpx.get(f"{studio.url}/generate", headers={"Accept-Language": language}).text


def wait_for(studio: RunningStudio, language: str, pattern: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not re.search(pattern, page := generate_page(studio, language)):
        assert time.monotonic() < deadline, page
        time.sleep(0.2)
