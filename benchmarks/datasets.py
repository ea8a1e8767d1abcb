"""Effects of prior preservation, masked loss and captions by share on adapters of the embedded model.

``python -m benchmarks.datasets`` trains adapters with and without each, and compares the trainer's own validation pictures
with the base's: change is the mean difference of pixels, 0 to 1, as in ``trainer.validation``.
"""

import io
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from longcat.logs import silence_import_noise
from longcat.model.flavour import resolve
from longcat.model.loading import load_scheduler_config
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.sampling.encoding.files import prompt_rows
from service.config import ModelConfig
from service.renderer import Renderer
from service.wire.limits import Limits
from service.wire.schema import GenerateRequest
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.preparation import captions_of, encode_captions, encode_pictures
from trainer.loop.step import Batches, BatchSettings
from trainer.model.base import prepare_model
from trainer.run.pipeline import train

FLAG, FLAGS = "a flag of two colours", 4
"""Caption and number of the pictures that are learned."""
SUBJECTS = ("a red apple", "一只猫", "a rocket", "一辆汽车", "a tree", "一条鱼", "a house", "一朵花")
"""Prompts of the pictures whose prediction is preserved."""
OTHERS = ("a dog", "一只鸟", "a blue car", "一个香蕉")
"""Prompts in neither dataset, whose pictures should stay the same."""
SIDE_PX = 128
LEFT, RIGHT = (40, 200, 60), (200, 40, 180)


