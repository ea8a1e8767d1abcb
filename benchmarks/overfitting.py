"""The report card on planted cases: overfits whose best step is known, copies, repetition bit for bit, and its cost.

``python -m benchmarks.overfitting plant FOLDER`` trains ten adapters of the embedded model far too long on a few ink
pictures each, with other pictures, ranks and learning rates, and evaluates each of them densely. ``… judge FOLDER`` then
measures every evaluated step on all the other ink pictures, which the card has not seen, with two noise levels each: the
card's chosen step is compared with the best one on those pictures. ``… copies`` searches for planted copies, ``… cost``
measures the share of evaluations at their default interval. Finished cases stay in FOLDER, from which an interrupted
benchmark continues.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageFilter

from longcat.adapter.weights.file import load_lora
from longcat.logs import silence_import_noise
from longcat.model.loading import load_scheduler_config, load_transformer
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.data.inventory import Inventory
from trainer.data.pictures import read_pixels
from trainer.data.sample import Sample
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.preparation import encode_captions, encode_pictures
from trainer.loop.distributed import ProcessGroup
from trainer.loop.evaluation.evaluations import Evaluations
from trainer.loop.evaluation.held_out_loss import HeldOutLoss
from trainer.loop.evaluation.probes import probes_of
from trainer.loop.loop import Loop
from trainer.model.base import prepare_model
from trainer.model.lora import LoraSettings, inject, load_weights
from trainer.record.report_card import ReportCard
from trainer.record.run_file import read_run
from trainer.run.pipeline import train
from trainer.validation.nearest import NearestPictures

INK = Path(__file__).parent.parent / "examples" / "ink" / "pictures"
CASES = [
    {"lora_rank": rank, "learning_rate": rate, "lora_dropout": dropout, "seed": seed}
    for seed, (rank, rate, dropout) in enumerate(
        [
            (16, 5e-3, 0.0), (16, 3e-3, 0.1), (32, 3e-3, 0.0), (8, 6e-3, 0.0), (4, 8e-3, 0.0), (16, 8e-3, 0.1),
            (32, 5e-3, 0.1), (8, 4e-3, 0.0), (64, 3e-3, 0.0), (16, 6e-3, 0.0),
        ]
    )
]  # fmt: skip
TRAINED = 8
"""Training pictures of a case."""
HELD_OUT = 12
"""Held-out pictures of a case's card; the pictures in neither set judge the card."""
EVERY = 8
"""Steps between evaluations."""


