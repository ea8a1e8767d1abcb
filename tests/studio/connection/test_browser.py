"""The studio's own service in a real Chromium: it dies, is started again, and is not ready yet."""

import time

import httpx
import psutil
from playwright.sync_api import Browser, expect

from tests.service.family import is_fork_server
from tests.studio.browser import RunningStudio, draw, visit


def test_its_service_is_started_again_when_it_dies_and_pictures_outlive_the_studio(
    studio: RunningStudio, browser: Browser
) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate")
        expect(page.locator(".service-slot")).to_contain_text("Ready")
        tiles = page.locator(".tile").count()
        process = service_of(studio)
        processes = [process, *process.children(recursive=True)]
        for one in processes:
            one.kill()
        deadline = time.monotonic() + 60
        while pid_of_service(studio) == process.pid:  # it loads too quickly for the page to be sure to show it
            assert time.monotonic() < deadline
            time.sleep(0.1)
        draw(page, "en", "a house")  # waits for the model
        expect(page.locator(".service-slot")).to_contain_text("Ready")
        address = httpx.get(f"{studio.url}/healthz").url
        again = service_of(studio)
        page.goto("about:blank")
        studio.stop()
        assert not again.is_running()
        studio.start()
        page.goto(str(address.join("/generate")))
        expect(page.locator(".tile")).to_have_count(tiles + 1)


def test_a_drawing_whose_engine_dies_is_drawn_again_by_itself(studio: RunningStudio, browser: Browser) -> None:
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate")
        expect(page.locator(".service-slot")).to_contain_text("Ready")
        before = page.locator(".tile").count()
        page.get_by_label("Prompt", exact=True).fill("a lighthouse")
        page.get_by_label("Steps", exact=True).fill("100")
        page.get_by_role("button", name="Draw").click()
        page.locator(".preview img").first.wait_for()
        engine = engine_of(studio)
        engine.kill()
        expect(page.locator(".tile")).to_have_count(before + 1)
        expect(page.locator(".generation-failed")).to_have_count(0)
        assert engine_of(studio).pid != engine.pid


def pid_of_service(studio: RunningStudio) -> int:
    return int((studio.home / "service.pid").read_text(encoding="utf-8").split()[0])


def service_of(studio: RunningStudio) -> psutil.Process:
    """Return the main process of the studio's service."""
    return psutil.Process(pid_of_service(studio))


def engine_of(studio: RunningStudio) -> psutil.Process:
    """Return the engine process of the studio's service."""
    (engine,) = (
        child for process in service_of(studio).children() if is_fork_server(process) for child in process.children()
    )
    return engine


def test_a_request_that_is_sent_while_the_model_is_loading_is_drawn_unchanged(
    studio: RunningStudio, browser: Browser
) -> None:
    studio.stop()
    studio.is_cold = True  # a warm service would have loaded the model before the page shows it
    studio.start()
    with visit(browser, studio.url, language="en") as page:
        page.goto("/generate?adapter=wash@1")
        expect(page.locator(".service-slot")).to_contain_text("Model is loading")
        expect(page.get_by_label("Width")).to_have_count(0)  # the model's own defaults apply
        page.get_by_label("Strength of wash@1").fill("1.5")
        before = page.locator(".tile").count()
        page.get_by_label("Prompt", exact=True).fill("a red apple")
        page.get_by_role("button", name="Draw").click()
        expect(page.locator(".tile")).to_have_count(before + 1)
        expect(page.locator(".tile").first).to_contain_text("wash@1 · 1.5")
        expect(page.get_by_label("Width")).to_have_value("128")
        expect(page.get_by_label("Strength of wash@1")).to_have_value("1.5")
        expect(page.get_by_role("checkbox", name="wash@1")).to_be_checked()


def test_adapters_are_offered_beside_the_chosen_one_before_the_model_is_loaded(
    studio: RunningStudio, browser: Browser
) -> None:
    studio.stop()
    studio.start()
    with visit(browser, studio.url, language="en") as page:
        page.route("**/service?*", lambda _: None)  # no reply until the time limit
        page.goto("/generate?adapter=blot")
        expect(page.get_by_label("Width")).to_have_count(0)
        with page.expect_response(lambda reply: "/generate/adapters" in reply.url and reply.status == 200):
            pass  # polled every few seconds; changes once the model is loaded
        expect(page.get_by_role("checkbox", name="wash", exact=False)).not_to_be_checked()
        expect(page.get_by_role("checkbox", name="blot")).to_be_checked()
        page.unroute("**/service?*")
        expect(page.get_by_label("Width")).to_have_value("128")
        expect(page.get_by_role("checkbox", name="blot")).to_be_checked()
