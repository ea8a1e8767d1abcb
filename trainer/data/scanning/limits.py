"""The problems of pictures and captions beyond a dataset's limits, and of data that has nothing else. No torch."""

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.data.buckets import measure
from trainer.data.inventory import Inventory
from trainer.data.pictures import ENDINGS
from trainer.data.sample import Sample

_PROBLEMS_SHOWN = 5


def excluded(sample: Sample, kind: str) -> Problem | None:
    """Return the problem of a picture that its dataset's limits exclude; None for others. ``kind`` is a resolution_type."""
    config, size = sample.config, measure(sample.width_px, sample.height_px, kind)
    aspect = sample.width_px / sample.height_px
    details = {"width": sample.width_px, "height": sample.height_px, "size": f"{size:g}", "aspect": f"{aspect:.3g}"}
    if size < config.minimum_image_size:
        return Problem(
            code="picture_too_small",
            template="{width} x {height} px: {size} is less than minimum_image_size {limit}",
            details=details | {"limit": f"{config.minimum_image_size:g}"},
        )
    if config.minimum_aspect_ratio is not None and aspect < config.minimum_aspect_ratio:
        return Problem(
            code="picture_too_narrow",
            template="{width} x {height} px: {aspect} is less than minimum_aspect_ratio {limit}",
            details=details | {"limit": f"{config.minimum_aspect_ratio:g}"},
        )
    if config.maximum_aspect_ratio is not None and aspect > config.maximum_aspect_ratio:
        return Problem(
            code="picture_too_wide",
            template="{width} x {height} px: {aspect} is more than maximum_aspect_ratio {limit}",
            details=details | {"limit": f"{config.maximum_aspect_ratio:g}"},
        )
    if config.max_upscale_threshold is not None and sample.enlarged > 1 + config.max_upscale_threshold:
        return Problem(
            code="picture_enlarged_too_much",
            template="{width} x {height} px: bucket {bucket} enlarges it {factor} times, more than "
            "max_upscale_threshold {limit} permits",
            details=details
            | {
                "bucket": str(sample.bucket),
                "factor": f"{sample.enlarged:.2f}",
                "limit": f"{config.max_upscale_threshold:g}",
            },
        )
    return None


def too_long(caption: str, tokens: int, max_tokens: int) -> Problem:
    """Return the problem of a caption that the model cannot read whole."""
    return Problem(
        code="caption_too_long",
        template="a caption has {tokens} tokens; the model reads at most {max_tokens}",
        remedy_template="shorten {caption!r}",
        details={"tokens": tokens, "max_tokens": max_tokens, "caption": f"{caption[:40]}…"},
    )


def nothing_usable(inventory: Inventory) -> Problem:
    """Return the problem of an inventory without samples: the files that are there, and what is wrong with them."""
    contents = ", ".join(map(str, inventory.contents))
    if not inventory.contents:
        return Problem(
            code="no_training_data",
            template="there is no training data",
            remedy_template="give instance_data_dir or data_backend_config",
        )
    if inventory.held_out:
        return Problem(
            code="no_dataset_to_train_on",
            template="all {count} usable pictures are held out, and there are none to train on",
            remedy_template="add a dataset with dataset_type image",
            details={"count": len(inventory.held_out)},
        )
    if not inventory.dropped:
        return Problem(
            code="no_pictures",
            template="there is no picture in {contents}",
            remedy_template="give pictures that end in {endings}",
            details={"contents": contents, "endings": ", ".join(sorted(ENDINGS))},
        )
    return Problem(
        code="no_usable_picture",
        template="no picture with a caption can be used in {contents}: {count} files are dropped",
        remedy_template="correct the problem of each",
        details={"contents": contents, "count": len(inventory.dropped)},
    )


def unusable(inventory: Inventory) -> DataError:
    """Return the error of an inventory without samples: the problem as a whole, then those of the first dropped files."""
    dropped = inventory.dropped[:_PROBLEMS_SHOWN]
    return DataError.of([nothing_usable(inventory), *(drop.problem for drop in dropped)])