@click.group()
def main() -> None:
    """Measure the report card with one thread, which gives the same bits under any load."""
    silence_import_noise()
    torch.set_num_threads(1)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def plant(folder: Path) -> None:
    """Train the missing cases; repeat the first one, to compare the bits."""
    for number, case in enumerate([*CASES, CASES[0]]):
        output = folder / f"case-{number:02d}"
        if (output / "done").exists():
            continue
        sets = _link(folder / f"data-{number:02d}", number % len(CASES), TRAINED)
        options = {
            "model_flavour": "embedded", "resolution": 128, "train_batch_size": 2, "max_train_steps": 80,
            "validation_disable": True,
            "output_dir": str(output), "cache_dir": str(folder / "cache"), "eval_steps_interval": EVERY,
            "checkpointing_steps": EVERY, "checkpoints_total_limit": 100, "publish_checkpoint": "best",
            "resume_from_checkpoint": "latest", "data_backend_config": sets,
        }  # fmt: skip
        train(TrainConfig.model_validate(options | case), show_bar=False)
        (output / "done").touch()


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def judge(folder: Path) -> None:
    """Measure every evaluated step of every case on pictures outside its card."""
    results = []
    for number, case in enumerate(CASES):
        kept = folder / f"case-{number:02d}" / "judged.json"
        if not kept.exists():
            if not (kept.parent / "done").exists():
                break
            kept.write_text(json.dumps(_judge(folder, number, int(case["lora_rank"]))))
        results.append(json.loads(kept.read_text()))
        one = results[-1]
        print(
            f"case {number}: chosen {one['chosen']}, best {one['best']}; loss {one['chosen_loss']:.4f}, best "
            f"{one['best_loss']:.4f}, last {one['last_loss']:.4f}, base {one['base_loss']:.4f}; "
            f"excess {100 * one['excess']:.2f}% of the best loss, {100 * one['regret']:.1f}% of the improvement",
            flush=True,
        )
    within = sum(one["excess"] <= 0.05 for one in results)
    print(f"{within} of {len(results)} within 5% of the best loss; {sum(one['regret'] <= 0.05 for one in results)} of "
          f"{len(results)} within 5% of the best improvement over the base")  # fmt: skip
    overfits = sum(one["last_loss"] > 1.02 * one["best_loss"] for one in results)
    print(f"{overfits} of {len(results)} cases overfit: the last step's loss is more than 2% above the best")
    again = folder / f"case-{len(CASES):02d}"
    if (again / "done").exists():
        first = folder / "case-00"
        same = (read_run(first).report == read_run(again).report
                and _content(first) == _content(again))  # fmt: skip
        print(f"the first case again: {'the same bits' if same else 'DIFFERENT'}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def copies(folder: Path) -> None:
    """Search for planted copies of training pictures, and for false positives among other pictures."""
    config, inventory = _scan(folder / "copies", INK, folder)
    _, encoders = prepare_model(config, torch.device("cpu"))
    samples = inventory.samples
    trained, others = samples[::2], samples[1::2]
    search = NearestPictures(trained, encoders, Cache(folder / "cache"))
    for name, planted in _changes():
        found = [(sample, search.of(planted(read_pixels(sample)))) for sample in trained]
        right = sum(one.is_copy and one.sample.digest == sample.digest for sample, one in found)
        print(
            f"{name}: {right} of {len(found)} found, share at most {max(one.share for _, one in found):.2f}", flush=True
        )
    shares = [search.of(read_pixels(sample)) for sample in others]
    wrong = sum(one.is_copy for one in shares)
    print(f"other pictures of the same style: {wrong} of {len(shares)} taken for copies; least share "
          f"{min(one.share for one in shares):.2f}")  # fmt: skip


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=1000, show_default=True)
def cost(folder: Path, steps: int) -> None:
    """Measure the share of evaluations in a training's processor time, all at defaults, with one and four pictures a step.

    The parts of one process are compared: processor time of two processes differs by more than the share on a busy machine.
    """
    for batch in (1, 4):
        seconds = dict.fromkeys(("run", "evaluations", "sweep"), 0.0)
        with (
            _timed(Loop, "run", seconds, "run"), _timed(Evaluations, "run", seconds, "evaluations"),
            _timed(Evaluations, "sweep", seconds, "sweep"),
        ):  # fmt: skip
            options = {
                "model_flavour": "embedded", "resolution": 128, "train_batch_size": batch, "max_train_steps": steps,
                "instance_data_dir": str(INK), "output_dir": str(folder / f"cost-{batch}"),
                "cache_dir": str(folder / "cache"), "eval_share": 0.2, "validation_disable": True,
                "checkpointing_steps": 10**6,
            }  # fmt: skip
            train(TrainConfig.model_validate(options), show_bar=False)
        made, rest = seconds["evaluations"] + seconds["sweep"], seconds["run"] - seconds["evaluations"]
        print(
            f"{batch} pictures a step, {steps} steps: {made:.1f} s of evaluations beside {rest:.1f} s of training, "
            f"{100 * made / rest:.1f}%",
            flush=True,
        )


