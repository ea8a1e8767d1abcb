"""Masked loss: a batch has the weights of its pictures' masks, and no gradient outside of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from longcat.model.loading import Components, load_scheduler_config
from longcat.sampling import latents
from tests.trainer.data.scans import picture
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.preparation import captions_of, dark_masks, encode_captions, encode_masks, encode_pictures
from trainer.loop.step import Batches, BatchSettings, loss_of
from trainer.model.base import prepare_model


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two pictures of one bucket: one with a mask of its left half, and one of another dataset without a mask."""
    folder = tmp_path_factory.mktemp("masked")
    picture(folder / "masked" / "a.png")
    picture(folder / "plain" / "b.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    (folder / "masks").mkdir()
    mask.save(folder / "masks" / "a.png")
    return folder


def batches(folder: Path, **changes: object) -> Batches:
    entries: list[dict[str, Any]] = [
        {"id": "masked", "instance_data_dir": str(folder / "masked"), "conditioning_data": "masks"},
        {"id": "plain", "instance_data_dir": str(folder / "plain")},
        {"id": "masks", "instance_data_dir": str(folder / "masks"), "dataset_type": "conditioning",
         "conditioning_type": "mask"},
    ]  # fmt: skip
    given = {"model_flavour": "embedded", "resolution": 128, "data_backend_config": entries, "device": "cpu"}
    config = TrainConfig.model_validate(given | {"output_dir": str(folder / "out")} | changes)
    config, encoders = prepare_model(config, torch.device("cpu"))
    samples = take_inventory(config, lambda: encoders.flavour).samples
    cache = Cache(config.cache_folder)
    encode_captions(encoders, cache, captions_of(samples), quiet)
    encode_pictures(encoders, cache, samples, quiet)
    encode_masks(encoders, cache, samples, quiet)
    assert encode_masks(encoders, cache, samples, quiet) == 0
    assert dark_masks(encoders, cache, samples) is None
    return Batches(select(config, BatchSettings), samples, encoders, cache, load_scheduler_config(encoders.flavour))


def test_the_loss_counts_what_the_mask_shows(folder: Path, model: Components) -> None:
    batch = batches(folder).batch(0, (0, 1), first=0)
    assert batch.weights_BNC is not None
    weights = latents.unpack(batch.weights_BNC, height_px=128, width_px=128)
    assert weights[0, :, :, :8].eq(1).all()
    assert weights[0, :, :, 8:].eq(0).all()
    assert weights[1].eq(1).all()
    kept: list[Tensor] = []

    def keep(_module: object, _inputs: object, outputs: tuple[Tensor]) -> None:
        outputs[0].requires_grad_().retain_grad()
        kept.append(outputs[0])

    handle = model.transformer.register_forward_hook(keep)
    try:
        loss = loss_of(model.transformer, batch)
    finally:
        handle.remove()
    loss.backward()
    assert kept[0].grad is not None
    gradient = latents.unpack(kept[0].grad, height_px=128, width_px=128)
    assert gradient[0, :, :, 8:].eq(0).all()
    assert gradient[0, :, :, :8].ne(0).any()
    assert gradient[1, :, :, 8:].ne(0).any()
    errors = (kept[0].detach() - batch.target_BNC).square()
    shown = latents.unpack(errors, height_px=128, width_px=128)
    expected = (shown[0, :, :, :8].sum() + shown[1].sum()) / shown.numel()
    torch.testing.assert_close(loss.detach(), expected)


def test_masks_count_in_their_share_of_batches_in_every_process_alike(folder: Path) -> None:
    half = batches(folder, masked_loss_probability=0.5)
    counted = [half.batch(number, (0,), first=0).weights_BNC is not None for number in range(60)]
    assert 18 < sum(counted) < 42
    assert counted == [half.batch(number, (0,), first=1).weights_BNC is not None for number in range(60)]
    never = batches(folder, masked_loss_probability=0)
    assert never.batch(0, (0, 1), first=0).weights_BNC is None
    assert half.batch(0, (1,), first=0).weights_BNC is None  # no mask in this batch


def test_a_mask_of_zeros_and_ones_is_warned_of(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "masked" / "a.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (128, 128), 1).save(tmp_path / "masks" / "a.png")
    entries = [
        {"id": "m", "instance_data_dir": str(tmp_path / "masked"), "conditioning_data": "k"},
        {"id": "k", "instance_data_dir": str(tmp_path / "masks"), "dataset_type": "conditioning",
         "conditioning_type": "mask"},
    ]  # fmt: skip
    given = {"model_flavour": "embedded", "resolution": 128, "data_backend_config": entries, "device": "cpu"}
    config, encoders = prepare_model(
        TrainConfig.model_validate(given | {"output_dir": str(tmp_path / "out")}), torch.device("cpu")
    )
    samples = take_inventory(config, lambda: encoders.flavour).samples
    cache = Cache(config.cache_folder)
    encode_masks(encoders, cache, samples, quiet)
    warning = dark_masks(encoders, cache, samples)
    assert warning is not None
    assert "m: a.png" in str(warning)
