"""Images that start from a picture: levels of noise, masks, edges, and their independence of the batch."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline
from PIL import Image

from longcat.model.loading import Components
from longcat.model.shape import image_tokens
from longcat.sampling import denoise, flow, latents
from longcat.sampling.encoding.source import FEATHER_PX, EncodedSource, area_of, encode_picture_latents
from longcat.sampling.encoding.source_picture import SourcePicture, changes_of, fitted, steps_kept
from longcat.sampling.forward import Forward
from tests.longcat.sampling.test_denoise import encode, finish

LATENT_TOLERANCE = 2e-5


def photo(width: int = 128, height: int = 128) -> np.ndarray:
    """Return a picture with detail everywhere."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 5) % 256], axis=-1).astype(np.uint8)


def middle(width: int = 128, height: int = 128) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    return mask


def source_of(model: Components, picture: SourcePicture, *, strength: float) -> EncodedSource:
    device, dtype = model.device, model.dtype
    clean = encode_picture_latents(model.vae, picture.pixel_array, device=device, dtype=dtype)
    return EncodedSource(clean_1NC=clean, strength=strength, area=area_of(picture, device=device, dtype=dtype))


def begin(
    model: Components, forward: Forward, source: EncodedSource | None, *, prompt: str = "a red apple", **changes: object
) -> denoise.Denoising:
    settings = {"steps": 8, "guidance_scale": 3.0, "cfg_renorm": True, "seed": 7} | changes
    return denoise.begin(
        model,
        forward,
        context_1LD=forward.context(encode(model, prompt)),
        negative_context_1LD=forward.context(encode(model, "")),
        height_px=128,
        width_px=128,
        source=source,
        **settings,
    )


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
@pytest.mark.parametrize("strength", [0.01, 0.3, 0.58, 0.6, 0.999, 1.0])
def test_the_steps_are_those_that_diffusers_keeps(steps: int, strength: float) -> None:
    class Pipeline:
        scheduler = FlowMatchEulerDiscreteScheduler()

    Pipeline.scheduler.set_timesteps(steps)
    _, kept = FluxImg2ImgPipeline.get_timesteps(Pipeline, steps, strength, "cpu")
    assert steps_kept(steps, strength) == max(1, kept)


def test_a_strength_too_small_for_a_step_makes_one() -> None:
    assert steps_kept(50, 1e-300) == 1


def test_each_step_is_that_of_diffusers_scheduler(model: Components) -> None:
    """The reference: ``scale_noise`` and ``step`` of the scheduler, and the mask as ``FluxInpaintPipeline`` blends it."""
    forward = Forward(model.transformer, model.device)
    picture = SourcePicture.of(photo(), middle())
    source = source_of(model, picture, strength=0.6)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(model.scheduler_config))
    mu = flow.shift_mu(image_tokens(width_px=128, height_px=128), model.scheduler_config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=mu)
    times = scheduler.timesteps[8 - steps_kept(8, 0.6) :]
    scheduler.set_begin_index(8 - steps_kept(8, 0.6))
    noise = latents.seeded_noise(seed=7, height_px=128, width_px=128)
    expected = scheduler.scale_noise(source.clean_1NC, times[:1], noise)
    change = torch.nn.functional.max_pool2d(torch.from_numpy(middle()).float()[None, None] / 255, 8)
    mask = latents.pack(change.expand(1, 16, 16, 16).contiguous())
    image = begin(model, forward, source)
    torch.testing.assert_close(image.latents_1NC, expected, rtol=0, atol=LATENT_TOLERANCE)
    for i, time in enumerate(times):
        before = image.latents_1NC
        twin = begin(model, forward, None)
        twin.sigmas, twin.modulations, twin.latents_1NC = image.sigmas, image.modulations, before
        twin.step = image.step
        denoise.advance(forward, [twin])
        velocity = (twin.latents_1NC - before) / (image.sigmas[i + 1] - image.sigmas[i])
        stepped = scheduler.step(velocity, time, before, return_dict=False)[0]
        kept = source.clean_1NC
        if i + 1 < len(times):
            kept = scheduler.scale_noise(kept, times[i + 1 : i + 2], noise)
        expected = (1 - mask) * kept + mask * stepped
        denoise.advance(forward, [image])
        torch.testing.assert_close(image.latents_1NC, expected, rtol=0, atol=LATENT_TOLERANCE)
    assert image.is_done


def test_full_strength_without_a_mask_is_the_image_of_the_prompt_alone(model: Components) -> None:
    forward = Forward(model.transformer, model.device)
    images = [
        begin(model, forward, source_of(model, SourcePicture.of(photo()), strength=1.0)),
        begin(model, forward, None),
    ]
    finish(model, *images)
    assert torch.equal(images[0].latents_1NC, images[1].latents_1NC)


