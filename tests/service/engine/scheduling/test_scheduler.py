"""Forwards of several sizes: keys share them, and images of one key take turns."""

from collections import Counter

from longcat.model.loading import Components
from service.wire.events import StepEvent
from tests.service.engine.harness import EngineHarness

SIZES = ((64, 64), (64, 128), (128, 64), (64, 192), (192, 64))


def load(model: Components, *, keys: bool) -> EngineHarness:
    """Return an engine after 60 forwards: one picture of 128 x 128 px, beside a flood of smaller ones in five sizes."""
    s = EngineHarness(model, max_rows=4, background=False)
    for number, (width, height) in enumerate(SIZES):
        s.submit(
            f"flood{number}", steps=60, width=width, height=height, guidance_scale=1.0, key="flood" if keys else None
        )
    s.submit("victim", steps=60, width=128, height=128, guidance_scale=1.0, key="victim" if keys else None)
    for _ in range(60):
        s.engine.step()
    return s


def test_a_key_with_many_sizes_gets_no_more_than_its_share(model: Components) -> None:
    s = load(model, keys=True)
    pixels = Counter[str]()
    for name, event in s.events:
        if isinstance(event, StepEvent):
            width, height = (128, 128) if name == "victim" else SIZES[int(name[-1])]
            pixels[name[:5]] += width * height
    assert abs(pixels["victi"] - pixels["flood"]) <= 2 * 128 * 128 + 5 * 64 * 192
    steps = Counter(s.steps)
    assert all(steps[f"flood{number}"] > 0 for number in range(5))
    cost = [steps[f"flood{number}"] * width * height for number, (width, height) in enumerate(SIZES)]
    assert max(cost) - min(cost) <= 2 * 64 * 192  # the sizes of one key share alike


def test_sizes_of_one_key_take_turns(model: Components) -> None:
    s = load(model, keys=False)
    assert set(Counter(s.steps).values()) == {10}
