"""A training step on pairs: the model sees what a request shows it, and learns the picture's tokens alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat.model.loading import Components, load_scheduler_config
from longcat.sampling.encoding.reference import ReferenceEncoder
from longcat.sampling.encoding.source import encode_picture_latents
from longcat.sampling.forward import Forward
from tests.trainer.pairs import write_pairs
from trainer.config.reading.file import make_config
from trainer.config.settings import select
from trainer.data.inventory import Inventory
from trainer.data.pictures import read_reference
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders, encode_pictures
from trainer.encode.references import encode_prompts, encode_references, inputs_of
from trainer.loop.step import Batches, BatchSettings, loss_of, predict
from trainer.model.base import prepare_model

TOLERANCE = 1e-4
"""Of velocities in float32: the forward that serves adds in another order than diffusers' that trains."""
Prepared = tuple[Batches, Inventory, Encoders, Cache]


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def prepared(edit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("pairs")
    given = {
        "model_flavour": str(edit_folder), "data_backend_config": write_pairs(folder),
        "output_dir": str(folder / "out"), "device": "cpu", "caption_dropout_probability": 0.5,
    }  # fmt: skip
    made, _, problems = make_config(given)
    assert made is not None, problems
    config, encoders = prepare_model(made, torch.device("cpu"))
    inventory = take_inventory(config, lambda: encoders.flavour)
    cache, samples = Cache(config.cache_folder), inventory.samples
    references = [sample.reference for sample in samples if sample.reference is not None]
    assert encode_prompts(encoders, cache, inputs_of(samples), quiet) == 2 * len(samples)  # the empty prompt, too
    assert encode_prompts(encoders, cache, inputs_of(samples), quiet) == 0
    encode_pictures(encoders, cache, samples, quiet)
    assert encode_references(encoders, cache, references, quiet) == len(samples)
    assert encode_references(encoders, cache, references, quiet) == 0
    batches = Batches(select(config, BatchSettings), samples, encoders, cache, load_scheduler_config(encoders.flavour))
    return batches, inventory, encoders, cache


def test_what_is_cached_is_what_a_request_shows_the_model(prepared: Prepared, edit_model: Components) -> None:
    batches, inventory, _, _ = prepared
    seen = ReferenceEncoder(edit_model)
    empty = 0
    for index, sample in enumerate(inventory.samples):
        assert sample.reference is not None
        shown = read_reference(sample.reference)
        for number in range(4):
            batch = batches.batch(number, (index,), first=0)
            assert batch.reference_BNC is not None
            clean = encode_picture_latents(
                edit_model.vae, shown.pixel_array, device=edit_model.device, dtype=torch.float32
            )
            assert torch.equal(batch.reference_BNC, clean)
            captions = [
                text for text in ("", *sample.captions) if torch.equal(batch.embeds_BLJ, seen.embed(text, shown))
            ]
            assert len(captions) == 1
            empty += captions == [""]
            assert batch.image_ids_N3.shape[0] == 2 * batch.noisy_BNC.shape[1]
    assert 0 < empty < 4 * len(inventory.samples)


def test_the_keys_of_a_reference_follow_from_its_content(prepared: Prepared) -> None:
    _, inventory, encoders, _ = prepared
    references = [sample.reference for sample in inventory.samples]
    assert len({encoders.embedding_key("a", reference) for reference in (*references, None)}) == len(references) + 1
    assert len({encoders.reference_key(reference) for reference in references if reference}) == len(references)


@torch.no_grad()
def test_the_prediction_is_that_of_the_forward_that_serves(prepared: Prepared, edit_model: Components) -> None:
    batches, _, _, _ = prepared
    batch = batches.batch(0, (3, 4), first=0)
    size = {"height_px": 128, "width_px": 256}
    assert batch.noisy_BNC.shape[1] == 8 * 16
    ids = batch.text_ids_L3, batch.image_ids_N3
    transformer = edit_model.transformer
    predicted = predict(transformer, batch.noisy_BNC, batch.sigma_B, batch.embeds_BLJ, ids, batch.reference_BNC)
    forward, shown = Forward(transformer, edit_model.device), batch.reference_BNC
    assert shown is not None
    rope = forward.rope(**size, prompt_rows=batch.embeds_BLJ.shape[1], has_reference=True)
    served = forward(
        torch.cat([batch.noisy_BNC, shown], dim=1),
        torch.cat([forward.context(embeds[None]) for embeds in batch.embeds_BLJ]),
        torch.stack(forward.modulations(batch.sigma_B)),
        rope,
    )[:, : predicted.shape[1]]
    torch.testing.assert_close(predicted, served, rtol=0, atol=TOLERANCE)
    other = predict(transformer, batch.noisy_BNC, batch.sigma_B, batch.embeds_BLJ, ids, shown.flip(0))
    assert (other - predicted).abs().max() > 100 * TOLERANCE  # the reference is seen


def test_the_loss_is_of_the_pictures_tokens_alone(prepared: Prepared, edit_model: Components) -> None:
    batch = prepared[0].batch(1, (0, 1), first=0)
    kept: list[Tensor] = []

    def keep(_module: object, _inputs: object, outputs: tuple[Tensor]) -> None:
        outputs[0].requires_grad_().retain_grad()
        kept.append(outputs[0])

    handle = edit_model.transformer.register_forward_hook(keep)
    try:
        loss_of(edit_model.transformer, batch).backward()
    finally:
        handle.remove()
    tokens = batch.target_BNC.shape[1]
    assert kept[0].shape[1] == 2 * tokens
    assert kept[0].grad is not None
    assert kept[0].grad[:, :tokens].ne(0).any()
    assert kept[0].grad[:, tokens:].eq(0).all()
