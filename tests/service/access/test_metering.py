"""Limits of keys: requests at a time, and pixel-steps a minute."""

import pytest

from service.access import metering
from service.access.allowance import Allowance
from service.access.caller import ANYONE, Caller, ForbiddenError, Role
from service.access.metering import KeyMeters, RateLimitError
from service.wire.schema import PRIORITIES, Priority


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metering, "time", clock)
    return clock


def caller(**limits: int) -> Caller:
    return Caller(name="k", roles=frozenset({Role.GENERATE}), allowance=Allowance(**limits))


class Sender:
    """Sends requests of one key."""

    def __init__(self, clock: Clock, **limits: int) -> None:
        self.meters, self.clock, self.caller = KeyMeters(), clock, caller(**limits)
        self.sent = 0

    def send(self, pixel_steps: int = 1, seconds: float = 100.0) -> str:
        """Count a request; its id."""
        self.sent += 1
        self.meters.begin(
            str(self.sent), self.caller, pixel_steps=pixel_steps, deadline=self.clock.now + seconds, wait_seconds=7
        )
        return str(self.sent)

    def refused(self, pixel_steps: int = 1) -> RateLimitError:
        with pytest.raises(RateLimitError) as raised:
            self.send(pixel_steps)
        return raised.value


def test_requests_at_a_time(clock: Clock) -> None:
    s = Sender(clock, requests=2)
    first, _ = s.send(), s.send()
    error = s.refused()
    assert (error.problems[0].code, error.retry_after_seconds) == ("key_requests_at_a_time", 7)
    s.meters.end(first, "k")
    s.meters.end(first, "k")  # twice is once
    s.send()
    s.refused()
    clock.now += 101  # requests that were never sent, such as of a client that was gone
    s.send()


def test_pixel_steps_a_minute_fill_again_evenly(clock: Clock) -> None:
    s = Sender(clock, pixel_steps_per_minute=600)
    s.send(500)
    error = s.refused(200)
    assert error.problems[0].code == "key_pixel_steps_per_minute"
    assert error.retry_after_seconds == 10  # 100 are missing, and 10 come a second
    clock.now += 9.9
    s.refused(200)
    clock.now += 0.1
    s.send(200)
    assert s.refused(1).retry_after_seconds == 1
    clock.now += 3600
    s.send(600)  # no more than a minute's is saved up
    s.refused(1)


def test_a_request_of_more_than_a_minutes_waits_for_a_whole_minute_and_is_paid_off(clock: Clock) -> None:
    s = Sender(clock, pixel_steps_per_minute=600)
    s.send(1200)
    assert s.refused(1).retry_after_seconds == 61
    clock.now += 61
    s.send(1)


def test_what_was_not_used_is_given_back_and_a_refused_request_costs_nothing(clock: Clock) -> None:
    s = Sender(clock, pixel_steps_per_minute=600, requests=1)
    request = s.send(600)
    s.refused(600)
    s.meters.end(request, "k")
    s.meters.give_back("k", 400)
    s.send(400)


def test_keys_without_limits_and_callers_without_keys_are_not_metered(clock: Clock) -> None:
    meters = KeyMeters()
    for number in range(100):
        for each in (ANYONE, caller()):
            meters.begin(str(number), each, pixel_steps=10**12, deadline=clock.now + 9, wait_seconds=1)
    meters.end("1", None)
    meters.give_back("k", 5)
    assert not meters._meters


@pytest.mark.parametrize("highest", PRIORITIES)
def test_a_key_allows_priorities_up_to_its_highest(highest: Priority) -> None:
    key = Caller(name="k", roles=frozenset({Role.GENERATE}), allowance=Allowance(priority=highest))
    allowed = PRIORITIES[: PRIORITIES.index(highest) + 1]
    for asked in PRIORITIES:
        if asked in allowed:
            assert key.priority_of(asked) == asked
        else:
            with pytest.raises(ForbiddenError) as raised:
                key.priority_of(asked)
            assert raised.value.problems[0].field == "priority"
    assert key.priority_of(None) == ("low" if highest == "low" else "normal")
    assert ANYONE.priority_of("high") == "high"
