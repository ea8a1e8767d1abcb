"""Masks of pictures: paired by name, read and cropped like their pictures, and reported if missing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longcat.errors import ConfigError
from tests.trainer.data.scans import codes, config, keys, look, picture, reasons, warnings
from trainer.config.dataset_options import DatasetConfig
from trainer.config.reading.file import make_config
from trainer.data.inventory import Inventory
from trainer.data.pictures import read_mask, read_pixels
from trainer.data.report import describe, report

WIDTH, HEIGHT = 320, 208


def masks(folder: Path, **given: object) -> DatasetConfig:
    return config(folder, id="masks", dataset_type="conditioning", **{"conditioning_type": "mask", **given})


def scanned(tmp_path: Path, *, mask: dict[str, object] | None = None, **given: object) -> Inventory:
    pictures = config(tmp_path / "pictures", conditioning_data="masks", **given)
    return look(pictures, masks(tmp_path / "masks", **mask or {}), allow_empty=True)


def pair(tmp_path: Path, name: str, *, size: tuple[int, int] = (128, 128), ending: str = ".png") -> None:
    picture(tmp_path / "pictures" / f"{name}.png", size=size)
    picture(tmp_path / "masks" / f"{name}{ending}", None, size=size)


def test_masks_are_paired_by_name_and_missing_halves_are_named(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "deep/B", ending=".jpg")
    pair(tmp_path, "other")
    (tmp_path / "masks" / "other.png").rename(tmp_path / "masks" / "nobody.png")
    found = scanned(tmp_path)
    assert keys(found) == ["a.png", "deep/B.png"]
    assert [sample.mask and sample.mask.key for sample in found.samples] == ["a.png", "deep/B.jpg"]
    assert codes(found) == {"other.png": "mask_missing"}
    assert reasons(found)["other.png"].startswith("no mask: dataset 'masks' has no other.png")
    assert "masks nobody.png belong to no picture" in warnings(found)["masks_without_picture"]
    assert report(found)["datasets"][0]["masked"] == 2
    assert "masked loss: 2 pictures by masks of masks" in describe(found)


def test_masks_that_do_not_fit_are_dropped_with_their_picture(tmp_path: Path) -> None:
    pair(tmp_path, "wide", size=(256, 128))
    Image.new("L", (128, 256), 255).save(tmp_path / "masks" / "wide.png")
    pair(tmp_path, "broken")
    (tmp_path / "masks" / "broken.png").write_bytes(b"no picture")
    pair(tmp_path, "twice", ending=".jpg")
    Image.new("L", (128, 128), 255).save(tmp_path / "masks" / "twice.webp")
    pair(tmp_path, "small", size=(129, 128))
    Image.new("L", (16, 16), 255).save(tmp_path / "masks" / "small.png")
    found = scanned(tmp_path)
    assert codes(found) == {
        "wide.png": "mask_of_another_shape", "broken.png": "mask_unusable", "twice.png": "mask_ambiguous",
    }  # fmt: skip
    assert keys(found) == ["small.png"]


@pytest.mark.parametrize(
    "given",
    [{}, {"crop_style": "random"}, {"crop_style": "corner", "crop_aspect": "square"},
     {"crop": False, "crop_aspect": "square"}, {"maximum_image_size": 150, "target_downsample_size": 140}],
)  # fmt: skip
@pytest.mark.parametrize("shrunk", [1, 2])
def test_a_mask_is_turned_resized_and_cropped_as_its_picture(
    tmp_path: Path, given: dict[str, object], shrunk: int
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "masks").mkdir()
    shapes = np.zeros((HEIGHT, WIDTH), np.uint8)
    shapes[50:120, 90:200] = 255
    shapes[150:190, 20:60] = 255
    grey = Image.fromarray(shapes)
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.convert("RGB").save(tmp_path / "pictures" / "a.png", exif=exif)
    (tmp_path / "pictures" / "a.txt").write_text("shapes")
    grey.resize((WIDTH // shrunk, HEIGHT // shrunk)).save(tmp_path / "masks" / "a.png")  # upright
    (one,) = scanned(tmp_path, **given).samples
    pixels, weights = read_pixels(one)[..., 0], read_mask(one)
    bucket = one.bucket
    assert weights.shape == (bucket.height_px // 8, bucket.width_px // 8)
    means = pixels.reshape(bucket.height_px // 8, 8, bucket.width_px // 8, 8).mean((1, 3))
    assert np.abs(means - weights).mean() < 2
    assert np.abs(means - weights).max() < 40  # at edges, where two filters differ
    assert set(np.unique(weights[(means < 1) | (means > 254)])) <= {0, 255, *range(8), *range(248, 255)}


def test_segmentation_keeps_all_that_is_not_black(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    shades = np.zeros((128, 128), np.uint8)
    shades[:64, :64], shades[64:, :64] = 40, 255
    Image.fromarray(shades).save(tmp_path / "masks" / "a.png")
    (weighed,), (whole,) = (
        scanned(tmp_path, mask={"conditioning_type": kind}).samples for kind in ("mask", "segmentation")
    )
    assert (read_mask(weighed)[0, 0], read_mask(weighed)[15, 0], read_mask(weighed)[0, 15]) == (40, 255, 0)
    assert (read_mask(whole)[0, 0], read_mask(whole)[15, 0], read_mask(whole)[0, 15]) == (255, 255, 0)


def test_what_is_learned_depends_on_the_masks(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    hashes = {scanned(tmp_path).hash, look(config(tmp_path / "pictures")).hash}
    hashes.add(scanned(tmp_path, mask={"conditioning_type": "segmentation"}).hash)
    hashes.add(scanned(tmp_path, mask={"alpha_colour": "#000000"}).hash)
    Image.new("L", (128, 128), 9).save(tmp_path / "masks" / "a.png")
    hashes.add(scanned(tmp_path).hash)
    assert len(hashes) == 5


def test_masks_below_the_pictures_are_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "masks" / "a.png", None)
    pictures = config(tmp_path, caption_strategy="instanceprompt", instance_prompt="a cat", conditioning_data="masks")
    assert keys(look(pictures, masks(tmp_path / "masks"))) == ["a.png"]


def test_either_dataset_may_name_the_other_and_two_may_share_masks(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    linked = masks(tmp_path / "masks", source_dataset_id="pictures")
    index = tmp_path / "index.json"
    assert look(config(tmp_path / "pictures"), linked, index_file=index).samples[0].mask is not None
    larger = config(tmp_path / "pictures", id="large", resolution=256, conditioning_data="masks")
    again = look(config(tmp_path / "pictures"), larger, linked, index_file=index)
    assert [sample.mask is not None for sample in again.samples] == [True, True]


LINKS = [
    ([{"conditioning_data": "lost"}], "conditioning_data_missing", "0.conditioning_data"),
    ([{"dataset_type": "image"}, {"conditioning_data": "a"}], "conditioning_data_not_second", "1.conditioning_data"),
    ([{}, {"conditioning_data": "a"}], "references_without_editing", "1.conditioning_data"),
    ([{"conditioning_data": ["b", "c"]}], "several_conditionings", "0.conditioning_data"),
    ([{}, {"dataset_type": "conditioning", "conditioning_type": "mask"}], "masks_of_no_dataset", "1.id"),
    ([{"conditioning_data": "b"}, {"dataset_type": "conditioning"}], "conditioning_type_missing", "1.conditioning_type"),
    ([{}, *({"dataset_type": "conditioning", "conditioning_type": "mask", "source_dataset_id": "a"} for _ in range(2))],
     "pictures_have_masks", "1.source_dataset_id"),
    ([{"conditioning_type": "mask", "dataset_type": "image"}], "option_of_masks", "0.conditioning_type"),
    ([{}, {"dataset_type": "conditioning", "conditioning_type": "mask", "source_dataset_id": "x"}], "mask_source_missing",
     "1.source_dataset_id"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "code", "field"), LINKS)
def test_links_that_lead_nowhere_are_named(entries: list[dict[str, object]], code: str, field: str) -> None:
    given = [
        {"id": "abc"[place], "instance_data_dir": f"/data/{place}", **entry} for place, entry in enumerate(entries)
    ]
    _, _, problems = make_config({"data_backend_config": given})
    assert [(problem.code, problem.field) for problem in problems] == [(code, f"data_backend_config.{field}")]
    assert problems[0].remedy
    assert ConfigError.of(problems)
