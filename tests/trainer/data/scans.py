"""Directories of pictures made for tests, and their scans."""

import dataclasses
import random
from pathlib import Path

import pytest
from PIL import Image

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.config.dataset_options import DatasetConfig
from trainer.data.inventory import Inventory
from trainer.data.scan import scan
from trainer.data.scanning.options import ScanOptions

OPTIONS = {option.name for option in dataclasses.fields(ScanOptions)}


def config(folder: Path, **given: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"id": "pictures", "instance_data_dir": str(folder), **given})


def look(*configs: DatasetConfig, **given: object) -> Inventory:
    options = {"resolution": (128.0,), "resolution_type": "pixel_area", "alignment_px": 64}
    options |= {name: given.pop(name) for name in OPTIONS if name in given}
    return scan(configs, ScanOptions(**options), **given)


def picture(path: Path, caption: str | None = "a cat\n一只猫", size: tuple[int, int] = (128, 128)) -> None:
    """Write a picture of unique content, with its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = random.Random(str(path)).randbytes(3)
    Image.new("RGB", size, tuple(colour)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def reasons(inventory: Inventory) -> dict[str, str]:
    assert all(drop.problem.field == "file" for drop in inventory.dropped)
    return {drop.key: drop.problem.clause for drop in inventory.dropped}


def codes(inventory: Inventory) -> dict[str, str]:
    return {drop.key: drop.problem.code for drop in inventory.dropped}


def warnings(inventory: Inventory) -> dict[str, str]:
    """Return the warnings' sentences by their codes."""
    return {warning.code: str(warning) for warning in inventory.warnings}


def problems_of(*configs: DatasetConfig, **given: object) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        look(*configs, **given)
    return caught.value.problems


def problem_of(*configs: DatasetConfig, **given: object) -> Problem:
    (problem,) = problems_of(*configs, **given)
    return problem


def keys(inventory: Inventory) -> list[str]:
    return [sample.key for sample in inventory.samples]
