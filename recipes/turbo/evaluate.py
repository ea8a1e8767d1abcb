"""Measure the embedded model's turbo adapter against its teacher, the base with guidance.

The prompts, seeds and judgement are those of ``recipes.embedded.evaluate``. Beside them, for the first ``COMPARED`` prompts
at four seeds:

- closeness: PSNR to the teacher's picture of the same prompt and seed, of the adapter and of the base at the adapter's steps
- detail: mean absolute difference of neighbouring pixels, divided by the teacher's; below 1 is blurred
- diversity: mean distance (RMS of pixels) between pictures of one prompt at two seeds, divided by the teacher's distance

With ``--ink FILE``, a style adapter such as ``make demo`` trains: its pictures with and without the turbo adapter. The style
is the loss of colour (mean of the largest minus the smallest channel); *kept* is the share of the colour lost in few steps,
divided by the share lost by the teacher.

Writes ``turbo.json`` beside the model, the results into its card, and a sheet. Part of ``make eval-embedded``.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longcat.adapter.weights.file import load_lora
from longcat.model import flavour
from longcat.model.loading import load
from recipes.embedded import concepts
from recipes.embedded.evaluate import PROMPTS, PictureSampler, draw_cases, judge, results_table, summarise, write_card
from recipes.embedded.vae import load_sprites

STEPS = 4
COMPARED = 12
SEEDS = (0, 1000, 2000, 3000)
INK_PROMPTS = (
    "a cat, ink style", "一个红苹果，版画", "a car, ink style", "鱼，版画", "a house, ink style", "一个雨伞，版画",
    "a guitar, ink style", "一朵玫瑰，版画",
)  # fmt: skip
"""Things that the style's training pictures leave out."""
FOLDER = flavour.EMBEDDED_FOLDER
ADAPTER = FOLDER / "adapters" / "turbo" / "1" / "adapter.safetensors"

Pictures = Sequence[np.ndarray]


