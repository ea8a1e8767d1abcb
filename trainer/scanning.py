"""The configured sets of pictures, looked through. No torch."""

from longcat.errors import DataError
from longcat.flavour import Description, Flavour
from longcat.prompt import tokenize_body
from longcat.tokenizer import load_tokenizer, plain_ids
from trainer.config import TrainConfig
from trainer.dataset import nothing_usable, scan
from trainer.inventory import Inventory
from trainer.report import write_report

REPORT_FILE = "dataset.json"
"""In output_dir."""


def take_inventory(config: TrainConfig, model: Flavour | Description, *, processes: int = 1) -> Inventory:
    """What there is to train on; what is dropped, and why, is in ``output_dir/dataset.json``.

    Raises ``DataError`` if nothing can be used; the report is there all the same.
    """
    tokenize = plain_ids(load_tokenizer(model.folder))
    inventory = scan(
        config.datasets,
        resolution=config.resolution,
        resolution_type=config.resolution_type,
        alignment_px=config.aspect_bucket_alignment,
        max_pixels=config.max_image_pixels,
        index_file=config.cache_folder / "pictures.json",
        count_tokens=lambda text: len(tokenize_body(text, tokenize)),
        max_prompt_tokens=model.settings.max_prompt_tokens,
        batch_size=config.train_batch_size * processes,
        allow_empty=True,
    )
    write_report(inventory, config.output_dir / REPORT_FILE)
    if not inventory.samples:
        raise DataError(nothing_usable(inventory))
    return inventory
