"""Threads for work whose time grows with a request's size, which would block the event loop."""

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.lowlevel import RunVar

_AT_ONCE = 2
"""Number of threads. More would contend with the event loop for the interpreter lock."""

_T = TypeVar("_T")
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("limiter")


async def run_in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """Return the result of a function that runs in one of a few threads."""
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)
