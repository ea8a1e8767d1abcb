"""The training data of a distillation: prompts from a text file, each with noise and a size. No torch."""

import hashlib
from collections.abc import Callable, Iterator

from longcat.errors import DataError
from longcat.model.flavour import Description, Flavour
from longcat.problem import reason_of
from trainer.config.distillation import DistillationConfig
from trainer.config.options import TrainConfig
from trainer.config.reading.text_encoding import decode_text
from trainer.data.buckets import Bucket, Crop, bucket_choices
from trainer.data.captions.table import LINE_ENDS
from trainer.data.inventory import Dropped, Inventory
from trainer.data.report import write_report
from trainer.data.sample import Sample
from trainer.data.scan import REPORT_FILE, mark_output, prompt_limit
from trainer.data.scanning.limits import too_long
from trainer.randomness import derive, python_rng


def take_prompts(config: TrainConfig, find_model: Callable[[], Flavour | Description]) -> Inventory:
    """Read the prompts, and return a sample for each trajectory: a prompt, a size and, by its digest, noise.

    Prompts that the model cannot read whole are dropped and reported in ``output_dir/dataset.json``. Raises ``DataError``
    if the file cannot be read or no prompt is left.
    """
    assert config.distillation is not None
    mark_output(config)
    lines = _read(config.distillation)
    limit = prompt_limit(find_model())
    prompts, dropped = list[str](), list[Dropped]()
    for number, text in lines.items():
        if (tokens := limit.count(text)) > limit.max_tokens:
            problem = too_long(text, tokens, limit.max_tokens)
            name = f"{config.distillation.prompts.name}:{number}"
            dropped.append(Dropped(dataset="prompts", problem=problem.within(field="file", value=name)))
        else:
            prompts.append(text)
    inventory = Inventory(
        samples=tuple(_samples(config, config.distillation, prompts)) if prompts else (),
        dropped=tuple(dropped),
        warnings=(),
        trigger_words=(),
    )
    write_report(inventory, config.output_dir / REPORT_FILE)
    if not prompts:
        raise DataError(
            "no_usable_prompt",
            "none of the {count} prompts can be used",
            remedy="give a prompt on each line, of at most {max_tokens} tokens",
            field="distillation.prompts",
            value=str(config.distillation.prompts),
            count=len(lines),
            max_tokens=limit.max_tokens,
        )
    return inventory


def _read(settings: DistillationConfig) -> dict[int, str]:
    """Return the different prompts by the number of their line, from 1."""
    try:
        decoded = decode_text(settings.prompts.read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unreadable(settings, reason_of(error)) from error
    except DataError as error:
        raise _unreadable(settings, str(error.problems[0].problem)) from error
    if decoded.guessed is not None:
        raise _unreadable(settings, f"{decoded.guessed}, by its bytes")
    numbered = reversed(list(enumerate(LINE_ENDS.split(decoded.text), 1)))
    lines = {line.strip(): number for number, line in numbered if line.strip()}
    return {number: line for line, number in reversed(lines.items())}


def _unreadable(settings: DistillationConfig, reason: str) -> DataError:
    return DataError(
        "prompts_unreadable",
        "cannot be read: {reason}",
        remedy="give a text file in UTF-8 with a prompt on each line",
        field="distillation.prompts",
        value=str(settings.prompts),
        reason=reason,
    )


def _samples(config: TrainConfig, settings: DistillationConfig, prompts: list[str]) -> Iterator[Sample]:
    dataset = settings.dataset
    buckets = bucket_choices(
        dataset,
        resolution=config.resolution,
        resolution_type=config.resolution_type,
        alignment_px=config.aspect_bucket_alignment,
    )
    order: list[str] = []
    for number in range(settings.trajectories):
        if not order:
            order = python_rng(config.seed, "prompts", number).sample(prompts, len(prompts))
        bucket: Bucket = python_rng(config.seed, "size", number).choice(buckets)
        size = bucket.width_px, bucket.height_px
        yield Sample(
            dataset=dataset.id,
            key=f"trajectory {number}",
            digest=hashlib.sha256(f"{config.seed} {number}".encode()).hexdigest(),
            captions=(order.pop(),),
            width_px=bucket.width_px,
            height_px=bucket.height_px,
            bucket=bucket,
            crop=Crop(resized=size, box=(0, 0)),
            repeats=0,
            probability=1.0,
            config=dataset,
        )


def noise_seed(sample: Sample) -> int:
    """Return the seed of a sample's noise."""
    return derive("noise", sample.digest)
