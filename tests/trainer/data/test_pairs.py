"""Pairs of pictures: a reference by name for each, at the picture's size, and the faults of both halves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longcat.sampling.encoding.source_picture import fitted_reference
from tests.edit_model import picture as noise
from tests.trainer.data.scans import codes, config, keys, look, picture, reasons, warnings
from trainer.config.dataset_options import DatasetConfig
from trainer.config.reading.file import make_config
from trainer.data.inventory import Inventory
from trainer.data.pictures import read_pixels, read_reference
from trainer.data.report import contact_sheet, describe, report

STRICT, LOOSE = "reference_strict", "reference_loose"


def references(folder: Path, **given: object) -> DatasetConfig:
    return config(folder, id="before", dataset_type="conditioning", **{"conditioning_type": STRICT, **given})


def scanned(tmp_path: Path, *, kind: str = STRICT, **given: object) -> Inventory:
    pictures = config(tmp_path / "after", conditioning_data="before", **given)
    return look(pictures, references(tmp_path / "before", conditioning_type=kind), allow_empty=True)


def pair(tmp_path: Path, name: str, *, size: tuple[int, int] = (128, 128), ending: str = ".png") -> None:
    picture(tmp_path / "after" / f"{name}.png", "make it blue\n变蓝", size=size)
    picture(tmp_path / "before" / f"{name}{ending}", None, size=size)


def test_pairs_are_found_by_name_and_missing_halves_are_named(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "deep/B", ending=".jpg")
    pair(tmp_path, "lost")
    (tmp_path / "before" / "lost.png").rename(tmp_path / "before" / "nobody.png")
    (tmp_path / "before" / "a.txt").write_text("a caption of the other side")
    found = scanned(tmp_path)
    assert keys(found) == ["a.png", "deep/B.png"]
    assert [sample.reference and sample.reference.file.key for sample in found.samples] == ["a.png", "deep/B.jpg"]
    assert found.samples[0].captions == ("make it blue", "变蓝")
    assert codes(found) == {"lost.png": "reference_of_pair_missing"}
    assert reasons(found)["lost.png"].startswith("no reference: dataset 'before' has no lost.png")
    assert "references of no picture, 1 in all: nobody.png" in warnings(found)["references_without_picture"]


def test_the_faults_of_both_halves_are_reported(tmp_path: Path) -> None:
    pair(tmp_path, "both")
    (tmp_path / "after" / "both.png").write_bytes(b"no picture")
    (tmp_path / "before" / "both.png").write_bytes(b"no picture either")
    pair(tmp_path, "dumb")
    (tmp_path / "after" / "dumb.txt").unlink()
    (tmp_path / "before" / "dumb.png").unlink()
    found = scanned(tmp_path)
    assert [(drop.key, drop.problem.code) for drop in found.dropped] == [
        ("both.png", "picture_is_text"), ("both.png", "reference_unusable"),
        ("dumb.png", "caption_file_missing"), ("dumb.png", "reference_of_pair_missing"),
    ]  # fmt: skip
    assert "references_without_picture" not in warnings(found)


def test_a_strict_reference_has_the_pictures_shape_and_a_loose_one_is_cut_to_it(tmp_path: Path) -> None:
    pair(tmp_path, "a", size=(256, 128))
    Image.new("RGB", (200, 200), "red").save(tmp_path / "before" / "a.png")
    assert codes(scanned(tmp_path)) == {"a.png": "reference_of_another_shape"}
    assert "200 x 200" in reasons(scanned(tmp_path))["a.png"]
    (sample,) = scanned(tmp_path, kind=LOOSE, resolution="256x128").samples
    assert sample.reference is not None
    assert read_reference(sample.reference).pixel_array.shape == (128, 256, 3) == read_pixels(sample).shape


@pytest.mark.parametrize("given", [{}, {"crop_style": "random"}, {"crop_style": "corner"}, {"crop": False}])
def test_a_strict_reference_is_cropped_as_its_picture(tmp_path: Path, given: dict[str, object]) -> None:
    shown = noise(320, 208, seed=3)
    for side in ("after", "before"):
        (tmp_path / side).mkdir()
    shown.save(tmp_path / "after" / "a.png")
    (tmp_path / "after" / "a.txt").write_text("the same")
    shown.save(tmp_path / "before" / "a.webp", lossless=True)
    (sample,) = scanned(tmp_path, resolution="128x128", **given).samples
    assert sample.reference is not None
    assert np.array_equal(read_reference(sample.reference).pixel_array, read_pixels(sample))


def test_a_loose_reference_is_what_a_request_shows(tmp_path: Path) -> None:
    pair(tmp_path, "a", size=(256, 128))
    shown = noise(300, 200)
    shown.save(tmp_path / "before" / "a.png")
    (sample,) = scanned(tmp_path, kind=LOOSE, resolution="256x128").samples
    assert sample.reference is not None
    assert read_reference(sample.reference).digest == fitted_reference(shown, width_px=256, height_px=128).digest


def test_what_is_learned_depends_on_the_references(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    hashes = {scanned(tmp_path).hash, look(config(tmp_path / "after")).hash, scanned(tmp_path, kind=LOOSE).hash}
    Image.new("RGB", (128, 128), "red").save(tmp_path / "before" / "a.png")
    hashes.add(scanned(tmp_path).hash)
    assert len(hashes) == 4


def test_the_same_picture_edited_from_two_is_not_a_repetition(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    content = (tmp_path / "after" / "a.png").read_bytes()
    (tmp_path / "after" / "b.png").write_bytes(content)
    assert "pictures_repeated" not in warnings(scanned(tmp_path))
    (tmp_path / "before" / "b.png").write_bytes((tmp_path / "before" / "a.png").read_bytes())
    assert "pictures_repeated" in warnings(scanned(tmp_path))


def test_reports_show_pairs(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    Image.new("RGB", (128, 128), "red").save(tmp_path / "before" / "a.png")
    Image.new("RGB", (128, 128), "blue").save(tmp_path / "after" / "a.png")
    found = scanned(tmp_path)
    assert report(found)["datasets"][0]["paired"] == 1
    assert "pairs: 1 pictures edited from those of before" in describe(found)
    contact_sheet(found, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        middle = sheet.convert("RGB")
        assert middle.getpixel((50, 104)) == (255, 0, 0)  # left of the picture that is made of it
        assert middle.getpixel((150, 104)) == (0, 0, 255)


def test_masks_beside_references_name_the_pictures(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    picture(tmp_path / "masks" / "a.png", None)
    masks = config(
        tmp_path / "masks",
        id="masks",
        dataset_type="conditioning",
        conditioning_type="mask",
        source_dataset_id="pictures",
    )
    pictures = config(tmp_path / "after", conditioning_data="before")
    (sample,) = look(pictures, references(tmp_path / "before"), masks).samples
    assert sample.mask is not None
    assert sample.reference is not None


PAIRED = [{"conditioning_data": "b"}, {"conditioning_type": LOOSE}]
EDITING = [
    (PAIRED, {"model_flavour": "final"}, "references_without_editing", "data_backend_config.0.conditioning_data"),
    ([{}], {}, "references_not_given", "data_backend_config.0.conditioning_data"),
    ([*PAIRED, {"dataset_type": "eval"}], {}, "references_not_given", "data_backend_config.2.conditioning_data"),
    ([], {"instance_data_dir": "/data"}, "references_not_given", "instance_data_dir"),
    (PAIRED, {"publish_max_copies": 1}, "copies_of_edits", "publish_max_copies"),
    ([], {"distillation": {"prompts": "prompts.txt"}}, "distillation_of_editing", "model_flavour"),
    ([{}], {"model_flavour": "dev", "validation_input": [{"path": "a.png", "prompt": "blue"}]},
     "validation_input_without_editing", "validation_input"),
    ([{}, *({"conditioning_type": STRICT, "source_dataset_id": "a"} for _ in range(2))], {}, "pictures_have_references",
     "data_backend_config.1.source_dataset_id"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "options", "code", "field"), EDITING)
def test_what_does_not_go_together_is_refused_with_the_options(
    entries: list[dict[str, object]], options: dict[str, object], code: str, field: str
) -> None:
    given = [
        {"id": "abc"[place], "instance_data_dir": f"/data/{place}", **entry} for place, entry in enumerate(entries)
    ]
    datasets = {"data_backend_config": given} if given else {}
    _, _, problems = make_config({"model_flavour": "edit"} | datasets | options)
    assert [(problem.code, problem.field) for problem in problems] == [(code, field)]
    assert problems[0].remedy
