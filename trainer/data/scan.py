"""The scan of all configured datasets. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from longcat.model.flavour import Description, Flavour
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.sampling.prompt import tokenize_body
from longcat.storage.atomic import write_atomically
from trainer.config.card_options import needs_held_out
from trainer.config.dataset_options import DatasetConfig
from trainer.config.links import masks_of, references_of
from trainer.config.options import TrainConfig
from trainer.data.advice import advice
from trainer.data.held_out import hold_out, nothing_held_out, without_trained
from trainer.data.inventory import Inventory
from trainer.data.report import write_report
from trainer.data.scanning.dataset_scan import DatasetScan
from trainer.data.scanning.index import Index
from trainer.data.scanning.limits import unusable
from trainer.data.scanning.options import PromptLimit, ScanOptions
from trainer.data.sources import OUTPUT_MARK

REPORT_FILE = "dataset.json"
"""The report's file in output_dir."""


def take_inventory(
    config: TrainConfig, find_model: Callable[[], Flavour | Description], *, processes: int = 1
) -> Inventory:
    """Scan the configured datasets, and write a report of what is dropped to ``output_dir/dataset.json``.

    ``find_model`` is called when a usable picture is found: data that cannot be used are reported before anything is
    downloaded. Raises ``DataError`` if nothing can be used; the report is written all the same.
    """
    mark_output(config)
    used = [
        data for data in config.datasets if data.dataset_type != "eval" or config.eval_dataset_id in (None, data.id)
    ]
    inventory = scan(
        used,
        scan_options(config, cache(lambda: prompt_limit(find_model()))),
        eval_share=config.eval_share,
        index_file=config.cache_folder / "pictures.json",
        batch_size=config.train_batch_size * processes,
        allow_empty=True,
    )
    write_report(inventory, config.output_dir / REPORT_FILE)
    if not inventory.samples:
        raise unusable(inventory)
    if not inventory.held_out and (wanting := needs_held_out(config)):
        raise nothing_held_out(inventory, wanting[0])
    return inventory


def mark_output(config: TrainConfig) -> None:
    """Mark the directories that a run writes to, in which no scan looks for training pictures."""
    for folder in (config.output_dir, config.cache_folder):
        write_atomically(folder / OUTPUT_MARK, b"Written by Lithograph: training pictures are not searched for here.\n")


def scan_options(config: TrainConfig, limit: Callable[[], PromptLimit] | None) -> ScanOptions:
    """Return the options of a training that decide which pictures it uses; ``limit`` as in ``ScanOptions``."""
    return ScanOptions(
        resolution=config.resolution,
        resolution_type=config.resolution_type,
        alignment_px=config.aspect_bucket_alignment,
        max_pixels=config.max_image_pixels,
        prompt_limit=limit,
    )


def prompt_limit(model: Flavour | Description) -> PromptLimit:
    """Return the longest prompt that a model reads, by its own tokenizer."""
    tokenize = plain_ids(load_tokenizer(model.folder))
    return PromptLimit(
        max_tokens=model.settings.max_prompt_tokens, count=lambda text: len(tokenize_body(text, tokenize))
    )


def scan(
    datasets: Sequence[DatasetConfig],
    options: ScanOptions,
    *,
    index_file: Path | None = None,
    batch_size: int = 1,
    eval_share: float = 0.0,
    allow_empty: bool = False,
) -> Inventory:
    """Scan datasets, one after the other; hold out those with ``dataset_type`` eval, and ``eval_share`` of the others.

    ``index_file`` keeps facts about pictures from scan to scan. Raises ``DataError`` if nothing can be used, unless
    ``allow_empty``, or if a dataset cannot be listed; ``ConfigError`` for impossible resolutions.
    """
    index = Index(index_file, max_pixels=options.max_pixels)
    found = Inventory(samples=(), dropped=(), warnings=(), trigger_words=())
    masks, references = masks_of(datasets), references_of(datasets)
    for config in datasets:
        if config.dataset_type == "conditioning":
            continue
        scanned = DatasetScan(
            config, options, index, masks=masks.get(config.id), references=references.get(config.id)
        ).run()
        if config.dataset_type == "eval":
            scanned = replace(scanned, samples=(), held_out=scanned.samples, trigger_words=())
        found = _joined(found, scanned)
    found = without_trained(hold_out(found, eval_share))
    more = tuple(advice(found.samples, batch_size=batch_size))
    inventory = replace(found, warnings=found.warnings + more)
    if not inventory.samples and not allow_empty:
        raise unusable(inventory)
    return inventory


def _joined(first: Inventory, second: Inventory) -> Inventory:
    words = dict.fromkeys(first.trigger_words + second.trigger_words)
    return Inventory(
        samples=first.samples + second.samples,
        dropped=first.dropped + second.dropped,
        warnings=first.warnings + second.warnings,
        trigger_words=tuple(words),
        contents=first.contents + second.contents,
        held_out=first.held_out + second.held_out,
    )
