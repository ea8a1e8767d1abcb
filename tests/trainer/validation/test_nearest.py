"""Shifted, darker or noisy copies of training pictures are found; other pictures of the same set are not copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longcat.model.flavour import resolve
from longcat.model.precision import Precision
from tests import ROOT
from tests.trainer.data.scans import config, look, picture
from trainer.data.pictures import read_pixels
from trainer.data.sample import Sample
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders, encode_pictures
from trainer.validation.nearest import NearestPictures

INK = look(config(ROOT / "examples" / "ink" / "pictures")).samples
TRAINED, OTHERS = INK[::2], INK[1::2]
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda pixels: pixels,
    "shifted": lambda pixels: np.roll(pixels, (5, -7), axis=(0, 1)),
    "darker": lambda pixels: (pixels * 0.8).astype(np.uint8),
    "noisy": lambda pixels: np.clip(
        pixels + np.random.default_rng(0).normal(0, 24, pixels.shape), 0, 255
    ).astype(np.uint8),
}  # fmt: skip


def encoders() -> Encoders:
    return Encoders(
        flavour=resolve("embedded"), device=torch.device("cpu"), dtype=torch.float32,
        text_encoder_precision=Precision.NO_CHANGE, vae_batch=4,
    )  # fmt: skip


def search(samples: tuple[Sample, ...], folder: Path) -> NearestPictures:
    return NearestPictures(samples, encoders(), Cache(folder))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> NearestPictures:
    return search(TRAINED, tmp_path_factory.mktemp("cache"))


@pytest.mark.heavy
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_copies_are_found(trained: NearestPictures, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for sample in TRAINED:
        found = trained.of(change(read_pixels(sample)))
        assert (found.sample.key, found.is_copy) == (sample.key, True), found.share


def test_other_pictures_of_the_same_kind_are_no_copies(trained: NearestPictures) -> None:
    found = [trained.of(read_pixels(sample)) for sample in OTHERS]
    assert [one.sample.key for one in found if one.is_copy] == []
    assert all(one.share > 0.5 for one in found)


def test_one_training_picture_is_enough(tmp_path: Path) -> None:
    alone = search(TRAINED[:1], tmp_path)
    assert alone.of(read_pixels(TRAINED[0])).is_copy
    assert not alone.of(read_pixels(OTHERS[0])).is_copy
    assert not alone.of(np.full((64, 64, 3), 200, dtype=np.uint8)).is_copy


def test_thumbnails_come_from_the_cache_once_pictures_are_encoded(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "0.png")
    samples = look(config(tmp_path / "set")).samples
    pixels = read_pixels(samples[0])
    cache = Cache(tmp_path / "cache")
    encode_pictures(encoders(), cache, samples, lambda *_: None)
    (tmp_path / "set" / "0.png").unlink()
    assert NearestPictures(samples, encoders(), cache).of(pixels).distance == 0
