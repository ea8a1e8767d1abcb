"""Timestamps of a request, and the durations counted from them."""

import time

import httpx
import pytest

from service.observability.metrics import Bounded
from service.observability.timeline import Phase, Timeline
from tests.service.http.replies import APPLE, metric


def test_pictures_that_are_denoised_side_by_side_do_not_count_twice() -> None:
    timeline = Timeline()
    for picture, (begin, end) in enumerate([(1.0, 4.0), (2.0, 5.0)]):
        timeline.begin(Phase.DENOISE, begin, picture)
        timeline.end(Phase.DENOISE, end, picture)
        timeline.begin(Phase.DECODE, end, picture)
        timeline.end(Phase.DECODE, end + 1, picture)
    assert timeline.seconds() == {Phase.DENOISE: 4.0, Phase.DECODE: 2.0}


def test_waiting_twice_is_one_phase_and_closing_ends_what_is_open() -> None:
    timeline = Timeline()
    timeline.begin(Phase.QUEUE, 0.0)
    timeline.end(Phase.QUEUE, 1.0)
    timeline.begin(Phase.TEXT, 1.0)
    timeline.end(Phase.TEXT, 1.5)
    timeline.begin(Phase.QUEUE, 1.5)
    timeline.close(4.0)
    timeline.end(Phase.QUEUE, 9.0)  # a thread that was notified late
    assert timeline.seconds() == {Phase.QUEUE: 3.5, Phase.TEXT: 0.5}


def test_labels_with_values_of_users_are_bounded() -> None:
    bounded = Bounded(2)
    assert [bounded("128x128", name) for name in ("a", "b", "c", "a")] == [
        ("128x128", "a"), ("128x128", "b"), ("(other)", "(other)"), ("128x128", "a"),
    ]  # fmt: skip


def test_phases_are_counted_by_what_a_request_came_to(client: httpx.Client) -> None:
    def counted(**labels: str) -> float:
        return metric(client, "lithograph_phase_seconds_count", **labels)

    outcomes = ("drawn", "timeout", "cancelled")
    before = {outcome: counted(phase="queue", outcome=outcome) for outcome in outcomes}
    rejected = metric(client, "lithograph_rejected_requests_total", reason="invalid_request")
    wide = metric(client, "lithograph_pictures_total", size="192x128", adapter="(none)")
    long = APPLE | {"steps": 90, "num_images": 8}
    assert client.post("/generate", json=long | {"timeout_seconds": 0.5}).status_code == 504
    with pytest.raises(httpx.ReadTimeout):
        client.post("/generate", json=long, timeout=1.5)
    assert client.post("/generate", json=APPLE | {"steps": 0}).status_code == 422
    assert client.post("/generate", json=APPLE | {"width": 192, "height": 128, "num_images": 2}).status_code == 200
    deadline = time.monotonic() + 60
    while {outcome for outcome in outcomes if counted(phase="queue", outcome=outcome) > before[outcome]} != {*outcomes}:
        assert time.monotonic() < deadline  # a cancelled request ends after its client has gone
        time.sleep(0.1)
    assert metric(client, "lithograph_rejected_requests_total", reason="invalid_request") == rejected + 1
    assert metric(client, "lithograph_pictures_total", size="192x128", adapter="(none)") == wide + 2
    assert metric(client, "lithograph_device_memory_bytes", kind="used") > 2**27