def test_a_lower_strength_stays_nearer_to_the_picture(model: Components) -> None:
    forward, found = Forward(model.transformer, model.device), []
    for strength in (0.2, 0.5, 0.9):
        image = begin(model, forward, source_of(model, SourcePicture.of(photo()), strength=strength))
        finish(model, image)
        found.append(np.abs(denoise.decode(model.vae, image).astype(int) - photo()).mean())
    assert found == sorted(found)
    assert found[0] < found[2] / 2


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_no_pixel_changes_beyond_the_edge_of_the_mask(model: Components, strength: float) -> None:
    forward = Forward(model.transformer, model.device)
    image = begin(model, forward, source_of(model, SourcePicture.of(photo(), middle()), strength=strength))
    finish(model, image)
    pixels = denoise.decode(model.vae, image)
    rows, columns = np.nonzero((pixels != photo()).any(axis=-1))
    assert 32 - FEATHER_PX <= rows.min() <= 33
    assert 62 <= rows.max() < 64 + FEATHER_PX
    assert 32 - FEATHER_PX <= columns.min() <= 33
    assert 62 <= columns.max() < 64 + FEATHER_PX


def test_under_the_mask_is_the_image_alone(model: Components) -> None:
    area = area_of(SourcePicture.of(photo(), middle()), device=model.device, dtype=model.dtype)
    assert area is not None
    image = np.full((128, 128, 3), 9, np.uint8)
    pasted = area.paste(image)
    assert (pasted[32:64, 32:64] == 9).all()
    ring = area.weights_HW1[32, 64 : 64 + FEATHER_PX, 0]
    assert (np.diff(ring) < 0).all()
    assert 0 < ring.min() < ring.max() < 1


@pytest.mark.heavy
@pytest.mark.parametrize("reuse_tolerance", [0.0, 0.2])
def test_an_image_from_a_picture_is_bitwise_the_same_whoever_shares_its_forward(
    model: Components, reuse_tolerance: float
) -> None:
    forward = Forward(model.transformer, model.device)
    masked = source_of(model, SourcePicture.of(photo(), middle()), strength=1.0)
    whole = source_of(model, SourcePicture.of(photo()[::-1].copy()), strength=0.6)

    def images() -> list[denoise.Denoising]:
        return [
            begin(model, forward, masked, reuse_tolerance=reuse_tolerance),
            begin(model, forward, whole, prompt="一只猫", seed=3, steps=5),
            begin(model, forward, None, prompt="a dog", seed=5, steps=6, guidance_scale=1.0),
            begin(model, forward, masked, prompt="a blue car", seed=9, steps=3),
        ]

    alone, together = images(), images()
    for image in alone:
        finish(model, image)
    finish(model, *together)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.latents_1NC, other.latents_1NC)
        assert np.array_equal(denoise.decode(model.vae, one), denoise.decode(model.vae, other))


def test_a_picture_is_scaled_to_cover_the_size_and_cut_evenly() -> None:
    wide = Image.fromarray(np.repeat(np.arange(0, 256, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2))
    fit = fitted(wide, None, width_px=64, height_px=64)
    assert fit.pixel_array.shape == (64, 64, 3)
    assert 94 <= fit.pixel_array[0, 0, 0] <= 98
    assert 157 <= fit.pixel_array[0, -1, 0] <= 161


def test_a_picture_of_the_size_is_taken_as_it_is() -> None:
    assert np.array_equal(fitted(Image.fromarray(photo()), None, width_px=128, height_px=128).pixel_array, photo())


def test_margins_are_to_be_made_and_the_rest_stays() -> None:
    fit = fitted(Image.fromarray(photo(64, 64)), None, width_px=192, height_px=128, margins=(64, 0, 64, 64))
    assert fit.mask_array is not None
    assert (fit.mask_array[:64, 64:128] == 0).all()
    assert fit.mask_array.astype(int).sum() == 255 * (192 * 128 - 64 * 64)
    assert np.array_equal(fit.pixel_array[:64, 64:128], photo(64, 64))
    assert (fit.pixel_array[:64, :64] == photo(64, 64)[:, :1]).all()


def test_a_mask_changes_what_is_transparent_or_else_what_is_white() -> None:
    white = Image.fromarray(middle())
    assert np.array_equal(np.asarray(changes_of(white)), middle())
    opaque = white.convert("RGBA")
    assert np.array_equal(np.asarray(changes_of(opaque)), middle())
    transparent = Image.merge("RGBA", [*Image.fromarray(photo()).split(), Image.fromarray(255 - middle())])
    assert np.array_equal(np.asarray(changes_of(transparent)), middle())
