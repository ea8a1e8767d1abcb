"""The limits of keys: requests at a time, and pixel-steps a minute. Kept in the memory of the HTTP process."""

import math
import time
from dataclasses import dataclass, field

from service.access.allowance import Allowance
from service.access.caller import Caller
from service.wire.errors import UnavailableError

_MINUTE_SECONDS = 60


class RateLimitError(UnavailableError):
    """A key has reached one of its limits; the same request may succeed later."""

    code = "rate_limit_exceeded"


@dataclass
class _Meter:
    """The use of one key."""

    under_way: dict[str, float] = field(default_factory=dict)
    """Deadlines of its requests, by id. A request that was never sent counts until then."""
    balance: float = math.inf
    """Pixel-steps that may be admitted now: a token bucket that holds a minute's. Below 0 after a request of more."""
    filled_at: float = 0.0


class KeyMeters:
    """The use of all keys that have limits. Called in the event loop."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def begin(self, request_id: str, caller: Caller, *, pixel_steps: int, deadline: float, wait_seconds: int) -> None:
        """Count a request that is about to be sent. Raises ``RateLimitError``, and counts nothing, above a limit.

        ``wait_seconds``: the estimated time until requests under way are finished. A request of more pixel-steps than a
        minute's is admitted once a whole minute's are unused.
        """
        allowance, name = caller.allowance, caller.name
        if name is None or (allowance.requests is None and allowance.pixel_steps_per_minute is None):
            return
        now, meter = time.monotonic(), self._meters.setdefault(name, _Meter())
        meter.under_way = {each: until for each, until in meter.under_way.items() if until > now}
        if allowance.requests is not None and len(meter.under_way) >= allowance.requests:
            raise RateLimitError(
                "key_requests_at_a_time",
                "{requests} requests of the API key {key} are under way, the most that it may have",
                remedy="send the request again once one of them is finished",
                requests=len(meter.under_way),
                key=name,
            ).after(wait_seconds)
        _spend(meter, allowance, pixel_steps, now, name)
        meter.under_way[request_id] = deadline

    def end(self, request_id: str, key: str | None) -> None:
        """Count a request of a key no longer as one under way."""
        if key is not None and (meter := self._meters.get(key)) is not None:
            meter.under_way.pop(request_id, None)

    def give_back(self, key: str | None, pixel_steps: int) -> None:
        """Give back pixel-steps of a request that failed, or needed fewer."""
        if key is not None and (meter := self._meters.get(key)) is not None:
            meter.balance += pixel_steps


def _spend(meter: _Meter, allowance: Allowance, pixel_steps: int, now: float, name: str) -> None:
    """Take pixel-steps from a key's balance. Raises ``RateLimitError`` if it is too low."""
    most = allowance.pixel_steps_per_minute
    if most is None:
        return
    meter.balance = min(most, meter.balance + (now - meter.filled_at) * most / _MINUTE_SECONDS)
    meter.filled_at = now
    if (missing := min(pixel_steps, most) - meter.balance) > 0:
        seconds = math.ceil(missing * _MINUTE_SECONDS / most)
        raise RateLimitError(
            "key_pixel_steps_per_minute",
            "the request costs {pixel_steps} pixel-steps, and the API key {key} may use {most} a minute",
            remedy="send the request again in {seconds} s",
            pixel_steps=pixel_steps,
            key=name,
            most=most,
            seconds=seconds,
        ).after(seconds)
    meter.balance -= pixel_steps
