"""Requests to a model that edits, in the engine: the picture is seen beside the image."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longcat.model.loading import Components
from longcat.sampling import denoise
from longcat.sampling.encoding.source_picture import SourcePicture
from service.wire.editing.fields import ResolvedEdit
from tests.edit_model import on_canvas, picture
from tests.longcat.sampling.encoding.test_source import middle
from tests.longcat.sampling.test_editing import edit as direct_edit
from tests.longcat.sampling.test_editing import finish
from tests.service.engine.harness import EngineHarness

SHA256 = "0" * 64


def edit(shown: Image.Image, *, strength: float = 1.0, masked: bool = False, **fields: Any) -> dict[str, Any]:
    canvas = on_canvas(shown)
    if masked:
        canvas = SourcePicture.of(canvas.pixel_array, middle(canvas.width_px, canvas.height_px))
    resolved = ResolvedEdit(
        image_sha256=SHA256, mask_sha256=SHA256 if masked else None, strength=strength, is_reference=True
    )
    size = {"width": canvas.width_px, "height": canvas.height_px}
    return {"picture": canvas, "edit": resolved, "cfg_renorm": False, "prompt": "make it blue", **size, **fields}


REQUESTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "two": (("a1",), edit(picture(), num_images=2)),
    "other": ((), edit(picture(seed=1), steps=6, seed=5, guidance_scale=1.0)),
    "wide": (("a1",), edit(picture(300, 100), steps=3)),
    "masked": ((), edit(picture(seed=2), masked=True, seed=4)),
    "half": ((), edit(picture(seed=2), strength=0.5, steps=8)),
    "text": (("whole",), {"seed": 3, "width": 128, "height": 128}),
}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


@pytest.mark.heavy
def test_each_edit_of_a_mixed_batch_has_the_files_of_its_solo_run(edit_model: Components) -> None:
    mixed = EngineHarness(edit_model, adapter_slots=8, max_rows=32)
    for name, (adapters, fields) in REQUESTS.items():
        mixed.submit(name, *adapters, **fields)
    mixed.settle()
    mixed.run(len(REQUESTS))
    for name, (adapters, fields) in REQUESTS.items():
        alone = EngineHarness(edit_model, adapter_slots=8, max_rows=32)
        alone.submit(name, *adapters, **fields)
        alone.run(1)
        assert mixed.pictures(name) == alone.pictures(name), name
    assert len({content for name in REQUESTS for content in mixed.pictures(name)}) == 7


def test_the_engine_makes_what_the_pipelines_equal_makes(edit_model: Components) -> None:
    """That edit is compared with diffusers' pipeline in tests/longcat/sampling/test_editing.py."""
    shown = picture(300, 100)
    harness = EngineHarness(edit_model)
    harness.submit("a", **edit(shown, steps=4, seed=9, guidance_scale=3.0, negative_prompt="ugly"))
    harness.run(1)
    direct = direct_edit(edit_model, shown, prompt="make it blue", negative_prompt="ugly", seed=9)
    finish(edit_model, direct)
    assert np.array_equal(pixels(harness.pictures("a")[0]), denoise.decode(edit_model.vae, direct))


def test_a_picture_is_seen_and_encoded_once_and_its_prompts_are_cached(edit_model: Components) -> None:
    harness = EngineHarness(edit_model, max_rows=32)
    for i in range(3):
        harness.submit(f"r{i}", **edit(picture(), seed=i, steps=1))
        harness.settle()
    harness.run(3)
    counts = harness.engine.workers.prompts.cache_counts
    assert (counts.memory, counts.misses) == (4, 2)  # the prompt and the empty negative one
    sources = harness.engine.workers.sources.cache
    assert (sources.hits, sources.misses) == (2, 1)


def test_a_masked_edit_keeps_the_pixels_outside_the_mask(edit_model: Components) -> None:
    harness = EngineHarness(edit_model)
    harness.submit("a", **edit(picture(seed=2), masked=True))
    harness.run(1)
    changed = (pixels(harness.pictures("a")[0]) != on_canvas(picture(seed=2)).pixel_array).any(axis=-1)
    assert changed[32:64, 32:64].mean() > 0.9
    changed[24:72, 24:72] = False
    assert not changed.any()
