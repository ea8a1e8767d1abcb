"""The form of the Generate page, as a person uses it."""

from playwright.sync_api import Page, expect


def opened(page: Page) -> None:
    """Open the page and wait until it knows the model."""
    page.goto("/generate")
    expect(page.locator("#width")).to_be_attached()


def draw(page: Page, prompt: str, *, steps: int = 1, seed: int = 1) -> None:
    """Draw a picture and wait until it is the newest of the gallery."""
    page.locator("#prompt").fill(prompt)
    page.locator("#steps").fill(str(steps))
    page.locator("#seed").fill(str(seed))
    page.locator(".draw").click()
    expect(page.locator(".tile-prompt").first).to_have_text(prompt)
