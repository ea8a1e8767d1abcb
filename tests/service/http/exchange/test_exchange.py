"""Several engines behind one exchange, with queues in place of their processes."""

import asyncio
import contextlib
import time
from typing import Any

import pytest

from service.http.exchange.exchange import Exchange
from service.http.exchange.mailboxes import Mailbox
from service.observability import metrics
from service.wire.errors import EngineEndedError
from service.wire.events import ErrorEvent, ResultEvent, StepEvent
from service.wire.messages import (
    AdapterAction,
    AdapterCommand,
    CancelCommand,
    Heartbeat,
)
from service.wire.schema import AdapterChoice, Timings
from service.wire.state import ServicePhase
from tests.service.http.exchange.engines import Engines, command_of, resolved


@pytest.fixture
def engines() -> Engines:
    return Engines(2)


def finished(*, steps: int, denoise_seconds: float) -> ResultEvent:
    timings = {f"{phase}_seconds": 0.0 for phase in ("queue", "text", "decode", "encode")}
    return ResultEvent(
        request_id="a", model_hash="", prompt="", request=resolved(steps=steps), adapters=(), media_type="image/png",
        timings=Timings(**timings, denoise_seconds=denoise_seconds), images=(),
    )  # fmt: skip


def heartbeat(*adapters: str, **steps_left: int) -> Heartbeat:
    return Heartbeat(step_seconds=0.1, steps_left=steps_left, adapters=adapters)


async def sent(exchange: Exchange, stack: contextlib.AsyncExitStack, name: str, **fields: Any) -> Mailbox:
    return await stack.enter_async_context(exchange.send(command_of(name, **fields)))


def test_requests_go_to_the_engine_with_less_work_and_adapters_to_where_they_are(engines: Engines) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await sent(engines.exchange, stack, "large", steps=8)
            await sent(engines.exchange, stack, "small", steps=2)
            await sent(engines.exchange, stack, "small too", steps=2)
            engines.put(0, heartbeat("ink@3", large=1))  # of 8 steps
            await sent(engines.exchange, stack, "after progress", steps=2)

    asyncio.run(run())
    assert engines.requests(0) == ["large", "after progress"]
    assert engines.requests(1) == ["small", "small too"]


def test_the_wait_is_that_of_the_steps_that_are_left(engines: Engines) -> None:
    waits = []

    async def run() -> None:
        exchange = engines.exchange
        exchange.record_speed(finished(steps=4, denoise_seconds=8.0))
        async with contextlib.AsyncExitStack() as stack:
            await sent(exchange, stack, "turbo", steps=16)
            await sent(exchange, stack, "plain", steps=16, num_images=2)
            waits.append(exchange.wait_seconds)
            engines.put(0, heartbeat(turbo=3))  # of the 4 that its adapter declares
            waits.append(exchange.wait_seconds)
            engines.put(1, heartbeat(plain=10))
            waits.append(exchange.wait_seconds)
        waits.append(exchange.wait_seconds)

    asyncio.run(run())
    assert waits == [16 + 32, 3 + 32, 3 + 10, 1]  # two seconds a step, two engines


@pytest.mark.parametrize("name", ["ink", "ink@3"])
def test_an_idle_engine_with_the_adapter_is_preferred(engines: Engines, name: str) -> None:
    async def run() -> None:
        engines.put(1, heartbeat("ink@3"))
        for number in range(3):
            async with contextlib.AsyncExitStack() as stack:
                choice = AdapterChoice(name=name, scale=1.0)
                await sent(engines.exchange, stack, f"request {number}", adapters=(choice,))

    asyncio.run(run())
    assert (len(engines.requests(0)), len(engines.requests(1))) == (0, 3)


def test_the_end_of_an_engine_ends_its_own_requests_alone_and_no_more_go_to_it(engines: Engines) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            first = await sent(engines.exchange, stack, "first")
            second = await sent(engines.exchange, stack, "second")
            engines.state.engines[0].begin(ServicePhase.RESTARTING)
            engines.put(0, None)
            ended = await first.next()
            assert isinstance(ended, ErrorEvent)
            assert isinstance(ended.error, EngineEndedError)
            step = StepEvent(image=0, step=1, steps=4)
            second.put(step)
            assert await second.next() == step
            assert engines.state.phase is ServicePhase.READY
            await sent(engines.exchange, stack, "third")
            engines.state.engines[1].begin(ServicePhase.RESTARTING)
            lost = await sent(engines.exchange, stack, "fourth")
            assert isinstance(await lost.next(), ErrorEvent)

    asyncio.run(run())
    assert engines.requests(0) == ["first"]
    assert engines.requests(1) == ["second", "third"]


def test_a_cancelled_request_is_cancelled_at_its_own_engine(engines: Engines) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await sent(engines.exchange, stack, "first")
            async with contextlib.AsyncExitStack() as inner:
                await sent(engines.exchange, inner, "second")
            deadline = time.monotonic() + 30
            while len(engines.sent[1]) < 2:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert engines.sent[1][-1] == CancelCommand(id="second")


def test_an_engine_that_hangs_gets_no_requests_unless_all_hang(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        first, second = engines.exchange.engines
        monkeypatch.setattr(first, "_stall_seconds", -1.0)
        assert first.stall() is not None
        assert engines.exchange.stall() is None
        async with contextlib.AsyncExitStack() as stack:
            await sent(engines.exchange, stack, "first")
            await sent(engines.exchange, stack, "second")
        monkeypatch.setattr(second, "_stall_seconds", -1.0)
        assert engines.exchange.stall() is not None

    asyncio.run(run())
    assert engines.requests(1) == ["first", "second"]


def test_a_new_engine_process_gets_the_changes_of_adapters_before_its_first_request(engines: Engines) -> None:
    changes = engines.exchange.changes
    for action, name in (
        (AdapterAction.PIN, "ink"),
        (AdapterAction.PIN, "oil"),
        (AdapterAction.UNPIN, "oil"),
        (AdapterAction.UNLOAD, "old"),
        (AdapterAction.UNLOAD, "back"),
        (AdapterAction.LOAD, "back@2"),
        (AdapterAction.PIN, "gone"),
        (AdapterAction.REMOVE, "gone"),
    ):
        changes.record(action, name)

    async def run(*names: str) -> None:
        for name in names:
            async with engines.exchange.send(command_of(name)) as mailbox:
                mailbox.is_over = True

    asyncio.run(run("first", "second"))
    engines.state.engines[0].count_process()
    asyncio.run(run("third"))
    made = [c.name if isinstance(c, AdapterCommand) else c.id for c in engines.sent[0]]
    assert made == ["ink", "old", "first", "second", "ink", "old", "third"]
    actions = [c.action for c in engines.sent[0] if isinstance(c, AdapterCommand)]
    assert actions == [AdapterAction.PIN, AdapterAction.UNLOAD] * 2


def test_heartbeats_are_counted_by_device(engines: Engines) -> None:
    before = time.time()
    engines.put(1, heartbeat())
    values = {
        sample.labels["device"]: sample.value for family in metrics.HEARTBEAT.collect() for sample in family.samples
    }
    assert values["cpu:1"] >= before
