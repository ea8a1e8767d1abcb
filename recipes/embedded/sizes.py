"""Measure how often the embedded model draws the right thing at each size.

The first ``PROMPTS`` prompts and seeds of ``recipes.embedded.evaluate``, at its default steps and guidance. A picture counts
as right if, of all things in the middle of such a canvas on the named background, the right one is nearest to it (mean
square distance at a quarter of the sides), and its background if the named colour is nearest to its corners.

Writes ``sizes.json`` and ``sizes.png`` beside the model, and the results into its card. The service tells, and the studio
offers, the sizes at which the model draws well. Part of ``make eval-embedded``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from longcat.model import flavour
from longcat.model.loading import load
from longcat.sampling.quality import MeasuredSizes, Size, SizeShares
from recipes.embedded import concepts
from recipes.embedded.evaluate import EvaluationCase, PictureSampler, corner_colour, draw_cases, write_card
from recipes.embedded.vae import background_colours, load_sprites

SIDES = (64, 128, 192, 256)
SIZES: tuple[Size, ...] = tuple((w, h) for h in SIDES for w in SIDES if max(w, h) <= 2 * min(w, h))
"""All canvases on the 64 px grid at ratios to 2:1."""
PROMPTS = 60
SHEET_PROMPTS = 4
GAP_PX = 4


def main() -> None:
    """Evaluate, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/embedded"), help="folder of the prepared data")
    parser.add_argument("--model", default="embedded", help="flavour or directory to measure")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="measure only the first; writes nothing if fewer")
    arguments = parser.parse_args()
    arguments.build.mkdir(parents=True, exist_ok=True)
    if not (arguments.build / "concepts.json").exists():
        concepts.prepare(arguments.build)
    cases = draw_cases(concepts.load(arguments.build)[0])[: arguments.prompts]
    model = load(flavour.resolve(arguments.model), device="cpu")
    settings, sprites = model.flavour.settings, load_sprites(arguments.build)
    sampler = PictureSampler(model=model, steps=settings.default_steps, guidance_scale=settings.default_guidance_scale)
    results: list[SizeShares] = []
    shown = []
    for size in SIZES:
        pictures = replace(sampler, size=size).draw([case.prompt for case in cases], range(len(cases)))
        results.append(measure(cases, pictures, sprites, size))
        shown.append(pictures[:SHEET_PROMPTS])
        print(results[-1], flush=True)
    if len(cases) == PROMPTS:
        folder = model.flavour.folder
        measured = MeasuredSizes(prompts=PROMPTS, results=tuple(results))
        (folder / flavour.SIZES_FILE).write_text(measured.model_dump_json(indent=1) + "\n")
        sheet(shown).save(folder / "sizes.png", optimize=True)
        if folder == flavour.EMBEDDED_FOLDER:
            write_card(folder / "README.md", "sizes", results_table(results))


def composed(sprite: Tensor, rgb_3: Tensor, size: Size) -> Tensor:
    """Return a thing (4, 128, 128), premultiplied, 0..1, as large as fits in the middle of a canvas, (3, H, W) in 0..1."""
    width, height = size
    side = min(size)
    if side != sprite.shape[-1]:
        sprite = F.interpolate(sprite[None], size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0]
    canvas = rgb_3[:, None, None].repeat(1, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    part = canvas[:, top : top + side, left : left + side]
    part.copy_(sprite[:3] + (1 - sprite[3:]) * part)
    return canvas


def measure(cases: Sequence[EvaluationCase], pictures: Sequence[np.ndarray], sprites: Tensor, size: Size) -> SizeShares:
    """Return the shares of pictures of one size with the right thing, and with the right background."""
    colours = background_colours()
    everything = {
        each: torch.stack([F.avg_pool2d(composed(sprite.float() / 255, colours[each], size), 4) for sprite in sprites])
        for each in {case.background for case in cases}
    }
    things = backgrounds = 0
    for case, picture in zip(cases, pictures, strict=True):
        pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        distances = (everything[case.background] - F.avg_pool2d(pixels, 4)).square().mean((1, 2, 3))
        things += int(distances.argmin()) == case.concept
        backgrounds += int((colours - corner_colour(pixels)).square().sum(1).argmin()) == case.background
    return SizeShares(
        width=size[0],
        height=size[1],
        thing=round(things / len(cases), 3),
        background=round(backgrounds / len(cases), 3),
    )


def sheet(shown: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Draw the first pictures of every size, a row for each."""
    heights = [pictures[0].shape[0] + GAP_PX for pictures in shown]
    width = max(sum(picture.shape[1] + GAP_PX for picture in pictures) for pictures in shown)
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    top = 0
    for pictures, height in zip(shown, heights, strict=True):
        for i, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (i * (picture.shape[1] + GAP_PX), top))
        top += height
    return canvas


def results_table(results: Sequence[SizeShares]) -> list[str]:
    """Return a Markdown table of results."""
    rows = [f"{PROMPTS} prompts at each size:", "", "| px | right thing | right background |", "|---|---|---|"]
    return rows + [f"| {each.width} x {each.height} | {each.thing:.1%} | {each.background:.1%} |" for each in results]


if __name__ == "__main__":
    main()
