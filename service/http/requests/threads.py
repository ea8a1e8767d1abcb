"""Work that the event loop must not do itself: its time grows with what a client sends."""

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.lowlevel import RunVar

_AT_ONCE = 2
"""Threads. More would contend for the interpreter with the event loop, which would get its turn late."""

_T = TypeVar("_T")
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("limiter")


async def run_in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """Return the result of a function that runs in one of a few threads."""
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)
