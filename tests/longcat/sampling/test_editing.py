"""Images made from a reference picture: against diffusers' pipeline, and rows that share a forward."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LongCatImageEditPipeline
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from PIL import Image

from longcat.adapter.modules import linear_modules
from longcat.model.flavour import resolve
from longcat.model.loading import Components, load
from longcat.sampling import denoise
from longcat.sampling.encoding.reference import ReferenceEncoder
from longcat.sampling.encoding.source import encode_picture_latents
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots, SlotUse
from tests.edit_model import on_canvas, picture
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_slots import filled_slots, random_lora

# Ours runs the conditional and unconditional rows in one forward, the published pipeline in two; both in float32.
LATENT_TOLERANCE = 2e-4
PIXEL_TOLERANCE = 1
AREA_PX = 128 * 128


def edit(
    model: Components,
    shown: Image.Image,
    *,
    prompt: str = "make the apple blue",
    negative_prompt: str = "",
    **changes: Any,
) -> denoise.Denoising:
    reference, encoder = on_canvas(shown, area_px=AREA_PX), ReferenceEncoder(model)
    settings = {"steps": 4, "guidance_scale": 3.0, "cfg_renorm": False, "seed": 7} | changes
    return denoise.start(
        model,
        Forward(model.transformer, model.device),
        embeds_1LJ=encoder.embed(prompt, reference),
        negative_embeds_1LJ=encoder.embed(negative_prompt, reference),
        height_px=reference.height_px,
        width_px=reference.width_px,
        reference_1NC=encode_picture_latents(model.vae, reference.pixel_array, device=model.device, dtype=model.dtype),
        **settings,
    )


def draw(model: Components, *, seed: int = 7, size: tuple[int, int] = (128, 128), **changes: Any) -> denoise.Denoising:
    """Return an image without a reference."""
    settings = {"steps": 4, "guidance_scale": 3.0, "cfg_renorm": False} | changes
    return denoise.start(
        model,
        Forward(model.transformer, model.device),
        embeds_1LJ=encode(model, "a red apple"),
        negative_embeds_1LJ=encode(model, ""),
        height_px=size[0],
        width_px=size[1],
        seed=seed,
        **settings,
    )


def finish(model: Components, *pictures: denoise.Denoising, slots: AdapterSlots | None = None) -> None:
    forward = Forward(model.transformer, model.device)
    while not all(picture.is_done for picture in pictures):
        denoise.advance(forward, [picture for picture in pictures if not picture.is_done], slots)


@pytest.mark.heavy
@pytest.mark.parametrize("size", [(128, 128), (400, 300), (100, 350), (333, 111)])
@pytest.mark.parametrize("guidance", [4.5, 1.0])
def test_edits_equal_the_published_pipeline(
    edit_model: Components,
    edit_pipeline: LongCatImageEditPipeline,
    size: tuple[int, int],
    guidance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pipeline is given the picture as it came, and the embeddings from us; all else is its own."""
    shown = picture(*size)
    ours = edit(edit_model, shown, guidance_scale=guidance, negative_prompt="ugly", seed=11)
    canvas = on_canvas(shown, area_px=AREA_PX)
    encoder = ReferenceEncoder(edit_model)
    monkeypatch.setattr(edit_pipeline, "_encode_prompt", lambda prompts, _: encoder.embed(prompts[0], canvas))
    dimensions = pipeline_longcat_image_edit.calculate_dimensions
    monkeypatch.setattr(
        pipeline_longcat_image_edit, "calculate_dimensions", lambda _, ratio: dimensions(AREA_PX, ratio)
    )
    settings = {
        "image": shown,
        "prompt": "make the apple blue",
        "negative_prompt": "ugly",
        "num_inference_steps": 4,
        "guidance_scale": guidance,
    }
    expected_latents = edit_pipeline(
        **settings, generator=torch.Generator().manual_seed(11), output_type="latent"
    ).images
    expected = edit_pipeline(**settings, generator=torch.Generator().manual_seed(11), output_type="np").images[0]
    finish(edit_model, ours)
    torch.testing.assert_close(ours.latents_1NC, expected_latents, rtol=0, atol=LATENT_TOLERANCE)
    pixels = denoise.decode(edit_model.vae, ours).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - (expected * 255).round()).max() <= PIXEL_TOLERANCE


