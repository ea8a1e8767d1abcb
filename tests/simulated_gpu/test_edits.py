"""Edits on a simulated GPU: the vision tower, references, sources and masks, in the engine, as on a CPU."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longcat.model.flavour import resolve
from longcat.model.loading import Components, load
from longcat.model.precision import Offload, Precision
from service.wire.events import StepEvent
from tests.edit_model import picture
from tests.service.engine.harness import EngineHarness
from tests.service.engine.test_reference import edit, pixels
from tests.simulated_gpu.device import Counting

pytestmark = pytest.mark.simulated_gpu

TOLERANCE = 1.0
"""Mean difference of pixels to the CPU's pictures, of 255."""
REQUESTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "edit": (("a1",), edit(picture())),
    "wide": ((), edit(picture(300, 100), steps=3, guidance_scale=1.0)),
    "masked": ((), edit(picture(seed=2), masked=True, seed=4)),
    "half": ((), edit(picture(seed=2), strength=0.5, steps=8)),
    "text": ((), {"seed": 3, "width": 128, "height": 128}),
}


def draw(model: Components, *, background: bool) -> dict[str, np.ndarray]:
    """Make all edits together."""
    harness = EngineHarness(model, max_rows=16, adapter_slots=2, background=background)
    for name, (adapters, fields) in REQUESTS.items():
        harness.submit(name, *adapters, **fields)
    harness.run(len(REQUESTS))
    return {name: pixels(harness.pictures(name)[0]) for name in harness.outcomes}


@cache
def on_cpu(folder: Path, precision: Precision) -> dict[str, np.ndarray]:
    return draw(load(resolve(str(folder)), device="cpu", dtype="bfloat16", precision=precision), background=True)


@pytest.mark.parametrize(
    ("precision", "offload"),
    [
        (Precision.NO_CHANGE, Offload.NONE),
        (Precision.NO_CHANGE, Offload.MODEL),
        (Precision.NO_CHANGE, Offload.GROUP),
        (Precision.INT8_QUANTO, Offload.NONE),
    ],
)
def test_edits_are_those_of_a_cpu(edit_folder: Path, precision: Precision, offload: Offload) -> None:
    expected = on_cpu(edit_folder, precision)
    model = load(resolve(str(edit_folder)), device="cuda", dtype="bfloat16", precision=precision, offload=offload)
    actual = draw(model, background=offload is Offload.NONE)
    differences = {name: float(np.abs(actual[name] - expected[name]).mean()) for name in expected}
    assert max(differences.values()) < TOLERANCE, differences


def test_the_steps_of_an_edit_wait_for_nothing(edit_folder: Path) -> None:
    harness = EngineHarness(load(resolve(str(edit_folder)), device="cuda", dtype="bfloat16"), max_rows=16)
    harness.submit("a", **edit(picture(), steps=12))
    harness.settle()
    harness.engine.step(0.05)
    counting, before = Counting(), len(harness.events)
    for _ in range(8):
        harness.engine.step(0.05)
    assert [type(event) for _, event in harness.events[before:]] == [StepEvent] * 8
    assert (counting.so_far.waits, counting.so_far.to_host) == (0, 0)
