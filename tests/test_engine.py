"""The step loop itself: who goes first, who fails, and who is never held up."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from longcat import denoise
from longcat.adapter import BaseIdentity, Manifest, WeightsIdentity
from longcat.errors import AdapterError, DeadlineError, EngineError
from longcat.loading import Components
from longcat.lora import LoraWeights, lora_targets
from service.engine import Engine
from service.orders import AdapterUse, Drawn, Event, Order, Progress
from service.slots import Adapter
from tests.test_slots import random_lora

SMALL = {"width_px": 64, "height_px": 64}


def as_adapter(name: str, weights: LoraWeights, model: Components) -> Adapter:
    manifest = Manifest(
        base=BaseIdentity(flavour="embedded", revision=None, hash=model.flavour.hash),
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=tuple(weights.layers),
        tensors=2 * len(weights.layers),
        origin="trained",
        name=name,
        version=1,
        created=datetime.now(UTC),
        weights=WeightsIdentity(sha256=name.encode().hex().rjust(64, "0"), size_bytes=1),
    )
    return Adapter(manifest=manifest, weights=weights)


class Adapters:
    """A source that has them at hand, and one that takes its time."""

    def __init__(self, model: Components) -> None:
        self.is_downloaded = threading.Event()
        """The slow one."""
        targets = lora_targets(model.transformer)
        self._there = {f"a{i}": as_adapter(f"a{i}", random_lora(targets, seed=i), model) for i in range(6)}

    def resolve(self, reference: str) -> Adapter:
        if reference == "slow":
            self.is_downloaded.wait(60)
        if reference not in self._there:
            raise AdapterError(f"no {reference}")
        return self._there[reference]


class Studio:
    """An engine, what it says, and in which order."""

    def __init__(self, model: Components, **options: Any) -> None:
        self.events: list[tuple[str, Event]] = []
        self.engine = Engine(
            model,
            lambda order, event: self.events.append((order.id, event)),
            adapter_rank=16,
            **{"max_rows": 4} | options,
        )
        self.adapters = self.engine.source = Adapters(model)

    def order(self, name: str, *adapters: str, **changes: Any) -> None:
        defaults: dict[str, Any] = {
            "prompt": "一只猫", "negative_prompt": "", "steps": 4, "guidance_scale": 2.0, "cfg_renorm": True,
            "rewrite_prompt": False, "seeds": (1,), "progress": True, **SMALL,
        }  # fmt: skip
        uses = tuple(AdapterUse(reference=reference, scale=1.0) for reference in adapters)
        self.engine.submit(Order(id=name, adapters=uses, **defaults | changes))

    def settle(self) -> None:
        """Let the background threads finish, without a step."""
        for pool in (self.engine._downloads, self.engine._workers):  # downloaded, an order goes on to the workers
            assert isinstance(pool, ThreadPoolExecutor)
            all_idle = threading.Barrier(pool._max_workers)
            list(pool.map(lambda _: all_idle.wait(60), range(pool._max_workers)))  # noqa: B023 - waited for here

    def run(self, orders: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.outcomes) < orders:
            self.engine.step(0.05)
            assert time.monotonic() < deadline, self.events

    @property
    def outcomes(self) -> dict[str, Event]:
        return {name: event for name, event in list(self.events) if isinstance(event, Drawn | Exception)}

    @property
    def steps(self) -> list[str]:
        return [name for name, event in self.events if isinstance(event, Progress)]


@pytest.fixture
def studio(model: Components) -> Iterator[Callable[..., Studio]]:
    return lambda **options: Studio(model, **options)  # type: ignore[return-value]


def begin_together(studio: Studio, *names: str) -> None:
    """Step until all of these have been prepared and begun."""
    deadline = time.monotonic() + 120
    while not set(names) <= set(studio.steps):
        studio.engine.step(0.05)
        assert time.monotonic() < deadline


def test_sizes_take_turns_and_a_newcomer_joins_at_the_next_step(studio: Callable[..., Studio]) -> None:
    s = studio()
    s.order("small", steps=12)
    s.order("wide", steps=12, width_px=128)
    begin_together(s, "small", "wide")
    s.order("late", steps=2)
    s.settle()
    made = len(s.steps)
    s.run(3)
    after = s.steps[made:]
    assert after.index("late") <= 2  # one forward of the other size at most
    alternating = [name for name in s.steps[1:] if name != "late"]
    both = alternating[: 2 * min(alternating.count("small"), alternating.count("wide")) - 4]
    assert all(a != b for a, b in itertools.pairwise(both[2:])), both


def test_whoever_waits_for_slots_is_not_starved_by_those_who_need_none_or_have_theirs(
    studio: Callable[..., Studio],
) -> None:
    s = studio(adapter_slots=2, max_rows=8)
    s.order("first", "a0", "a1", steps=6)
    begin_together(s, "first")
    s.order("waiting", "a2", "a3", steps=2)
    s.settle()
    for i in range(4):  # their adapters are loaded: they could go at once, again and again
        s.order(f"later{i}", "a0", "a1", steps=6)
    s.order("plain", steps=3)
    s.settle()
    s.run(7)
    finished = list(s.outcomes)
    assert finished.index("waiting") < min(finished.index(f"later{i}") for i in range(4))
    assert finished.index("plain") < finished.index("waiting")  # it needs no slot: it may pass
    assert s.engine.table.evictions >= 2
    assert all(isinstance(event, Drawn) for event in s.outcomes.values())


def test_pictures_beyond_the_rows_follow_in_order_and_large_ones_get_fewer_rows(studio: Callable[..., Studio]) -> None:
    s = studio(max_rows=4)
    s.order("many", seeds=tuple(range(5)), steps=2)
    s.settle()
    s.order("next", steps=2)
    s.order("large", steps=1, seeds=(1, 2), width_px=256, height_px=256)
    s.run(3)
    many = s.outcomes["many"]
    assert isinstance(many, Drawn)
    assert [p.shape for p in many.pictures] == [(64, 64, 3)] * 5
    images = [event.picture for name, event in s.events if name == "large" and isinstance(event, Progress)]
    assert images == [0, 1]
    assert s.steps.index("next") > 4  # after the first four pictures of many have begun


def test_a_failing_step_fails_one_picture_alone(studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    s = studio()
    real = denoise.advance

    def breaks(forward: object, pictures: list[denoise.Denoising], slots: object) -> None:
        if any(picture.steps == 5 and picture.step == 2 for picture in pictures):
            raise RuntimeError("out of memory")
        real(forward, pictures, slots)  # type: ignore[arg-type]

    s.order("whole", steps=6)
    s.run(1)
    expected = s.outcomes["whole"]
    s.events.clear()
    monkeypatch.setattr(denoise, "advance", breaks)
    s.order("whole", steps=6)
    s.order("broken", steps=5, seeds=(1, 2))
    s.run(2)
    assert str(s.outcomes["broken"]) == "out of memory"
    again = s.outcomes["whole"]
    assert isinstance(again, Drawn)
    assert isinstance(expected, Drawn)
    assert np.array_equal(again.pictures[0], expected.pictures[0])


def test_a_picture_that_cannot_be_decoded_or_an_adapter_that_is_not_there_fails_alone(
    studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = studio(adapter_slots=2)
    real = denoise.decode

    def breaks(vae: object, picture: denoise.Denoising) -> np.ndarray:
        if picture.steps == 3:
            raise EngineError("no memory to decode")
        return real(vae, picture)  # type: ignore[arg-type]

    monkeypatch.setattr(denoise, "decode", breaks)
    for name, adapters, steps in (("undecodable", (), 3), ("unknown", ("nobody",), 2), ("good", ("a0",), 2)):
        s.order(name, *adapters, steps=steps)
    s.run(3)
    assert (str(s.outcomes["undecodable"]), str(s.outcomes["unknown"])) == ("no memory to decode", "no nobody")
    assert isinstance(s.outcomes["good"], Drawn)
    assert s.engine.active_rows == s.engine.waiting == 0
    assert all(occupant.pictures == 0 for occupant in s.engine.occupants)


def test_a_slow_download_holds_up_nobody_else(studio: Callable[..., Studio]) -> None:
    s = studio(adapter_slots=2)
    for i in range(3):
        s.order(f"slow{i}", "slow")
    s.order("quick", "a1", steps=2)
    s.run(1)
    assert list(s.outcomes) == ["quick"]
    s.adapters.is_downloaded.set()


def test_time_that_ends_while_a_picture_is_decoded_is_its_only_outcome(
    studio: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, has_failed, is_decoded = denoise.decode, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        has_failed.wait(60)
        pixels = decode(*arguments)
        is_decoded.set()
        return pixels

    monkeypatch.setattr(denoise, "decode", slow)
    s = studio()
    s.order("late", steps=1, deadline=time.monotonic() + 3)
    s.run(1)
    has_failed.set()
    if s.steps:  # else the machine is so slow that there was nothing to decode
        assert is_decoded.wait(60)
    s.settle()
    outcomes = [event for _, event in s.events if isinstance(event, Drawn | Exception)]
    assert [type(outcome) for outcome in outcomes] == [DeadlineError]


def test_without_background_threads_pictures_are_the_same(studio: Callable[..., Studio]) -> None:
    pictures = []
    for background in (True, False):
        s = studio(background=background)
        s.order("one", seeds=(1, 2, 3), steps=2, previews=True)
        s.run(1)
        drawn = s.outcomes["one"]
        assert isinstance(drawn, Drawn)
        pictures.append(np.stack(drawn.pictures))
    assert np.array_equal(*pictures)