@contextmanager
def _timed(kind: type, method: str, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the processor time of a method's calls to ``seconds``."""
    original = getattr(kind, method)

    def timed(*arguments: Any, **named: Any) -> Any:
        begin = time.process_time()
        try:
            return original(*arguments, **named)
        finally:
            seconds[name] += time.process_time() - begin

    setattr(kind, method, timed)
    try:
        yield
    finally:
        setattr(kind, method, original)


def _link(folder: Path, number: int, trained: int) -> list[dict[str, object]]:
    """Link pictures into a training set, a held-out set and a set of the rest; return the first two as datasets."""
    stems = sorted(path.stem for path in INK.glob("*.png"))
    np.random.default_rng(number).shuffle(stems)
    parts = {
        "train": stems[:trained],
        "eval": stems[trained : trained + HELD_OUT],
        "judge": stems[trained + HELD_OUT :],
    }
    for name, chosen in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stem in chosen:
            for ending in (".png", ".txt"):
                path = folder / name / f"{stem}{ending}"
                if not path.exists():
                    path.write_bytes((INK / f"{stem}{ending}").read_bytes())
    return [
        {"id": "train", "instance_data_dir": str(folder / "train")},
        {"id": "eval", "dataset_type": "eval", "instance_data_dir": str(folder / "eval")},
    ]


def _scan(output: Path, pictures: Path, folder: Path) -> tuple[TrainConfig, Inventory]:
    config = TrainConfig.model_validate(
        {
            "model_flavour": "embedded", "instance_data_dir": str(pictures), "resolution": 128, "output_dir": str(output),
            "cache_dir": str(folder / "cache"),
        }
    )  # fmt: skip
    flavour = prepare_model(config, torch.device("cpu"))[1].flavour
    return config, take_inventory(config, lambda: flavour)


def _judge(folder: Path, number: int, rank: int) -> dict[str, float]:
    output = folder / f"case-{number:02d}"
    config, inventory = _scan(output / "judge", folder / f"data-{number:02d}" / "judge", folder)
    config = config.model_copy(update={"lora_rank": rank})
    config, encoders = prepare_model(config, torch.device("cpu"))
    cache = Cache(folder / "cache")
    probes = probes_of(_spread(inventory.samples), most=2 * len(inventory.samples))
    encode_captions(encoders, cache, {probe.caption for probe in probes}, lambda *_: None)
    encode_pictures(encoders, cache, inventory.samples, lambda *_: None)
    transformer = load_transformer(encoders.flavour, encoders.dtype)
    inject(transformer, select(config, LoraSettings))
    scheduler = load_scheduler_config(encoders.flavour)
    measure = HeldOutLoss(probes, encoders, cache, transformer, ProcessGroup("cpu"), scheduler_config=scheduler)
    judge = ReportCard(probes=measure.records)
    losses: dict[int, float] = {}
    for path in sorted((output / "checkpoints").glob("step-*")):
        load_weights(transformer, load_lora(path / "adapter.safetensors"), field="checkpoint", source=str(path))
        losses[int(path.name.removeprefix("step-"))] = judge.loss(measure.losses())
    base = judge.loss(measure.losses(strength=0))
    card = read_run(output).report
    assert card is not None
    assert card.published_step is not None
    best = min(losses, key=lambda step: losses[step])
    chosen, lowest = losses[card.published_step], losses[best]
    return {
        "chosen": card.published_step, "best": best, "chosen_loss": chosen, "best_loss": lowest, "base_loss": base,
        "last_loss": losses[max(losses)], "excess": chosen / lowest - 1, "regret": (chosen - lowest) / (base - lowest),
    }  # fmt: skip


def _spread(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """Return the samples twice: each of their captions gets two noise levels."""
    return samples * 2


def _changes() -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    generator = np.random.default_rng(0)

    def noisy(pixels: np.ndarray) -> np.ndarray:
        return np.clip(pixels + generator.normal(0, 24, pixels.shape), 0, 255).astype(np.uint8)

    def blurred(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2)))

    yield "the same picture", lambda pixels: pixels
    yield "shifted by 5 and 7 px of 128", lambda pixels: np.roll(pixels, (5, -7), axis=(0, 1))
    yield "a fifth darker", lambda pixels: (pixels * 0.8).astype(np.uint8)
    yield "noise of standard deviation 24", noisy
    yield "blurred by 2 px", blurred


def _content(output: Path) -> bytes:
    return (output / "adapter.safetensors").read_bytes()


if __name__ == "__main__":
    main()
