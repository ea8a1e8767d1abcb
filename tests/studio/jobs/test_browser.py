"""The Jobs pages in a real Chromium: a training as it runs, its prompts changed meanwhile, the queue, several curves."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from studio.web.language import load_languages
from tests import ROOT
from tests.studio.browser import RunningStudio, check_accessibility, running_studio, visit

PICTURES = ROOT / "examples" / "ink" / "pictures"
SAY = load_languages()["en"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    home = tmp_path_factory.mktemp("studio") / "home"
    folder = home / "datasets" / "ink"
    folder.mkdir(parents=True)
    for picture in sorted(PICTURES.glob("*.png"))[:4]:
        (folder / picture.name).write_bytes(picture.read_bytes())
        (folder / f"{picture.stem}.txt").write_text("a dog", encoding="utf-8")
    with running_studio(home) as running:
        yield running


def submit(studio: RunningStudio, name: str, steps: int) -> str:
    form = {
        "model_flavour": "embedded", "instance_data_dir": str(studio.home / "datasets" / "ink"), "adapter_name": name,
        "resolution": "128", "lora_rank": "2", "max_train_steps": str(steps), "train_batch_size": "1",
        "validation_prompts": "a dog", "validation_steps": "20", "validation_num_inference_steps": "1",
        "validation_min_change": "0", "validation_max_drift": "1", "trigger_words": "ink style",
    }  # fmt: skip
    reply = httpx.post(f"{studio.url}/train", data=form, headers={"HX-Request": "true"}, timeout=60)
    assert reply.status_code == 204, reply.text
    return reply.headers["hx-redirect"].removeprefix("/jobs/")


def test_a_training_is_followed_and_its_prompts_are_changed_while_it_runs(
    studio: RunningStudio, browser: Browser
) -> None:
    running, second, third = (submit(studio, name, steps) for name, steps in (("one", 80), ("two", 5), ("three", 5)))
    with visit(browser, studio.url, language="en") as page:
        page.goto("/jobs")
        rows = page.locator("table.jobs tbody tr td:nth-child(2)")
        expect(rows).to_have_text(["two", "three", "one"])
        page.locator(f"#earlier-{third}").press("Enter")
        expect(rows).to_have_text(["three", "two", "one"])
        check_accessibility(page, "jobs")
        for identity in (second, third):
            page.locator(f"#stop-{identity}").click()
            expect(page.locator(f"#resume-{identity}")).to_be_visible()

        page.goto(f"/jobs/{running}")
        expect(page.locator(".gauges progress")).to_have_count(2)
        expect(page.locator("#figures")).to_contain_text(SAY("jobs.elapsed"))
        prompts = page.get_by_role("textbox", name=SAY("jobs.prompts"))
        expect(prompts).to_have_value("a dog")
        prompts.fill("")
        page.get_by_role("button", name=SAY("jobs.prompts_save")).click()
        expect(page.locator("#problem-prompts")).to_be_visible()
        prompts.fill("a cat\n一只猫")
        page.get_by_role("button", name=SAY("jobs.prompts_save")).click()
        expect(page.locator("#prompts-saved")).to_have_text(SAY("jobs.prompts_saved", n=2))
        expect(page.locator(".grid tbody th", has_text="一只猫")).to_be_visible()
        expect(page.locator("#figures .pill")).to_have_text(SAY("jobs.state_finished"))
        expect(page.locator("#log-words")).to_contain_text(SAY("jobs.log_published", adapter="one@1"))
        expect(page.locator(".grid tbody tr").last.locator("td img")).not_to_have_count(0)
        check_accessibility(page, "job")
        page.locator(".grid a[data-view]").last.click()
        viewer = page.get_by_role("dialog")
        expect(viewer.locator(".slide-pictures img")).to_have_count(2)  # over the base model's
        check_accessibility(page, "samples over each other")
        viewer.get_by_role("slider").fill("100")
        expect(viewer.locator(".slide-over")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
        viewer.get_by_label(SAY("viewer.compare_with")).select_option("")
        expect(viewer.locator(".viewer-picture")).to_have_count(1)
        page.goto("/adapters/one/1")
        page.locator("a[data-view]").first.click()
        expect(viewer.get_by_role("heading")).not_to_be_empty()
        check_accessibility(page, "a sample of an adapter")

        page.goto("/jobs")
        for identity in (running, second):
            page.locator(f"#compare-{identity}").check()
        page.get_by_role("button", name=SAY("jobs.compare")).click()
        expect(page.locator("#curves canvas")).to_be_visible()
        expect(page.locator("main .scroll-x tbody tr")).to_have_count(2)
        check_accessibility(page, "compare")
    manifest = Path(studio.home / "adapters" / "one" / "1" / "manifest.json").read_text(encoding="utf-8")
    assert "ink style" in manifest  # the trigger word of the form
