"""``python -m recipes.screenshots``: a training and pictures in a real studio, then docs/studio-*.png, in both languages."""

import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

from recipes.screenshots.pages import LANGUAGES, chromium, compare, generate, generating, page_in, save, wait_for_more
from recipes.screenshots.studio import ADAPTER, ROOT, running

_TILE_PX = (1280, 760)
"""Upper part of a page in the overview."""
_GAP_PX = 16


@click.command()
@click.option("--train-steps", type=click.IntRange(40), default=600, show_default=True, help="Steps of the training.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "docs", show_default=True)
def main(train_steps: int, output: Path) -> None:
    """Take the screenshots of README and docs."""

    def shot(name: str, language: str) -> Path:
        return output / f"studio-{name}{_ending(language)}"

    with (
        tempfile.TemporaryDirectory(prefix="lithograph-") as folder,
        running(Path(folder, "home")) as studio,
        chromium() as browser,
    ):
        job = studio.train(steps=train_steps)
        for language in LANGUAGES:
            with page_in(browser, studio, language, height=1000) as page:
                page.goto(f"/datasets/view?path={studio.home / 'datasets' / ADAPTER}")
                page.locator(".picture").first.wait_for()
                save(page, shot("datasets", language))
        studio.wait_for_step(job, train_steps * 2 // 3)
        for language in LANGUAGES:
            with page_in(browser, studio, language, height=1080) as page:
                page.goto(job)
                page.locator("#curve canvas").wait_for()
                save(page, shot("job", language))
        studio.wait_for_step(job, train_steps)
        with page_in(browser, studio, "en", height=800) as page:
            page.goto("/generate")
            page.locator(f"input[name=adapter][value={ADAPTER}]").wait_for()  # it is served as soon as it is published
            generate(page)
        for language in LANGUAGES:
            with page_in(browser, studio, language, height=800) as page:
                shown = generating(page)
                save(page, shot("generate", language))
                wait_for_more(page, shown)
                compare(page)
                save(page, shot("compare", language))
            with page_in(browser, studio, language, height=900) as page:
                page.goto(f"/train?dataset={studio.home / 'datasets' / ADAPTER}")
                page.locator(".plan-verdict").wait_for()
                save(page, shot("train", language))
    for language in LANGUAGES:
        _overview(
            [shot(name, language) for name in ("generate", "job")], output / "assets" / f"overview{_ending(language)}"
        )


def _ending(language: str) -> str:
    return ".png" if language == "en" else f".{language}.png"


def _overview(shots: list[Path], path: Path) -> None:
    """Save the upper parts of screenshots side by side."""
    width, height = _TILE_PX
    sheet = Image.new("RGB", (len(shots) * (width + _GAP_PX) - _GAP_PX, height), "white")
    for place, shot in enumerate(shots):
        with Image.open(shot) as picture:
            sheet.paste(picture.convert("RGB").crop((0, 0, width, height)), (place * (width + _GAP_PX), 0))
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    click.echo(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
