"""Requests that change a picture, in the engine: batches, the cache, previews, quality, cancelling."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longcat.model.loading import Components
from longcat.sampling.encoding.source_picture import SourcePicture
from service.wire.editing.fields import ResolvedEdit
from service.wire.events import PreviewEvent, StepEvent
from tests.longcat.sampling.encoding.test_source import middle, photo
from tests.service.engine.harness import EngineHarness

SHA256 = "0" * 64


def edit(*, strength: float, masked: bool = False) -> dict[str, Any]:
    return {
        "picture": SourcePicture.of(photo(64, 64), middle(64, 64) if masked else None),
        "edit": ResolvedEdit(image_sha256=SHA256, mask_sha256=SHA256 if masked else None, strength=strength),
    }


REQUESTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "masked": (("a1",), edit(strength=1.0, masked=True) | {"num_images": 2}),
    "whole": ((), edit(strength=0.6) | {"steps": 6, "seed": 5}),
    "turbo": (("turbo",), edit(strength=0.5) | {"defaulted": ("steps", "guidance_scale")}),
    "fast": ((), edit(strength=0.9, masked=True) | {"steps": 8, "reuse_tolerance": 0.2, "quality": None}),
    "text": (("whole",), {"seed": 3}),
}


@pytest.mark.heavy
def test_each_request_of_a_mixed_batch_has_the_files_of_its_solo_run(model: Components) -> None:
    mixed = EngineHarness(model, adapter_slots=8, max_rows=32)
    for name, (adapters, fields) in REQUESTS.items():
        mixed.submit(name, *adapters, **fields)
    mixed.settle()
    mixed.run(len(REQUESTS))
    for name, (adapters, fields) in REQUESTS.items():
        alone = EngineHarness(model, adapter_slots=8, max_rows=32)
        alone.submit(name, *adapters, **fields)
        alone.run(1)
        assert mixed.pictures(name) == alone.pictures(name)


def test_only_the_steps_that_the_strength_keeps_are_made(model: Components) -> None:
    harness = EngineHarness(model)
    harness.submit("a", steps=8, previews=2, **edit(strength=0.5))
    harness.run(1)
    steps = [event for _, event in harness.events if isinstance(event, StepEvent)]
    assert [(event.step, event.steps) for event in steps] == [(i, 4) for i in range(1, 5)]
    harness.settle()
    assert any(isinstance(event, PreviewEvent) for _, event in harness.events)
    assert harness.outcomes["a"].request.steps == 8


def test_a_picture_is_encoded_once_whoever_sends_it(model: Components) -> None:
    harness = EngineHarness(model, max_rows=32)
    for i in range(3):
        harness.submit(f"r{i}", seed=i, **edit(strength=0.3, masked=bool(i)))
        harness.settle()
    harness.run(3)
    cache = harness.engine.workers.sources.cache
    assert (cache.hits, cache.misses) == (2, 1)
    assert len({harness.pictures(f"r{i}")[0] for i in range(3)}) == 3


def test_a_cancelled_edit_leaves_the_others(model: Components) -> None:
    harness = EngineHarness(model, max_rows=8)
    harness.submit("gone", steps=20, **edit(strength=1.0))
    harness.submit("stays", **edit(strength=1.0))
    harness.settle()
    harness.engine.step()
    harness.engine.cancel("gone")
    harness.run(1)
    assert list(harness.outcomes) == ["stays"]


def test_pixels_outside_the_mask_are_those_of_the_picture(model: Components) -> None:
    harness = EngineHarness(model)
    harness.submit("a", **edit(strength=1.0, masked=True))
    harness.run(1)
    pixels = np.asarray(Image.open(io.BytesIO(harness.pictures("a")[0])))
    changed = (pixels != photo(64, 64)).any(axis=-1)
    assert changed[16:32, 16:32].mean() > 0.9
    changed[8:40, 8:40] = False
    assert not changed.any()
