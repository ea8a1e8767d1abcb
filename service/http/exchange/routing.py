"""The choice of the engine for a request: the one with the least work, or one near it that has the request's adapters."""

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from service.access.cost import pixel_steps_of
from service.wire.schema import ResolvedRequest

_SHARE_OF_REQUEST = 0.5
_SHARE_OF_WORK = 0.25
"""An adapter in a slot only saves loading it, which takes milliseconds. So it decides between engines whose work differs
by no more than half of the request's own, or a quarter of the least: no engine idles while another has an equal request."""


class Candidate(Protocol):
    """An engine that takes requests."""

    @property
    def work(self) -> float:
        """Return the work of its unfinished requests."""

    @property
    def adapters(self) -> Collection[str]:
        """Return names and ``name@version`` of the adapters that its slots hold, or will hold for its requests."""


_Candidate = TypeVar("_Candidate", bound=Candidate)


def route(request: ResolvedRequest, engines: Sequence[_Candidate]) -> _Candidate:
    """Return the engine to send a request to, of at least one."""
    work = {id(engine): engine.work for engine in engines}
    least = min(work.values())
    most = least + max(_SHARE_OF_REQUEST * pixel_steps_of(request), _SHARE_OF_WORK * least)
    names = {choice.name for choice in request.adapters}
    if not names:
        most = least
    near = [engine for engine in engines if work[id(engine)] <= most]
    return min(near, key=lambda engine: (len(names.difference(engine.adapters)), work[id(engine)]))
