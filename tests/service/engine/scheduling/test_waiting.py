"""The order of admission: keys by their shares, priorities, and what bounds the wait of the others."""

import itertools
import math

from longcat.sampling.quality import Quality
from service.engine.request_state import RequestState
from service.engine.scheduling.waiting import HIGHER_SHARE, WaitingRequests
from service.observability.timeline import Timeline
from service.wire.messages import GenerateCommand
from service.wire.schema import NORMAL, Priority, ResolvedRequest

EXACT: Quality = "exact"


class Queue:
    """A queue whose images are admitted one by one, as if each found rows."""

    def __init__(self) -> None:
        self.waiting = WaitingRequests()
        self._numbers = itertools.count()

    def add(
        self, key: str | None, *, images: int = 1, side: int = 64, steps: int = 10, share: float = 1.0,
        priority: Priority = NORMAL,
    ) -> None:  # fmt: skip
        request = ResolvedRequest(
            prompt="p", negative_prompt="", width=side, height=side, steps=steps, guidance_scale=1.0, seed=0,
            num_images=images, cfg_renorm=True, rewrite_prompt=False, quality=EXACT, output_format="png",
        )  # fmt: skip
        number = next(self._numbers)
        command = GenerateCommand(
            id=str(number), request_id=str(number), request=request, submitted_at=0.0, deadline=math.inf, key=key,
            share=share, priority=priority,
        )  # fmt: skip
        state = RequestState(command=command, on_event=print, timeline=Timeline(), number=number)
        state.pending.extend(range(images))
        self.waiting.add(state)

    def admit(self) -> RequestState | None:
        """Admit the next image; None if none waits."""
        state = self.waiting.first(lambda _: True)
        if state is not None:
            state.pending.popleft()
            self.waiting.note_admission(state, is_new=True)
        return state

    def keys(self, count: int) -> list[str | None]:
        return [state.key for _ in range(count) if (state := self.admit())]


def test_a_key_that_floods_waits_for_itself() -> None:
    queue = Queue()
    for _ in range(100):
        queue.add("flood")
    assert queue.keys(10) == ["flood"] * 10
    for key in "abc":
        queue.add(key, images=3)
    assert sorted(map(str, queue.keys(4))) == ["a", "b", "c", "flood"]
    assert sorted(map(str, queue.keys(8))) == ["a", "a", "b", "b", "c", "c", "flood", "flood"]
    assert queue.keys(100) == ["flood"] * 87


def test_keys_share_pixel_steps_not_requests() -> None:
    queue = Queue()
    for _ in range(200):
        queue.add("large", side=128, steps=20)  # eight times the pixel-steps
        queue.add("small", images=8)
        queue.add("double", side=128, steps=20, share=2.0)
    admitted = queue.keys(900)
    large, small, double = (admitted.count(key) for key in ("large", "small", "double"))
    assert abs(small - 8 * large) <= 8
    assert abs(double - 2 * large) <= 2


def test_without_keys_requests_are_admitted_in_the_order_of_arrival() -> None:
    queue = Queue()
    for images in (3, 1, 2):
        queue.add(None, images=images, side=64 * images)
    numbers = [state.number for _ in range(6) if (state := queue.admit())]
    assert numbers == [0, 0, 0, 1, 2, 2]


def test_higher_priorities_go_first_and_lower_ones_get_a_quarter() -> None:
    queue = Queue()
    for _ in range(100):
        queue.add("k", priority="low")
        queue.add("k", priority="high")
    admitted = [state.command.priority for _ in range(100) if (state := queue.admit())]
    assert admitted[:4] == ["high", "high", "high", "low"]
    assert admitted.count("low") == 25
    queue.add("late", priority="normal")
    assert queue.keys(4) == ["k", "k", "k", "late"]  # it has not waited before


def test_a_request_that_left_the_queue_has_not_waited_for_the_next() -> None:
    queue = Queue()
    queue.add("left")
    for _ in range(6):
        queue.add("k", priority="high")
    assert queue.keys(2) == ["k", "k"]
    queue.waiting.discard(next(state for state in queue.waiting._states if state.key == "left"))
    queue.admit()
    queue.add("next")
    assert queue.keys(4) == ["k", "k", "k", "next"]


def test_a_large_image_of_low_priority_is_not_passed_by_small_ones_of_its_own() -> None:
    queue = Queue()
    queue.add("k", side=256, priority="low")
    for _ in range(600):
        queue.add("k", priority="low")
        queue.add("k", priority="high")
        queue.add("other", priority="high")
    until = 0
    while (state := queue.admit()) is not None and state.size != (256, 256):
        until += 1
    cost = 16  # in small images
    assert until <= (HIGHER_SHARE * cost + 1) * 4 / 3 + 1  # a quarter of the small ones are of low priority
