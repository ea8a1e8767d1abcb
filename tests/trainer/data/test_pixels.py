"""Pixels of a sample: resized, cut, and of the file that was scanned."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longcat.errors import DataError
from tests.trainer.data.test_pictures import BLUE, MOST, NOISE, RED
from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket, fit
from trainer.data.pictures import inspect, read_pixels
from trainer.data.sample import Sample


def sample_of(folder: Path, key: str, bucket: Bucket, **given: object) -> Sample:
    config = DatasetConfig.model_validate({"id": "pictures", "instance_data_dir": str(folder), **given})
    facts = inspect((folder / key).read_bytes(), max_pixels=MOST)
    return Sample(
        dataset=config.id,
        key=key,
        digest=facts.digest,
        captions=("a",),
        width_px=facts.width_px,
        height_px=facts.height_px,
        bucket=bucket,
        crop=fit(facts.width_px, facts.height_px, bucket, config, facts.digest, kind="pixel_area"),
        repeats=0,
        probability=1,
        config=config,
    )


@pytest.mark.parametrize("style", ["center", "corner", "random"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (40, 31)])
def test_pixels_are_those_of_the_resized_and_cut_picture(tmp_path: Path, style: str, size: tuple[int, int]) -> None:
    smooth = Image.fromarray(NOISE[:9, :12]).resize(size, Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    sample = sample_of(tmp_path, "a.png", Bucket(width_px=128, height_px=64), crop_style=style)
    pixels = read_pixels(sample)
    assert (pixels.shape, pixels.dtype) == ((64, 128, 3), np.uint8)
    left, top = sample.crop.box
    whole = smooth.resize(sample.crop.resized, Image.Resampling.LANCZOS).crop((left, top, left + 128, top + 64))
    assert np.abs(pixels.astype(int) - np.asarray(whole)).max() <= 2


def test_a_long_strip_takes_little_memory(tmp_path: Path) -> None:
    Image.new("RGB", (1, 60_000), RED).save(tmp_path / "strip.png")
    sample = sample_of(tmp_path, "strip.png", Bucket(width_px=1024, height_px=1024))
    assert sample.crop.resized == (1024, 61_440_000)  # 190 GB, if it were allocated
    assert read_pixels(sample).shape == (1024, 1024, 3)


def test_pixels_of_a_file_that_has_changed_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), RED).save(tmp_path / "a.png")
    sample = sample_of(tmp_path, "a.png", Bucket(width_px=64, height_px=64))
    assert read_pixels(sample)[0, 0].tolist() == [255, 0, 0]
    Image.new("RGB", (64, 64), BLUE).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"file = a.png: changed since dataset 'pictures' was scanned; start again"):
        read_pixels(sample)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"file = a.png: readable when .* and no longer: does not exist"):
        read_pixels(sample)
