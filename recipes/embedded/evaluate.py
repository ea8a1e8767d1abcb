"""Measure how often the embedded model draws the right thing on the right background.

200 prompts, half English, half Chinese, each in a template that was never trained with its concept, a third of them on white
and two thirds on a background colour that was never trained with it either; default steps and guidance, fixed seeds. A
picture counts as right (top-1) if, of all training concepts drawn on the named background, the right one is nearest to it
(mean square distance of 32 px thumbnails); its background counts as right if the named colour is nearest to its corners.

Writes ``evaluation.json`` and ``contact_sheet.png`` beside the model, and the results into its card. Run it with
``make eval-embedded``.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tqdm
from PIL import Image, ImageDraw

from longcat.adapter.weights.lora import LoraWeights
from longcat.model import flavour
from longcat.model.loading import Components, load
from longcat.model.tokenizer import plain_ids
from longcat.sampling import denoise
from longcat.sampling.encoding.text_encoder import encode_prompt
from longcat.sampling.forward import Forward
from longcat.sampling.prompt import tokenize_prompt
from longcat.sampling.reuse import Reuse
from longcat.sampling.slots import AdapterSlots
from recipes.embedded import concepts
from recipes.embedded.captions import (
    BACKGROUNDS,
    LANGUAGES,
    caption,
    held_out_backgrounds,
    held_out_templates,
)
from recipes.embedded.vae import background_colours, compose, load_sprites

PROMPTS = 200
SEED = 123
TOGETHER = 10
SHEET_COLUMNS = 10
SHEET_PICTURES = 60


@dataclass(frozen=True, kw_only=True)
class EvaluationCase:
    """A prompt with the concept and background that its picture should show."""

    prompt: str
    language: str
    concept: int
    background: int


def draw_cases(everything: list[concepts.Concept]) -> list[EvaluationCase]:
    """Return the fixed prompts, whose templates and backgrounds were never trained with their concepts."""
    rng = random.Random(SEED)
    cases = []
    for i in range(PROMPTS):
        language = LANGUAGES[i % 2]
        index = rng.randrange(len(everything))
        background = 0 if i % 3 == 0 else rng.choice(sorted(held_out_backgrounds(index)))
        template = rng.choice(sorted(held_out_templates(index, language)))
        concept = everything[index]
        name = concept.name_en if language == "en" else concept.name_zh
        text = caption(name, background, language, template, rng)
        cases.append(EvaluationCase(prompt=text, language=language, concept=index, background=background))
    return cases


@dataclass(frozen=True, kw_only=True)
class PictureSampler:
    """A model with adapters, and how it is sampled."""

    model: Components
    steps: int
    guidance_scale: float
    adapters: tuple[LoraWeights, ...] = ()
    reuse: Reuse | None = None
    """The state of step reuse at the start of each image."""
    size: tuple[int, int] | None = None
    """Width and height in px; the model's default if None."""

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        """Generate a picture of each prompt, (H, W, 3) in uint8, as the service does."""
        return self.drawn(prompts, seeds)[0]

    def drawn(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[list[np.ndarray], int]:
        """Return a picture of each prompt, and the rows that all forwards computed."""
        model, settings = self.model, self.model.flavour.settings
        tokenize, pad = plain_ids(model.tokenizer), model.tokenizer.pad_token_id

        def encode(prompt: str) -> torch.Tensor:
            tokens = tokenize_prompt(prompt, tokenize, max_tokens=settings.max_prompt_tokens)
            return encode_prompt(
                model.text_encoder, tokens, pad_token_id=pad, max_tokens=settings.max_prompt_tokens, device=model.device
            )

        empty, slots = encode(""), self._slots()
        width_px, height_px = self.size or (settings.default_size_px, settings.default_size_px)
        forward = Forward(model.transformer, model.device)
        pictures, rows = [], 0
        for first in tqdm.trange(0, len(prompts), TOGETHER, desc="drawing", unit_scale=TOGETHER):
            together = [
                denoise.start(
                    model,
                    forward,
                    embeds_1LJ=encode(prompt),
                    negative_embeds_1LJ=empty,
                    height_px=height_px,
                    width_px=width_px,
                    steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    cfg_renorm=True,
                    seed=seed,
                    adapters=tuple((slot, 1.0) for slot in range(len(self.adapters))),
                    slots=slots,
                )
                for prompt, seed in zip(prompts[first : first + TOGETHER], seeds[first : first + TOGETHER], strict=True)
            ]
            for picture in together:
                picture.reuse = self.reuse
            while not together[0].is_done:
                rows += denoise.advance(forward, together, slots)
            pictures += [denoise.decode(model.vae, picture) for picture in together]
        return pictures, rows

    def _slots(self) -> AdapterSlots | None:
        if not self.adapters:
            return None
        slots = AdapterSlots(
            self.model.transformer,
            count=len(self.adapters),
            rank=max(weights.rank for weights in self.adapters),
            device=self.model.device,
            dtype=self.model.dtype,
        )
        for slot, weights in enumerate(self.adapters):
            slots.load(slot, weights)
        return slots


def judge(cases: list[EvaluationCase], pictures: list[np.ndarray], sprites: torch.Tensor) -> list[dict[str, bool]]:
    """Return for each case whether the concept is right, among the five nearest, and whether the background is right."""
    small = F.avg_pool2d(sprites.float() / 255, 4)
    colours = background_colours()
    judged = []
    for case, picture in zip(cases, pictures, strict=True):
        pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        references = compose(small, colours[case.background].expand(len(small), -1))
        distances = (references - F.avg_pool2d(pixels, 4)).square().mean((1, 2, 3))
        nearer = int((distances < distances[case.concept]).sum())
        background = int((colours - corner_colour(pixels)).square().sum(1).argmin())
        judged.append({"top1": nearer == 0, "top5": nearer < 5, "background": background == case.background})
    return judged


def corner_colour(pixels_3HW: torch.Tensor) -> torch.Tensor:
    """Return the median colour of the corners, (3,)."""
    edges = (slice(0, 6), slice(-6, None))
    return torch.cat([pixels_3HW[:, y, x].flatten(1) for y in edges for x in edges], dim=1).median(1).values


def summarise(cases: list[EvaluationCase], judged: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Return the shares of right pictures over all prompts and over subsets."""
    parts = {
        "all": [True] * len(cases),
        "en": [case.language == "en" for case in cases],
        "zh": [case.language == "zh" for case in cases],
        "white background": [case.background == 0 for case in cases],
        "coloured background": [case.background != 0 for case in cases],
    }
    return {
        part: {
            "prompts": sum(chosen),
            **{
                key: round(sum(j[key] for j, c in zip(judged, chosen, strict=True) if c) / sum(chosen), 3)
                for key in ("top1", "top5", "background")
            },
        }
        for part, chosen in parts.items()
    }


def contact_sheet(
    everything: list[concepts.Concept],
    cases: list[EvaluationCase],
    pictures: list[np.ndarray],
    judged: list[dict[str, bool]],
) -> Image.Image:
    """Draw the first pictures with their expected content; a cross marks wrong ones."""
    size, foot = pictures[0].shape[0], 14
    rows = -(-SHEET_PICTURES // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * (size + 4), rows * (size + foot + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (case, picture) in enumerate(zip(cases[:SHEET_PICTURES], pictures, strict=False)):
        x, y = i % SHEET_COLUMNS * (size + 4), i // SHEET_COLUMNS * (size + foot + 4)
        sheet.paste(Image.fromarray(picture), (x, y))
        pen.rectangle((x, y, x + size - 1, y + size - 1), outline=(200, 200, 200))
        mark = "" if judged[i]["top1"] and judged[i]["background"] else "X "
        text = f"{mark}{case.language} {everything[case.concept].name_en}"
        if case.background:
            text += f"/{BACKGROUNDS[case.background].name_en}"
        pen.text((x + 2, y + size + 1), text[:23], fill="red" if mark else "black")
    return sheet


def write_card(card: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the lines between the card's markers of that name."""
    start, end = f"<!-- {name}: written by `make eval-embedded` -->\n", f"<!-- /{name} -->"
    before, rest = card.read_text(encoding="utf-8").split(start)
    card.write_text(before + start + "\n".join(lines) + "\n" + end + rest.split(end)[1], encoding="utf-8")


def results_table(summary: dict[str, dict[str, float]]) -> list[str]:
    """Return a Markdown table of results."""
    return [
        "| prompts | number | right thing | among five nearest | right background |",
        "|---|---|---|---|---|",
        *(
            f"| {part} | {figures['prompts']} | {figures['top1']:.1%} | {figures['top5']:.1%} "
            f"| {figures['background']:.1%} |"
            for part, figures in summary.items()
        ),
    ]


def main() -> None:
    """Evaluate, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/embedded"), help="folder of the prepared data")
    parser.add_argument("--model", default="embedded", help="flavour or directory to measure")
    arguments = parser.parse_args()
    arguments.build.mkdir(parents=True, exist_ok=True)
    if not (arguments.build / "concepts.json").exists():
        concepts.prepare(arguments.build)
    everything, _ = concepts.load(arguments.build)
    model = load(flavour.resolve(arguments.model), device="cpu")
    cases, settings = draw_cases(everything), model.flavour.settings
    sampler = PictureSampler(model=model, steps=settings.default_steps, guidance_scale=settings.default_guidance_scale)
    pictures = sampler.draw([case.prompt for case in cases], range(PROMPTS))
    judged = judge(cases, pictures, load_sprites(arguments.build))
    summary = summarise(cases, judged)
    report = {
        "steps": sampler.steps,
        "guidance_scale": sampler.guidance_scale,
        "concepts": len(everything),
        "seeds": f"0..{PROMPTS - 1}",
        "results": summary,
        "wrong": [case.prompt for case, j in zip(cases, judged, strict=True) if not (j["top1"] and j["background"])],
    }
    folder = model.flavour.folder
    (folder / "evaluation.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    contact_sheet(everything, cases, pictures, judged).save(folder / "contact_sheet.png", optimize=True)
    if folder == flavour.EMBEDDED_FOLDER:
        intro = f"{PROMPTS} prompts at the defaults ({sampler.steps} steps, guidance {sampler.guidance_scale}), seeds "
        write_card(folder / "README.md", "evaluation", [f"{intro}{report['seeds']}:", "", *results_table(summary)])
    for part, figures in summary.items():
        print(f"{part:20}", " ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