def test_the_reference_decides_the_image(edit_model: Components) -> None:
    """Through the latents alone, too: with the embeddings of another picture."""
    one, other = edit(edit_model, picture()), edit(edit_model, picture(seed=1))
    mixed = edit(edit_model, picture())
    mixed.reference_1NC = other.reference_1NC
    finish(edit_model, one, other, mixed)
    assert (one.latents_1NC - other.latents_1NC).abs().max() > 0.05
    assert (one.latents_1NC - mixed.latents_1NC).abs().max() > 0.05


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_edit_is_bitwise_the_same_whoever_shares_its_forward(edit_model: Components, dtype: str) -> None:
    model = load(resolve(str(edit_model.flavour.folder)), device="cpu", dtype=dtype)
    makers = [
        lambda: edit(model, picture(seed=1), steps=5, seed=3),
        lambda: draw(model, steps=3),
        lambda: edit(model, picture(seed=2), prompt="把苹果换成梨", steps=3, guidance_scale=1.0),
        lambda: edit(model, picture(100, 250), steps=4, guidance_scale=6.0),
        lambda: edit(model, picture(seed=3), steps=6, cfg_renorm=True, reuse_tolerance=0.2),
        lambda: draw(model, steps=4, size=(64, 128), guidance_scale=1.0),
    ]
    alone = [make() for make in makers]
    for image in alone:
        finish(model, image)
    together = [make() for make in makers]
    finish(model, *together)
    for solo, shared in zip(alone, together, strict=True):
        assert torch.equal(solo.latents_1NC, shared.latents_1NC)
    assert np.array_equal(denoise.decode(model.vae, alone[0]), denoise.decode(model.vae, together[0]))


@pytest.mark.heavy
def test_edits_with_adapters_of_their_own_are_bitwise_the_same_alone(edit_model: Components) -> None:
    """One changes attention alone, the other every layer, those of the times and of the prompt included."""
    targets = linear_modules(edit_model.transformer)
    adapters = [random_lora(targets, seed=1), random_lora(targets, seed=2, only=("",))]
    slots = filled_slots(edit_model, adapters)
    uses: list[tuple[SlotUse, ...]] = [((0, 1.0),), ((1, 0.7),), (), ((0, 0.5), (1, 0.3))]

    def begun() -> list[denoise.Denoising]:
        return [
            edit(edit_model, picture(seed=i), seed=i, steps=3, adapters=adapters_of, slots=slots)
            for i, adapters_of in enumerate(uses)
        ]

    alone, together = begun(), begun()
    for image in alone:
        finish(edit_model, image, slots=slots)
    finish(edit_model, *together, slots=slots)
    for solo, shared in zip(alone, together, strict=True):
        assert torch.equal(solo.latents_1NC, shared.latents_1NC)
    plain = edit(edit_model, picture(), seed=0, steps=3)
    finish(edit_model, plain)
    assert (plain.latents_1NC - alone[0].latents_1NC).abs().max() > 0.05


def test_rows_of_one_shape_share_a_forward_and_others_have_their_own(edit_model: Components) -> None:
    images = [edit(edit_model, picture()), draw(edit_model), edit(edit_model, picture(seed=1)), draw(edit_model)]
    forward, batches = Forward(edit_model.transformer, edit_model.device), []
    computed = denoise.advance(
        lambda tokens, *inputs: batches.append(tuple(tokens.shape[:2])) or forward(tokens, *inputs), images
    )
    assert (computed, sorted(batches)) == (8, [(4, 64), (4, 128)])
    batches.clear()
    denoise.advance(
        lambda tokens, *inputs: batches.append(tuple(tokens.shape[:2])) or forward(tokens, *inputs), images, max_rows=3
    )
    assert sorted(batches) == [(1, 64), (1, 128), (3, 64), (3, 128)]
