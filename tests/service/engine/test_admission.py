"""Admission by bytes: images wait for memory, and those that never fit are refused by name."""

from dataclasses import replace

import pytest

from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from service.memory.admission import StepMemory
from service.memory.plan import ServingPlan, plan
from service.memory.settings import workload_of
from tests.service.engine.harness import EngineHarness

STEPS = 3


@pytest.fixture(scope="module")
def planned(flavour: Flavour) -> ServingPlan:
    return plan(replace(workload_of(flavour, dtype="float32", has_adapters=False, max_pixels=None), rows=16))


def harness(model: Components, planned: ServingPlan, *, images: float) -> EngineHarness:
    """Return an engine whose memory is enough for that many images of 128 x 128 px with guidance."""
    row = planned.row_bytes(width_px=128, height_px=128)
    image = planned.image_bytes(width_px=128, height_px=128, steps=STEPS)
    memory = StepMemory(plan=planned, free_bytes=int(images * (2 * row + image)))
    return EngineHarness(model, max_rows=16, memory=memory)


def test_images_wait_for_memory(model: Components, planned: ServingPlan) -> None:
    s = harness(model, planned, images=2.1)
    for name in "abcd":
        s.submit(name, width=128, height=128, steps=STEPS)
    s.submit("small", steps=STEPS)
    s.settle()
    most = 0
    while len(s.outcomes) < 5:
        s.engine.step(0.05)
        most = max(most, s.engine.active_rows)
    assert 2 <= most <= 6
    assert all(s.pictures(name) for name in ("a", "b", "c", "d", "small"))


def test_an_image_that_never_fits_is_refused_by_name(model: Components, planned: ServingPlan) -> None:
    s = harness(model, planned, images=0.8)
    s.submit("large", width=512, height=256, steps=STEPS)
    s.submit("fits", width=128, height=128, steps=STEPS)
    s.run(2)
    (problem,) = s.error("large").problems
    assert (problem.code, problem.field) == ("image_exceeds_memory", "width")
    assert "give at most 64 x 64" in str(problem) or "give at most 128 x 128" in str(problem)
    assert s.pictures("fits")
