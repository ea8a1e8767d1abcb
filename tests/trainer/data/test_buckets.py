"""Aspect buckets: aligned, covering, and errors that name the size to give instead."""

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.errors import ConfigError
from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket, Crop, bucket_choices, choose, fit


def config(**given: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"id": "pictures", "instance_data_dir": ".", **given})


def choices(*sizes: str | float, kind: str = "pixel_area", grid: int = 64, **given: object) -> tuple[Bucket, ...]:
    return bucket_choices(config(**given), resolution=sizes, resolution_type=kind, alignment_px=grid)


def bucket(width: int, height: int) -> Bucket:
    return Bucket(width_px=width, height_px=height)


SIDES = st.integers(1, 20_000)
STYLES = st.sampled_from(["center", "random", "corner"])


@given(number=st.floats(64, 4000), kind=st.sampled_from(["pixel_area", "pixel"]), grid=st.sampled_from([16, 32, 64]))
def test_the_usual_buckets_are_aligned_and_of_the_given_area(number: float, kind: str, grid: int) -> None:
    found = choices(number, kind=kind, grid=grid)
    square = max(1, math.floor(number / grid + 0.5)) * grid
    assert bucket(square, square) in found
    for each in found:
        assert each.width_px % grid == each.height_px % grid == 0
        assert bucket(each.height_px, each.width_px) in found
        assert 0.5 <= each.width_px / each.height_px <= 2
        if kind == "pixel":
            assert min(each.width_px, each.height_px) == square
        elif each.width_px != each.height_px:
            assert 0.8 <= each.area_px / number**2 <= 1.25


@given(width=SIDES, height=SIDES, number=st.floats(64, 2048), style=STYLES, digest=st.binary())
def test_a_crop_is_inside_the_resized_picture_which_keeps_its_aspect(
    width: int, height: int, number: float, style: str, digest: bytes
) -> None:
    chosen = choose(width, height, choices(number))
    sha = hashlib.sha256(digest).hexdigest()
    crop = fit(width, height, chosen, config(crop_style=style), sha, kind="pixel_area")
    assert crop == fit(width, height, chosen, config(crop_style=style), sha, kind="pixel_area")
    assert crop.resized[0] >= chosen.width_px
    assert crop.resized[1] >= chosen.height_px
    assert crop.resized[0] == chosen.width_px or crop.resized[1] == chosen.height_px
    assert 0 <= crop.box[0] <= crop.resized[0] - chosen.width_px
    assert 0 <= crop.box[1] <= crop.resized[1] - chosen.height_px
    scale = max(chosen.width_px / width, chosen.height_px / height)
    assert abs(crop.resized[0] - width * scale) <= 1
    assert abs(crop.resized[1] - height * scale) <= 1


@given(width=SIDES, height=SIDES, numbers=st.lists(st.floats(64, 2048), min_size=1, max_size=3))
def test_no_bucket_is_much_nearer_in_shape_than_the_chosen(width: int, height: int, numbers: list[float]) -> None:
    found = choices(*numbers)
    chosen = choose(width, height, found)
    assert chosen in found
    assert chosen == choose(width, height, found[::-1])
    distances = {each: abs(math.log(width / height * each.height_px / each.width_px)) for each in found}
    assert distances[chosen] <= min(distances.values()) + 0.03


def test_sizes_are_taken_as_they_are_given() -> None:
    assert choices("1344x768", "1024x1024") == (bucket(1024, 1024), bucket(1344, 768))
    assert choices(512.0, resolution="1344x768,1024x1024") == (bucket(1024, 1024), bucket(1344, 768))


def test_the_sizes_of_a_megapixel_are_those_of_longcat() -> None:
    assert {bucket(1024, 1024), bucket(1344, 768), bucket(768, 1344), bucket(1152, 896)} <= set(choices(1024.0))
    assert choices(128.0) == (bucket(128, 128),)
    assert bucket(1024, 1024) in choices(1.0, kind="area")
    assert bucket(1024, 1024) in choices(64.0, resolution=1, resolution_type="area")


@pytest.mark.parametrize(("size", "nearest"), [("1000x1000", "1024x1024"), ("1300x768", "1280x768"), ("5x64", "64x64")])
def test_sizes_that_are_not_aligned_are_refused_with_the_nearest(size: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"resolution = {size}: .*multiples of 64 px.*; give {nearest}"):
        choices(size)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (1024.0, "area", "resolution_megapixels_too_many"),
        (1.0, "pixel_area", "resolution_too_small"),
        (1.0, "pixel", "resolution_too_small"),
        (0.001, "area", "resolution_too_small"),
        (100_000.0, "pixel", "resolution_side_too_long"),
    ],
)
def test_numbers_in_another_unit_are_refused(number: float, kind: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choices(number, kind=kind)
    assert [(p.code, p.field) for p in caught.value.problems] == [(code, "resolution")]


def test_square_keeps_squares_alone() -> None:
    assert choices(1024.0, 512.0, crop_aspect="square") == (bucket(512, 512), bucket(1024, 1024))
    with pytest.raises(ConfigError, match=r"crop_aspect = square: .*has no square; give one, such as 1024x1024"):
        choices("1344x768", crop_aspect="square")


def test_of_several_areas_the_largest_that_hardly_enlarges_is_chosen() -> None:
    found = choices(512.0, 1024.0)
    assert choose(4000, 4000, found) == bucket(1024, 1024)
    assert choose(950, 950, found) == bucket(1024, 1024)
    assert choose(900, 900, found) == bucket(512, 512)
    assert choose(40, 40, found) == bucket(512, 512)


def test_where_it_is_cut() -> None:
    square, digest, kind = bucket(64, 64), "00000003" + "0" * 56, "pixel_area"
    assert fit(256, 128, square, config(crop_style="center"), digest, kind=kind) == Crop(resized=(128, 64), box=(32, 0))
    assert fit(256, 128, square, config(crop_style="corner"), digest, kind=kind) == Crop(resized=(128, 64), box=(0, 0))
    assert fit(256, 128, square, config(crop_style="random"), digest, kind=kind) == Crop(resized=(128, 64), box=(3, 0))
    assert fit(256, 128, square, config(crop=False), digest, kind=kind) == Crop(resized=(64, 64), box=(0, 0))