def main() -> None:
    """Evaluate, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/embedded"), help="folder of the prepared data")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="file of the turbo adapter")
    parser.add_argument("--ink", type=Path, help="file of a style adapter")
    parser.add_argument("--sheet", type=Path, default=Path("docs/turbo.png"), help="file of the sheet")
    arguments = parser.parse_args()
    if not (arguments.build / "concepts.json").exists():
        arguments.build.mkdir(parents=True, exist_ok=True)
        concepts.prepare(arguments.build)
    everything, _ = concepts.load(arguments.build)
    model = load(flavour.resolve("embedded"), device="cpu")
    settings = model.flavour.settings
    teacher = PictureSampler(model=model, steps=settings.default_steps, guidance_scale=settings.default_guidance_scale)
    base = PictureSampler(model=model, steps=STEPS, guidance_scale=1.0)
    turbo = replace(base, adapters=(load_lora(arguments.adapter),))

    cases, sprites = draw_cases(everything), load_sprites(arguments.build)
    prompts = [case.prompt for case in cases]
    results = {
        name: summarise(cases, judge(cases, sampler.draw(prompts, range(PROMPTS)), sprites))
        for name, sampler in (("turbo", turbo), ("base", base))
    }
    few = [prompt for prompt in prompts[:COMPARED] for _ in SEEDS]
    seeds = [index + seed for index in range(COMPARED) for seed in SEEDS]
    drawn = {name: sampler.draw(few, seeds) for name, sampler in
             (("teacher", teacher), ("turbo", turbo), ("base", base))}  # fmt: skip
    report = {
        "steps": STEPS,
        "results": results["turbo"],
        "results_of_the_base_in_as_many_steps": results["base"],
        "compared": {name: compare(drawn[name], drawn["teacher"]) for name in ("turbo", "base")},
    }
    rows: list[Pictures] = [drawn[name][:: len(SEEDS)] for name in ("teacher", "turbo", "base")]
    if arguments.ink is not None:
        report["ink"], styled = measure_style(teacher, turbo, arguments.ink)
        rows += styled
    sheet(rows).save(arguments.sheet, optimize=True)
    if arguments.adapter == ADAPTER:
        (FOLDER / "turbo.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        write_card(FOLDER / "README.md", "turbo", card_lines(report))
    print(json.dumps(report, ensure_ascii=False, indent=1))


def compare(pictures: Pictures, teachers: Pictures) -> dict[str, float]:
    """Return closeness in dB, detail and diversity of pictures, four of each prompt in turn."""
    return {
        "psnr_db": psnr(pictures, teachers),
        "detail": round(detail(pictures) / detail(teachers), 3),
        "diversity": round(diversity(pictures) / diversity(teachers), 3),
    }


def psnr(pictures: Pictures, others: Pictures) -> float:
    """Return the median PSNR in dB."""
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(pictures, others, strict=True)]
    return round(float(np.median([10 * np.log10(255**2 / max(error, 1e-9)) for error in errors])), 2)


def detail(pictures: Pictures) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    steps = [np.abs(np.diff(picture.astype(float), axis=axis)).mean() for picture in pictures for axis in (0, 1)]
    return float(np.mean(steps))


def diversity(pictures: Pictures) -> float:
    """Return the mean distance of two pictures of one prompt."""
    groups = [pictures[i : i + len(SEEDS)] for i in range(0, len(pictures), len(SEEDS))]
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    return float(np.mean([np.sqrt(np.mean((a.astype(float) - b) ** 2)) for a, b in pairs]))


def colour(pictures: Pictures) -> float:
    """Return the mean of the largest minus the smallest channel, 0 to 255."""
    return float(np.mean([np.ptp(picture.astype(float), axis=2).mean() for picture in pictures]))


def measure_style(teacher: PictureSampler, turbo: PictureSampler, ink: Path) -> tuple[dict[str, float], list[Pictures]]:
    """Return the measures of a style with the turbo adapter, and rows for the sheet: the style without and with it."""
    style, seeds = load_lora(ink), range(len(INK_PROMPTS))
    plain, quick = teacher.draw(INK_PROMPTS, seeds), turbo.draw(INK_PROMPTS, seeds)
    styled = replace(teacher, adapters=(style,)).draw(INK_PROMPTS, seeds)
    both = replace(turbo, adapters=(*turbo.adapters, style)).draw(INK_PROMPTS, seeds)
    lost, lost_in_few = 1 - colour(styled) / colour(plain), 1 - colour(both) / colour(quick)
    measures = {
        "colour_lost_with_guidance": round(lost, 3),
        "colour_lost_in_few_steps": round(lost_in_few, 3),
        "style_kept": round(lost_in_few / lost, 3),
        "psnr_db": psnr(both, styled),
    }
    return measures, [styled, both]


def sheet(rows: Sequence[Pictures]) -> Image.Image:
    """Return rows of pictures."""
    side = rows[0][0].shape[0] + 4
    image = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            image.paste(Image.fromarray(picture), (x * side, y * side))
    return image


def card_lines(report: dict[str, Any]) -> list[str]:
    """Return the card's lines about the adapter."""
    turbo, base = report["compared"]["turbo"], report["compared"]["base"]
    return [
        f"The same {PROMPTS} prompts and seeds with the adapter `turbo`, {STEPS} steps without guidance:",
        "",
        *results_table(report["results"]),
        "",
        f"Against the teacher ({COMPARED} prompts, {len(SEEDS)} seeds each): PSNR {turbo['psnr_db']} dB, detail "
        f"{turbo['detail']}, diversity over seeds {turbo['diversity']}. The base alone, in as many steps without guidance: "
        f"right thing {report['results_of_the_base_in_as_many_steps']['all']['top1']:.1%}, PSNR {base['psnr_db']} dB, "
        f"detail {base['detail']}, diversity {base['diversity']}.",
    ]


if __name__ == "__main__":
    main()
