import numpy as np
import pytest
import torch
from diffusers import LongCatImageEditPipeline
from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import calculate_dimensions

from longcat.errors import PromptTooLongError
from longcat.model.loading import Components
from longcat.model.shape import canvas_size
from longcat.sampling import latents
from longcat.sampling.encoding.byte_cache import ByteCache
from longcat.sampling.encoding.reference import ReferenceEncoder, half
from longcat.sampling.encoding.source import encode_picture_latents
from longcat.sampling.encoding.source_picture import SourcePicture
from tests.edit_model import on_canvas, picture


@pytest.mark.parametrize("size", [(1024, 1024), (1920, 1080), (1080, 1920), (333, 777), (4000, 500), (17, 16)])
@pytest.mark.parametrize("side", [1024, 128])
def test_the_canvas_is_the_published_pipelines(size: tuple[int, int], side: int) -> None:
    expected = calculate_dimensions(side * side, size[0] * 1.0 / size[1])
    assert canvas_size(width_px=size[0], height_px=size[1], area_px=side * side) == expected


@torch.no_grad()
@pytest.mark.parametrize("size", [(333, 200), (160, 160), (100, 350)])
def test_latents_and_what_the_encoder_sees_equal_the_published_pipeline(
    edit_model: Components, edit_pipeline: LongCatImageEditPipeline, size: tuple[int, int]
) -> None:
    shown = picture(*size)
    reference = on_canvas(shown)
    width, height = calculate_dimensions(128 * 128, size[0] * 1.0 / size[1])
    processor = edit_pipeline.image_processor
    resized = processor.resize(shown, height, width)
    assert np.array_equal(np.asarray(half(reference)), np.asarray(processor.resize(resized, height // 2, width // 2)))
    pixels = processor.preprocess(resized, height, width)
    encoded = edit_pipeline._encode_vae_image(pixels, generator=None)
    packed = edit_pipeline._pack_latents(encoded, 1, 16, height // 8, width // 8)
    # Ours is encoded on one core, channels last.
    ours = encode_picture_latents(
        edit_model.vae, reference.pixel_array, device=edit_model.device, dtype=edit_model.dtype
    )
    torch.testing.assert_close(ours, packed, rtol=0, atol=1e-5)


def test_positions_of_a_reference_are_those_of_the_image_with_modality_2() -> None:
    size = {"height_px": 64, "width_px": 96, "max_tokens": 40}
    image = latents.image_ids(**size)
    reference = latents.image_ids(**size, modality=latents.REFERENCE)
    assert torch.equal(reference[:, 1:], image[:, 1:])
    assert (set(image[:, 0].tolist()), set(reference[:, 0].tolist())) == ({1.0}, {2.0})


def test_embeddings_are_cached_by_content(references: ReferenceEncoder) -> None:
    first, again, other = on_canvas(picture()), on_canvas(picture()), on_canvas(picture(seed=1))
    embedded = references.embed("a", first)
    assert references.embed("a", again) is embedded
    assert (references.prompts.hits, references.prompts.misses, references.seen.misses) == (1, 1, 1)
    references.embed("", again)  # a negative prompt sees the same picture, in which the tower is not run again
    assert (references.prompts.misses, references.seen.hits, references.seen.misses) == (2, 1, 1)
    assert not torch.equal(references.embed("a", other), embedded)
    assert references.seen.misses == 2


def test_one_pixel_makes_another_picture_and_a_mask_does_not() -> None:
    pixels = np.asarray(picture(128, 64))
    changed = pixels.copy()
    changed[32, 64, 0] ^= 1
    base = SourcePicture.of(pixels)
    assert SourcePicture.of(changed).digest != base.digest
    assert SourcePicture.of(pixels, np.zeros((64, 128), np.uint8)).digest == base.digest
    assert SourcePicture.of(pixels.reshape(128, 64, 3)).digest != base.digest  # the same bytes at other sides


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


def test_embeddings_and_seen_pictures_keep_within_one_bound(edit_model: Components) -> None:
    small = ReferenceEncoder(edit_model, most_bytes=160_000)
    for seed in range(8):
        small.embed("a", on_canvas(picture(seed=seed)))
        assert small.prompts.used_bytes + small.seen.used_bytes <= 160_000
    assert small.prompts.used_bytes > 0
    assert small.seen.used_bytes > 0


def test_a_prompt_that_is_too_long_is_an_error(references: ReferenceEncoder) -> None:
    with pytest.raises(PromptTooLongError):
        references.embed("猫" * 33, on_canvas(picture()))