@click.command()
@click.option("--steps", default=80, show_default=True, help="Steps on the pictures to be learned.")
@click.option("--seeds", default=2, show_default=True, help="Trainings of each kind.")
@click.option("--only", type=click.Choice(["", "shares", "masked", "prior"]), default="")
def main(steps: int, seeds: int, only: str) -> None:
    """Print the changes with and without each."""
    silence_import_noise()
    parts: dict[str, Callable[[Path, int, int], None]] = {
        "shares": captions_by_share, "masked": masked_loss, "prior": prior_preservation,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for name, part in parts.items():
            if only in ("", name):
                part(Path(scratch, name), steps, seeds)


def prior_preservation(folder: Path, steps: int, seeds: int) -> None:
    """Train on the flag alone, then beside pictures whose target is the base's own prediction, half of the steps each."""
    learned, prior = flags(folder), folder / "prior"
    prior.mkdir(parents=True)
    for place, (prompt, picture) in enumerate(base_pictures(SUBJECTS)):
        picture.save(prior / f"{place}.png")
        (prior / f"{place}.txt").write_text(prompt, encoding="utf-8")
    preserved = {"id": "prior", "instance_data_dir": str(prior), "is_regularisation_data": True}
    beside = [learned | {"repeats": len(SUBJECTS) // FLAGS - 1}, preserved]
    for name, datasets, factor in (("alone", [learned], 1), ("with prior preservation", beside, 2)):
        own, others = [], []
        for seed in range(seeds):
            pictures = trained(
                folder / f"{name} {seed}", datasets, steps=steps * factor, seed=seed, validation_prompts=[FLAG],
                validation_base_prompts=list(OTHERS),
            )  # fmt: skip
            own.append(mean_change(pictures, [FLAG]))
            others.append(mean_change(pictures, OTHERS))
        print(
            f"prior preservation: {name}: change of the own prompt {statistics.mean(own):.3f}, of others "
            f"{statistics.mean(others):.3f} ({', '.join(f'{change:.3f}' for change in others)})",
            flush=True,
        )


def masked_loss(folder: Path, steps: int, seeds: int) -> None:
    """Train on the whole flag, and with a mask of its left half."""
    pictures = flags(folder)
    (folder / "masks").mkdir(parents=True)
    mask = Image.new("L", (SIDE_PX, SIDE_PX))
    mask.paste(255, (0, 0, SIDE_PX // 2, SIDE_PX))
    for place in range(FLAGS):
        mask.save(folder / f"masks/{place}.png")
    masks = {
        "id": "masks", "instance_data_dir": str(folder / "masks"), "dataset_type": "conditioning",
        "conditioning_type": "mask",
    }  # fmt: skip
    for name, datasets in (("whole", [pictures]), ("masked", [pictures | {"conditioning_data": "masks"}, masks])):
        left, right = [], []
        for seed in range(seeds):
            output = folder / f"{name} {seed}"
            found = trained(output, datasets, steps=steps, seed=seed, validation_prompts=[FLAG], validation_seed=seed)
            ((base, adapted),) = found.values()
            left.append([distance(of[:, : SIDE_PX // 2], LEFT) for of in (base, adapted)])
            right.append([distance(of[:, SIDE_PX // 2 :], RIGHT) for of in (base, adapted)])
        for side, distances in (("inside", left), ("outside", right)):
            before, after = (statistics.mean(values) for values in zip(*distances, strict=True))
            print(
                f"masked loss: {name}, {side} the mask: distance to the pictures' colour {after:.3f}, of the base "
                f"{before:.3f}; learned {1 - after / before:.0%}",
                flush=True,
            )


def flags(folder: Path) -> dict[str, Any]:
    """Write pictures of two colours side by side, with a little noise; return their dataset."""
    (folder / "pictures").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for place in range(FLAGS):
        pixels = np.zeros((SIDE_PX, SIDE_PX, 3))
        pixels[:, : SIDE_PX // 2], pixels[:, SIDE_PX // 2 :] = LEFT, RIGHT
        pixels += generator.normal(0, 6, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"pictures/{place}.png")
    return {
        "id": "flags", "instance_data_dir": str(folder / "pictures"), "caption_strategy": "instanceprompt",
        "instance_prompt": FLAG,
    }  # fmt: skip


def captions_by_share(folder: Path, _steps: int, _seeds: int, batches: int = 2000) -> None:
    """Count the captions in batches, by their embeddings."""
    folder.mkdir(parents=True)
    texts = {".zh.txt": "一只白猫", ".en.txt": "a white cat"}
    for place in range(4):
        Image.new("RGB", (SIDE_PX, SIDE_PX), (40 * place, 90, 120)).save(folder / f"{place}.png")
        for ending, text in texts.items():
            (folder / f"{place}{ending}").write_text(text, encoding="utf-8")
    shares = {"zh": 0.3, "en": 0.7}
    dataset = {
        "id": "cats", "instance_data_dir": str(folder), "caption_endings": list(texts), "caption_shares": shares,
    }  # fmt: skip
    config = configuration(folder / "out", [dataset], steps=1, seed=0, caption_dropout_probability=0)
    config, encoders = prepare_model(config, torch.device("cpu"))
    samples = take_inventory(config, lambda: encoders.flavour).samples
    cache = Cache(config.cache_folder)
    made = encode_captions(encoders, cache, captions_of(samples), lambda *_: None)
    encode_pictures(encoders, cache, samples, lambda *_: None)
    source = Batches(select(config, BatchSettings), samples, encoders, cache, load_scheduler_config(encoders.flavour))
    length = encoders.flavour.settings.max_prompt_tokens
    known = {
        language: prompt_rows(rows, length)
        for language, text in zip(shares, texts.values(), strict=True)
        if (rows := cache.read(encoders.embedding_key(text))) is not None
    }
    counts: Counter[str] = Counter()
    for number in range(batches):
        (embeds,) = source.batch(number, (number % 4,), first=0).embeds_BLJ
        counts.update(language for language, rows in known.items() if torch.equal(rows, embeds))
    shown = ", ".join(f"{language} {counts[language] / batches:.3f} of {share:g}" for language, share in shares.items())
    print(f"captions by share: {shown} in {batches} batches; {made} texts encoded, the empty one included", flush=True)


def configuration(
    output: Path, datasets: list[dict[str, Any]], *, steps: int, seed: int, **changes: Any
) -> TrainConfig:
    """Return the configuration of a training."""
    return TrainConfig.model_validate({
        "model_flavour": "embedded", "data_backend_config": datasets, "resolution": SIDE_PX, "max_train_steps": steps,
        "train_batch_size": 2, "learning_rate": 1e-3, "lora_targets": "all-linear", "lora_dropout": 0, "seed": seed,
        "output_dir": str(output), "device": "cpu", "validation_num_inference_steps": 12, "validation_min_change": 0,
        "validation_max_drift": 1, **changes,
    })  # fmt: skip


def trained(
    output: Path, datasets: list[dict[str, Any]], *, steps: int, seed: int, **changes: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Train; return the base's and the adapter's picture of each validation prompt."""
    train(configuration(output, datasets, steps=steps, seed=seed, **changes), show_bar=False)
    last = output / "validation" / f"step-{steps:08d}"
    pairs = {}
    for path in sorted(last.glob("*.png")):
        with Image.open(path) as image:
            prompt = json.loads(image.info["lithograph-validation"])["prompt"]
        pairs[prompt] = pixels_of(output / "validation" / "base" / path.name), pixels_of(path)
    return pairs


def base_pictures(prompts: tuple[str, ...]) -> Iterator[tuple[str, Image.Image]]:
    """Generate a picture of each prompt with the base."""
    flavour = resolve("embedded")
    limits, tokenize = Limits.of_model(flavour), plain_ids(load_tokenizer(flavour.folder))
    renderer = Renderer(ModelConfig(flavour="embedded"), flavour, max_rows=2)
    for seed, prompt in enumerate(prompts):
        request = GenerateRequest(prompt=prompt, seed=seed, width=SIDE_PX, height=SIDE_PX)
        (made,) = renderer.render(limits.resolve(request, tokenize)).images
        yield prompt, Image.open(io.BytesIO(made.content))


def mean_change(pictures: dict[str, tuple[np.ndarray, np.ndarray]], prompts: Any) -> float:
    """Return the mean difference of pixels between base and adapter, over these prompts."""
    return statistics.mean(float(np.abs(np.subtract(*pictures[prompt])).mean()) / 255 for prompt in prompts)


def distance(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Return the mean distance of pixels to a colour, 0 to 1."""
    return float(np.abs(pixels - np.array(colour)).mean()) / 255


def pixels_of(path: Path) -> np.ndarray:
    """Read a picture as floats."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


if __name__ == "__main__":
    main()
