"""Scans of pictures of many sizes: limits, crops, buckets."""

from pathlib import Path

import pytest
from PIL import Image

from longcat.errors import ConfigError
from tests.trainer.data.scans import config, keys, look, picture, reasons
from trainer.data.buckets import Bucket
from trainer.data.pictures import read_pixels
from trainer.loop.sampler import Sampler


def test_pictures_outside_the_limits_are_dropped(tmp_path: Path) -> None:
    for name, size in (
        ("tiny", (32, 32)),
        ("huge", (900, 900)),
        ("tall", (64, 250)),
        ("wide", (260, 64)),
        ("ok", (120, 120)),
    ):
        picture(tmp_path / f"{name}.png", size=size)
    limits = {"minimum_image_size": 100, "minimum_aspect_ratio": 0.5}
    found = look(config(tmp_path, **limits, maximum_aspect_ratio=2))
    assert keys(found) == ["huge.png", "ok.png"]
    assert reasons(found) == {
        "tiny.png": "32 x 32 px: 32 is less than minimum_image_size 100",
        "tall.png": "64 x 250 px: 0.256 is less than minimum_aspect_ratio 0.5",
        "wide.png": "260 x 64 px: 4.06 is more than maximum_aspect_ratio 2",
    }
    found = look(config(tmp_path, max_upscale_threshold=0.2))
    assert keys(found) == ["huge.png", "ok.png"]
    assert "bucket 128x128 enlarges it 4.00 times, more than max_upscale_threshold 0.2" in reasons(found)["tiny.png"]
    small = look(config(tmp_path, minimum_image_size=0.5, resolution_type="area", resolution=0.016384))
    assert keys(small) == ["huge.png"]


def test_pictures_over_the_maximum_are_reduced_before_they_are_cropped(tmp_path: Path) -> None:
    picture(tmp_path / "large.png", size=(800, 600))
    picture(tmp_path / "small.png", size=(240, 180))
    (covering,) = look(config(tmp_path, maximum_image_size=700, crop_aspect="square")).samples[:1]
    assert covering.crop.resized == (171, 128)  # without a target, like every picture: just covering its bucket
    large, small = look(
        config(tmp_path, maximum_image_size=256, target_downsample_size=200, crop_aspect="square")
    ).samples
    # sqrt(w h) becomes 200, and 128 x 128 px of it are kept.
    assert large.crop.resized == (231, 173)
    assert large.crop.box == (51, 22)
    assert small.crop.resized == (171, 128)
    (areas, _) = look(
        config(
            tmp_path, resolution=0.016384, resolution_type="area", maximum_image_size=0.1, target_downsample_size=0.04,
            crop_aspect="square",
        )
    ).samples  # fmt: skip
    assert areas.crop.resized == large.crop.resized


def test_buckets_of_chosen_or_random_aspects(tmp_path: Path) -> None:
    for index in range(12):
        picture(tmp_path / f"{index}.png", size=(300 + index, 200))
    wide = look(config(tmp_path, crop_aspect_buckets=(1.0, 2.0), resolution=256))
    assert {str(sample.bucket) for sample in wide.samples} == {"384x192"}  # 1.5 is nearer to 2 than to 1
    drawn = look(config(tmp_path, crop_aspect_buckets=(0.5, 1.0, 2.0), crop_aspect="random", resolution=256))
    assert len({sample.bucket for sample in drawn.samples}) == 3
    assert [sample.bucket for sample in drawn.samples] == [
        sample.bucket
        for sample in look(
            config(tmp_path, crop_aspect_buckets=(0.5, 1.0, 2.0), crop_aspect="random", resolution=256)
        ).samples
    ]


def test_a_limited_number_of_pictures_is_the_same_each_time(tmp_path: Path) -> None:
    for index in range(9):
        picture(tmp_path / f"{index}.png", size=(100 + index, 100))
    found = look(config(tmp_path, max_num_samples=4))
    assert len(found.samples) == 4
    assert found.samples == look(config(tmp_path, max_num_samples=4)).samples
    assert keys(found) != keys(look(config(tmp_path, max_num_samples=4, id="another")))
    assert [str(warning) for warning in found.warnings if warning.code == "pictures_over_limit"] == [
        "dataset = pictures: 4 of 9 pictures are used, by max_num_samples"
    ]
    assert len(look(config(tmp_path, max_num_samples=9)).samples) == 9


def test_an_epoch_shows_one_of_a_bucket_at_least(tmp_path: Path) -> None:
    for name, size in (("a", (128, 128)), ("b", (128, 128)), ("wide", (256, 128))):
        picture(tmp_path / f"{name}.png", size=size)
    found = look(config(tmp_path, probability=0.1, repeats=2, resolution=256))
    assert found.pictures_an_epoch == 6  # of two buckets, one picture three times
    sampler = Sampler(found.samples, batch=1, seed=0)
    assert sampler.batches_per_epoch == found.pictures_an_epoch


def test_buckets_come_from_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (384, 192)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("a")
    found = look(config(tmp_path), resolution=("384x192", "192x384"))
    assert found.buckets == {Bucket(width_px=192, height_px=384): 1}
    assert (found.samples[0].width_px, found.samples[0].height_px) == (192, 384)
    assert read_pixels(found.samples[0]).shape == (384, 192, 3)
    with pytest.raises(ConfigError, match=r"resolution = 100x100: .*; give 128x128"):
        look(config(tmp_path), resolution=("100x100",))
