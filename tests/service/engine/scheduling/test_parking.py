"""Images that are parked for ones of high priority: the same pictures, at most so often, and nothing left behind."""

from collections import Counter
from typing import Any

import pytest

from longcat.model.loading import Components
from service.engine.scheduling.parking import MOST_PARKINGS
from service.wire.events import Picture, PreviewEvent, ResultEvent, StepEvent
from tests.service.engine.harness import EngineHarness

REQUESTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": ((), {"guidance_scale": 1.0}),
    "adapted": (("a0", "whole"), {"seed": 3}),
    "reusing": (("a1",), {"seed": 4, "quality": "fast", "reuse_tolerance": 0.3, "previews": 3}),
    "two": ((), {"seed": 5, "num_images": 2}),
}
STEPS = 8


def alone(model: Components, name: str) -> EngineHarness:
    harness = EngineHarness(model, adapter_slots=4, background=False)
    adapters, fields = REQUESTS[name]
    harness.submit(name, *adapters, steps=STEPS, **fields)
    harness.run(1)
    return harness


def step(harness: EngineHarness, times: int = 1) -> None:
    for _ in range(times):
        harness.engine.step()


def previews(harness: EngineHarness, name: str) -> list[bytes]:
    return [event.content for of, event in harness.events if of == name and isinstance(event, PreviewEvent)]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_parked_picture_is_the_same_bit_for_bit(model: Components, name: str) -> None:
    adapters, fields = REQUESTS[name]
    rows = (1 if fields.get("guidance_scale") == 1.0 else 2) * fields.get("num_images", 1)
    s = EngineHarness(model, adapter_slots=4, max_rows=max(2, rows), background=False)
    s.submit(name, *adapters, steps=STEPS, **fields)
    step(s, 3)
    made = s.steps.count(name)
    assert made > 0
    for number in range(2):  # its adapters are loaded into other slots when it continues
        s.submit(f"high{number}", "a2", "a3", "a4", "a5", steps=3, priority="high", seed=number)
    step(s, 3)
    assert s.engine.parked > 0
    assert s.steps[-1].startswith("high")
    s.run(3)
    assert s.engine.parkings > 0
    assert s.engine.parked == s.engine.queued == s.engine.active_rows == 0
    reference = alone(model, name)
    assert s.pictures(name) == reference.pictures(name)
    assert previews(s, name) == previews(reference, name)
    assert Counter(s.steps)[name] == STEPS * fields.get("num_images", 1)
    assert all(adapter.pictures == 0 for adapter in s.engine.slot_table.loaded)


def test_the_first_step_of_high_priority_is_one_of_the_next_two_forwards(model: Components) -> None:
    s = EngineHarness(model, max_rows=4, background=False)
    for number, size in enumerate(((64, 64), (128, 64), (64, 128), (128, 128))):
        for request in range(2):
            s.submit(f"load{number}{request}", steps=30, width=size[0], height=size[1], priority="low")
    step(s, 6)
    for number, width in enumerate((64, 192, 128)):  # an occupied size, a new one, an occupied one
        name = f"high{number}"
        s.submit(name, steps=12, width=width, priority="high")
        step(s, 2)
        assert name in s.steps, number
    before = len(s.steps)
    step(s, 12)
    after = [name.startswith("high") for name in s.steps[before:]]
    assert any(after)
    assert not all(after)  # the sizes without high priority get every second forward


def test_an_image_is_parked_at_most_so_often(model: Components) -> None:
    s = EngineHarness(model, max_rows=2, background=False)
    s.submit("low", steps=4, priority="low")
    step(s)
    for number in range(40):
        s.submit(f"high{number}", steps=1, priority="high", seed=number)
        step(s)
        if "low" in s.outcomes:
            break
    assert "low" in s.outcomes
    assert s.engine.parkings <= MOST_PARKINGS


def test_only_images_of_lower_priority_are_parked_and_only_if_that_is_enough(model: Components) -> None:
    s = EngineHarness(model, max_rows=4, adapter_slots=4, background=False)
    s.submit("high0", "a0", "a1", "a2", steps=9, priority="high")
    s.submit("normal", "a3", steps=9)
    step(s, 2)
    s.submit("high1", "a4", "a5", steps=2, priority="high")  # needs a slot of high0's
    step(s, 2)
    assert s.engine.parkings == 0
    assert "high1" not in s.steps
    s.submit("waits", steps=2)
    step(s)
    assert s.engine.parkings == 0
    s.run(4)


def test_a_parked_request_can_be_cancelled_and_fails_at_its_deadline(model: Components) -> None:
    s = EngineHarness(model, max_rows=2, adapter_slots=4, background=False)
    s.submit("parked", "a0", steps=6)
    step(s, 2)
    s.submit("high", steps=4, priority="high")
    step(s, 2)
    assert s.engine.parked == 1
    assert s.engine.steps_left()["parked"] == 4
    s.engine.cancel("parked")
    step(s)
    assert s.engine.parked == 0
    s.run(1)
    assert s.engine.queued == s.engine.active_rows == 0
    assert all(adapter.pictures == 0 for adapter in s.engine.slot_table.loaded)


def test_events_of_pictures_are_complete(model: Components) -> None:
    """Steps of an image are reported once each, in order, whether or not it was parked between them."""
    s = EngineHarness(model, max_rows=4, background=False)
    s.submit("two", steps=6, num_images=2)
    step(s, 2)
    s.submit("high", steps=3, num_images=2, priority="high")
    s.run(2)
    for image in range(2):
        made = [e.step for of, e in s.events if of == "two" and isinstance(e, StepEvent) and e.image == image]
        assert made == [1, 2, 3, 4, 5, 6]
    result = s.outcomes["two"]
    assert isinstance(result, ResultEvent)
    assert all(isinstance(picture, Picture) for picture in result.images)
