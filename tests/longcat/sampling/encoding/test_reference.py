import numpy as np
import pytest
import torch
from diffusers import LongCatImageEditPipeline
from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import calculate_dimensions
from PIL import Image

from longcat.errors import PromptTooLongError
from longcat.model.loading import Components
from longcat.model.shape import canvas_size
from longcat.sampling import latents
from longcat.sampling.encoding.byte_cache import ByteCache
from longcat.sampling.encoding.reference import ReferenceEncoder, ReferencePicture
from tests.edit_model import picture


@pytest.mark.parametrize("size", [(1024, 1024), (1920, 1080), (1080, 1920), (333, 777), (4000, 500), (17, 16)])
@pytest.mark.parametrize("side", [1024, 128])
def test_the_canvas_is_the_published_pipelines(size: tuple[int, int], side: int) -> None:
    expected = calculate_dimensions(side * side, size[0] * 1.0 / size[1])
    assert canvas_size(width_px=size[0], height_px=size[1], area_px=side * side) == expected


@torch.no_grad()
def test_latents_and_what_the_encoder_sees_equal_the_published_pipeline(
    edit_pipeline: LongCatImageEditPipeline, references: ReferenceEncoder
) -> None:
    shown = picture(333, 200)
    reference = ReferencePicture.of(shown, width_px=160, height_px=96)
    resized = edit_pipeline.image_processor.resize(shown, 96, 160)
    half = edit_pipeline.image_processor.resize(resized, 48, 80)
    assert np.array_equal(np.asarray(reference.half), np.asarray(half))
    pixels = edit_pipeline.image_processor.preprocess(resized, 96, 160)
    assert torch.equal(reference.pixels, pixels)
    packed = edit_pipeline._pack_latents(edit_pipeline._encode_vae_image(pixels, generator=None), 1, 16, 12, 20)
    # Ours is encoded on one core, channels last.
    torch.testing.assert_close(references.latents(reference), packed, rtol=0, atol=1e-5)


def test_positions_of_a_reference_are_those_of_the_image_with_modality_2() -> None:
    size = {"height_px": 64, "width_px": 96, "max_tokens": 40}
    image = latents.image_ids(**size)
    reference = latents.image_ids(**size, modality=latents.REFERENCE)
    assert torch.equal(reference[:, 1:], image[:, 1:])
    assert (set(image[:, 0].tolist()), set(reference[:, 0].tolist())) == ({1.0}, {2.0})


def test_results_are_cached_by_content(references: ReferenceEncoder) -> None:
    first = ReferencePicture.of(picture(), width_px=128, height_px=128)
    again = ReferencePicture.of(picture(), width_px=128, height_px=128)
    other = ReferencePicture.of(picture(seed=1), width_px=128, height_px=128)
    latents_of_first, embedded = references.latents(first), references.embed("a", first)
    assert references.latents(again) is latents_of_first
    assert references.embed("a", again) is embedded
    assert (references.cache.hits, references.cache.misses) == (2, 3)  # latents, the seen picture, the prompt
    references.embed("", first)
    assert (references.cache.hits, references.cache.misses) == (3, 4)  # a negative prompt sees the same picture
    assert not torch.equal(references.latents(other), latents_of_first)


def test_one_pixel_makes_another_picture() -> None:
    pixels = np.asarray(picture(128, 128)).copy()
    before = ReferencePicture(Image.fromarray(pixels.copy())).digest
    pixels[64, 64, 0] ^= 1
    assert ReferencePicture(Image.fromarray(pixels)).digest != before
    # The same bytes at other sides are another picture.
    assert (
        ReferencePicture(picture(128, 64)).digest
        != ReferencePicture(Image.frombytes("RGB", (64, 128), picture(128, 64).tobytes())).digest
    )


def test_the_cache_keeps_within_its_bytes_and_evicts_what_was_used_least_recently() -> None:
    cache: ByteCache[torch.Tensor] = ByteCache(3 * 400)
    for key in ("a", "b", "c"):
        cache.get(key, lambda: torch.zeros(100))
    cache.get("a", lambda: torch.ones(100))
    cache.get("d", lambda: torch.zeros(100))
    assert cache.used_bytes == 1200
    assert not cache.get("a", lambda: torch.ones(100)).any()
    assert cache.get("b", lambda: torch.ones(100)).all()  # evicted, and computed again
    huge = cache.get("huge", lambda: torch.zeros(1000))
    assert huge.shape == (1000,)
    assert cache.used_bytes == 1200  # not kept, and nothing evicted for it


def test_a_model_of_128_px_encodes_pictures_within_a_bound(edit_model: Components) -> None:
    small = ReferenceEncoder(edit_model, most_bytes=100_000)
    for seed in range(8):
        shown = ReferencePicture.of(picture(seed=seed), width_px=128, height_px=128)
        small.latents(shown)
        small.embed("a", shown)
        assert small.cache.used_bytes <= 100_000


def test_a_prompt_that_is_too_long_is_an_error(references: ReferenceEncoder) -> None:
    with pytest.raises(PromptTooLongError):
        references.embed("猫" * 33, ReferencePicture.of(picture(), width_px=128, height_px=128))
