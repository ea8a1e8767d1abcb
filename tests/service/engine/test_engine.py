"""The step loop: fairness between requests, failures of one request, and requests that wait."""

import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longcat.errors import DeadlineError, EngineError
from longcat.model.loading import Components
from longcat.sampling import denoise
from service.wire.events import ErrorEvent, ResultEvent, StepEvent
from tests.service.engine.harness import EngineHarness


@pytest.fixture
def harness(model: Components) -> Iterator[Callable[..., EngineHarness]]:
    return lambda **options: EngineHarness(model, **options)


def begin_together(harness: EngineHarness, *names: str) -> None:
    """Step until each of these requests has made a step."""
    deadline = time.monotonic() + 120
    while not set(names) <= set(harness.steps):
        harness.engine.step(0.05)
        assert time.monotonic() < deadline


def test_sizes_alternate_and_a_new_request_joins_at_the_next_step(harness: Callable[..., EngineHarness]) -> None:
    s = harness()
    s.submit("small", steps=12)
    s.submit("wide", steps=12, width=128)
    begin_together(s, "small", "wide")
    s.submit("late", steps=2)
    s.settle()
    made = len(s.steps)
    s.run(3)
    after = s.steps[made:]
    assert after.index("late") <= 2  # one forward of the other size at most
    alternating = [name for name in s.steps[1:] if name != "late"]
    both = alternating[: 2 * min(alternating.count("small"), alternating.count("wide")) - 4]
    assert all(a != b for a, b in itertools.pairwise(both[2:])), both


def test_a_request_that_waits_for_slots_is_not_starved(
    harness: Callable[..., EngineHarness],
) -> None:
    s = harness(adapter_slots=2, max_rows=8)
    s.submit("first", "a0", "a1", steps=6)
    begin_together(s, "first")
    s.submit("waiting", "a2", "a3", steps=2)
    s.settle()
    for i in range(4):  # their adapters are loaded, so each could be admitted at once
        s.submit(f"later{i}", "a0", "a1", steps=6)
    s.submit("plain", steps=3)
    s.settle()
    s.run(7)
    finished = list(s.outcomes)
    assert finished.index("waiting") < min(finished.index(f"later{i}") for i in range(4))
    assert finished.index("plain") < finished.index("waiting")  # it needs no slot: it may pass
    assert s.engine.slot_table.evictions >= 2
    assert all(isinstance(event, ResultEvent) for event in s.outcomes.values())


def test_pictures_beyond_the_rows_follow_in_order_and_large_ones_get_fewer_rows(
    harness: Callable[..., EngineHarness],
) -> None:
    s = harness(max_rows=4)
    s.submit("many", seed=0, num_images=5, steps=2)
    s.settle()
    s.submit("next", steps=2)
    s.submit("large", steps=1, num_images=2, width=256, height=256)
    s.run(3)
    assert [Image.open(io.BytesIO(content)).size for content in s.pictures("many")] == [(64, 64)] * 5
    images = [event.image for name, event in s.events if name == "large" and isinstance(event, StepEvent)]
    assert images == [0, 1]
    assert s.steps.index("next") > 4  # after the first four pictures of many have begun


def test_a_failing_step_fails_one_request_alone(
    harness: Callable[..., EngineHarness], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s = harness()
    real = denoise.advance

    def breaks(forward: object, pictures: list[denoise.Denoising], *others: object, **options: object) -> int:
        if any(picture.steps == 5 and picture.step == 2 for picture in pictures):
            raise RuntimeError("out of memory")
        return real(forward, pictures, *others, **options)

    s.submit("whole", steps=6)
    s.run(1)
    expected = s.pictures("whole")
    s.events.clear()
    monkeypatch.setattr(denoise, "advance", breaks)
    s.submit("whole", steps=6)
    s.submit("broken", steps=5, num_images=2)
    s.run(2)
    (problem,) = s.error("broken").problems
    assert (problem.code, problem.problem) == ("engine_failed", "RuntimeError: out of memory")
    assert s.pictures("whole") == expected
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "request broken failed"


def test_a_picture_that_cannot_be_decoded_or_an_adapter_that_is_not_there_fails_alone(
    harness: Callable[..., EngineHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = harness(adapter_slots=2)
    real = denoise.decode

    def breaks(vae: object, picture: denoise.Denoising) -> np.ndarray:
        if picture.steps == 3:
            raise EngineError("no_memory", "no memory to decode")
        return real(vae, picture)

    monkeypatch.setattr(denoise, "decode", breaks)
    for name, adapters, steps in (("undecodable", (), 3), ("unknown", ("nobody",), 2), ("good", ("a0",), 2)):
        s.submit(name, *adapters, steps=steps)
    s.run(3)
    assert (s.error("undecodable").code, s.error("unknown").code) == ("engine_error", "adapter_not_found")
    assert s.pictures("good")
    assert s.engine.active_rows == s.engine.queued == 0
    assert all(adapter.pictures == 0 for adapter in s.engine.slot_table.loaded)


def test_a_slow_download_delays_no_other_request(harness: Callable[..., EngineHarness]) -> None:
    s = harness(adapter_slots=2)
    for i in range(3):
        s.submit(f"slow{i}", "slow")
    s.submit("quick", "a1", steps=2)
    s.run(1)
    assert list(s.outcomes) == ["quick"]
    s.adapters.is_downloaded.set()


def test_time_that_ends_while_a_picture_is_decoded_is_its_only_outcome(
    harness: Callable[..., EngineHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, has_failed, is_decoded = denoise.decode, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        has_failed.wait(60)
        pixels = decode(*arguments)
        is_decoded.set()
        return pixels

    monkeypatch.setattr(denoise, "decode", slow)
    s = harness()
    s.submit("late", steps=1, deadline=time.monotonic() + 3)
    s.run(1)
    has_failed.set()
    if s.steps:  # otherwise the machine was too slow to have anything to decode
        assert is_decoded.wait(60)
    s.settle()
    (outcome,) = [event for _, event in s.events if isinstance(event, ResultEvent | ErrorEvent)]
    assert isinstance(outcome, ErrorEvent)
    assert isinstance(outcome.error, DeadlineError)


def test_without_background_threads_pictures_are_the_same(harness: Callable[..., EngineHarness]) -> None:
    pictures = []
    for background in (True, False):
        s = harness(background=background)
        s.submit("one", num_images=3, steps=2, previews=1)
        s.run(1)
        pictures.append(s.pictures("one"))
    assert pictures[0] == pictures[1]


def recorded(compute: Callable[..., Any], threads: set[threading.Thread]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        threads.add(threading.current_thread())
        return compute(*arguments)

    return run


def test_the_step_loop_does_not_compute_what_an_adapter_changes_before_the_steps(
    harness: Callable[..., EngineHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = []
    for background in (True, False):
        s = harness(background=background, adapter_slots=1)
        threads = set[threading.Thread]()
        for name in ("_modulate", "context"):
            monkeypatch.setattr(s.engine.forward, name, recorded(getattr(s.engine.forward, name), threads))
        s.submit("adapted", "whole", steps=2)
        s.run(1)
        pictures.append(s.pictures("adapted"))
        assert (threading.current_thread() in threads) != background
    s.submit("plain", steps=2)
    s.run(2)
    assert pictures[0] == pictures[1] != s.pictures("plain")
