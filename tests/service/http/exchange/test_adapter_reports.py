"""The reports of two engines as one: a new version counts once all engines serve it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from service.http.exchange.adapter_reports import merged
from service.wire.messages import AdapterReport, AdapterState, AdapterStatus, SlotStatus


def status(name: str, version: int | None, **fields: Any) -> AdapterStatus:
    defaults: dict[str, Any] = {
        "state": AdapterState.READY, "desired_version": version, "verified": False, "sha256": "0", "rank": 4, "modules": 2,
        "trigger_words": (), "created": datetime(2026, 1, 1, tzinfo=UTC), "pinned": False, "reason": None,
        "last_used_seconds_ago": None, "requests": 0,
    }  # fmt: skip
    return AdapterStatus(name=name, version=version, **defaults | fields)


def report(device: str, *statuses: AdapterStatus, reachable: bool | None = True) -> AdapterReport:
    used = (SlotStatus(adapter="ink@1", device=device, pictures=1),)
    return AdapterReport(storage="file:///a", reachable=reachable, slots=4, slots_used=used, adapters=statuses)


def test_slots_are_those_of_all_devices() -> None:
    both = merged([report("cuda:0"), report("cuda:1")])
    assert both.slots == 8
    assert [slot.device for slot in both.slots_used] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(True, True, True), (True, None, None), (None, False, False), (True, False, False)],
)
def test_storage_is_reachable_if_all_engines_reach_it(
    first: bool | None, second: bool | None, expected: bool | None
) -> None:
    assert merged([report("a", reachable=first), report("b", reachable=second)]).reachable is expected


def test_a_name_has_the_state_of_the_engine_that_is_behind() -> None:
    new = status("ink", 2, requests=3, last_used_seconds_ago=1.0, pinned=True, verified=True)
    old = status("ink", 1, requests=2, last_used_seconds_ago=5.0, state=AdapterState.OUTDATED)
    gone = status("ink", None, state=AdapterState.UNLOADED)
    only = status("oil", 7)
    both = merged([report("a", only, new), report("b", old)])
    assert [one.name for one in both.adapters] == ["ink", "oil"]
    ink = both.adapters[0]
    assert (ink.version, ink.state, ink.requests, ink.last_used_seconds_ago) == (1, AdapterState.OUTDATED, 5, 1.0)
    assert (ink.pinned, ink.verified) == (False, False)
    assert merged([report("a", new), report("b", gone)]).adapters[0].state is AdapterState.UNLOADED
    assert merged([report("a", new)]).adapters == (new,)
