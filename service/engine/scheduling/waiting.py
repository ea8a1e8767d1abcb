"""The requests with images to admit, and whose image is next."""

from collections.abc import Callable

from service.engine.request_state import RequestState, Size
from service.engine.scheduling.fair_shares import FairShares

HIGHER_SHARE = 3
"""Pixel-steps that may be admitted before a waiting image of lower priority, for each of its own."""

Line = tuple[int, Size]
"""Rank and size of images that wait for the same rows."""


class WaitingRequests:
    """The queue. Images of the highest priority are next; of these, one of the key with the least start tag.

    Keys share the admitted pixel-steps by ``FairShares``; parked images of a priority go before its other ones. A waiting
    image goes before those of higher priority once ``HIGHER_SHARE`` times its pixel-steps of them have been admitted since
    the last image of its priority and size, which therefore get a quarter of the pixel-steps.
    """

    def __init__(self) -> None:
        self._states: list[RequestState] = []
        self._shares = FairShares()
        self._passed: dict[Line, int] = {}
        """Pixel-steps of higher priority that were admitted while an image of this line waited."""

    def add(self, state: RequestState) -> None:
        """Add a request with images to admit, unless it is there."""
        if state not in self._states:
            self._states.append(state)

    def discard(self, state: RequestState) -> None:
        """Remove a request, if it is there."""
        if state in self._states:
            self._states.remove(state)

    def first(self, is_possible: Callable[[RequestState], bool]) -> RequestState | None:
        """Return the request whose image is next, of those for which ``is_possible`` returns True."""
        heads: dict[Line, tuple[tuple[bool, float, int], RequestState]] = {}
        for state in filter(is_possible, self._states):
            place = (not state.parked, self._shares.start(state.key), state.number)
            head = heads.get(line_of(state))
            if head is None or place < head[0]:
                heads[line_of(state)] = (place, state)
        found = min(heads.values(), default=None, key=lambda h: (not self._was_passed(h[1]), -h[1].rank, h[0]))
        return None if found is None else found[1]

    def note_admission(self, state: RequestState, *, is_new: bool) -> None:
        """Account for an image of a request that is admitted. ``is_new``: for the first time, not after parking."""
        cost, line = state.pixel_steps_per_image, line_of(state)
        if is_new:
            self._shares.charge(state.key, cost, share=state.command.share)
        others = {line_of(waiting) for waiting in self._states} - {line}
        self._passed = {other: self._passed.get(other, 0) + (cost if other[0] < state.rank else 0) for other in others}
        if not state.waiting_images:
            self.discard(state)

    def _was_passed(self, state: RequestState) -> bool:
        return self._passed.get(line_of(state), 0) >= HIGHER_SHARE * state.pixel_steps_per_image


def line_of(state: RequestState) -> Line:
    """Return the line in which a request waits."""
    return state.rank, state.size
