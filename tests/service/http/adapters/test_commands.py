"""Commands about adapters to several engines: which are sent to which, and what becomes of their replies."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from longcat.errors import LithographError, UnknownAdapterError
from longcat.model.flavour import Flavour
from longcat.model.tokenizer import load_tokenizer, plain_ids
from service.access.caller import ANYONE
from service.config import ModelConfig, ServiceConfig
from service.http.adapters import AdapterCommands
from service.http.admission import Admission
from service.wire.errors import EngineEndedError, EngineStalledError, NotReadyError
from service.wire.events import ErrorEvent
from service.wire.messages import AdapterAction, AdapterCommand, AdapterReport, Command, Reply, SlotStatus
from service.wire.state import ServicePhase
from tests.service.http.exchange.engines import Engines


class Replying(Engines):
    """Engines that reply to commands about adapters with an error of theirs, or a report."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(number)
        self.errors: dict[int, LithographError] = {}
        self.actions: list[tuple[int, AdapterAction]] = []

        def queue(engine: int) -> Callable[[tuple[float, Command]], None]:
            def put(item: tuple[float, Command]) -> None:  # in a thread
                command = item[1]
                assert isinstance(command, AdapterCommand)
                self.actions.append((engine, command.action))
                if command.id in self.mailboxes:
                    loop.call_soon_threadsafe(self.mailboxes[command.id].put, self._reply(engine))

            return put

        self.exchange.connect([queue(i) for i in range(number)])

    def _reply(self, engine: int) -> Reply:
        if (error := self.errors.get(engine)) is not None:
            return ErrorEvent(error)
        used = (SlotStatus(adapter="ink@1", device=f"cpu:{engine}", pictures=0),)
        return AdapterReport(storage="file:///a", reachable=True, slots=4, slots_used=used, adapters=())


def unknown() -> UnknownAdapterError:
    return UnknownAdapterError("adapter_unknown", "does not exist", remedy="list them", field="adapter", value="ink")


def run(flavour: Flavour, work: Callable[[Replying, AdapterCommands], Awaitable[None]]) -> None:
    """Run an asynchronous test with two engines."""

    async def main() -> None:
        engines = Replying(2, asyncio.get_running_loop())
        config = ServiceConfig(model=ModelConfig())
        tokenize = plain_ids(load_tokenizer(flavour.folder))
        admission = Admission(config, flavour, config.limits(flavour), tokenize, engines.exchange, engines.state)
        await work(engines, AdapterCommands(admission, "request", ANYONE))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("action", "sent"),
    [
        (AdapterAction.PIN, [(0, AdapterAction.PIN), (1, AdapterAction.PIN)]),
        (AdapterAction.LIST, [(0, AdapterAction.LIST), (1, AdapterAction.LIST)]),
        (AdapterAction.FIND, [(0, AdapterAction.FIND)]),
        (AdapterAction.IMPORT, [(0, AdapterAction.IMPORT), (1, AdapterAction.LOAD)]),
        (AdapterAction.REMOVE, [(0, AdapterAction.REMOVE), (1, AdapterAction.POLL)]),
    ],
)
def test_storage_is_changed_once_and_every_engine_follows(
    flavour: Flavour, action: AdapterAction, sent: list[tuple[int, AdapterAction]]
) -> None:
    async def work(engines: Replying, commands: AdapterCommands) -> None:
        report = await commands.send(action, "ink")
        assert sorted(engines.actions) == sent
        assert [slot.device for slot in report.slots_used] == [f"cpu:{engine}" for engine, _ in sent]

    run(flavour, work)


def test_what_one_engine_refuses_is_refused_and_not_repeated(flavour: Flavour) -> None:
    async def work(engines: Replying, commands: AdapterCommands) -> None:
        engines.errors[1] = unknown()
        with pytest.raises(UnknownAdapterError) as caught:
            await commands.send(AdapterAction.PIN, "ink", field="lora_name")
        assert caught.value.problems[0].field == "lora_name"
        assert engines.exchange.changes.commands() == []
        engines.errors[0] = unknown()
        with pytest.raises(UnknownAdapterError):
            await commands.send(AdapterAction.REMOVE, "ink")
        assert (1, AdapterAction.POLL) not in engines.actions

    run(flavour, work)


def test_an_engine_that_cannot_reply_does_not_matter_while_another_can(flavour: Flavour) -> None:
    async def work(engines: Replying, commands: AdapterCommands) -> None:
        engines.errors[0] = EngineEndedError()
        assert (await commands.send(AdapterAction.PIN, "ink")).slots == 4
        assert [command.name for command in engines.exchange.changes.commands()] == ["ink"]
        engines.errors[1] = EngineEndedError()
        with pytest.raises(EngineEndedError):
            await commands.report()

        engines.errors.clear()
        first, second = engines.exchange.engines
        first._stall_seconds = -1.0
        assert (await commands.send(AdapterAction.REMOVE, "ink")).slots_used[0].device == "cpu:1"
        deadline = time.monotonic() + 30
        while (0, AdapterAction.POLL) not in engines.actions:  # for the case that it continues
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        second._stall_seconds = -1.0
        with pytest.raises(EngineStalledError):
            await commands.report()
        for engine in engines.state.engines:
            engine.begin(ServicePhase.LOADING)
        with pytest.raises(NotReadyError):
            await commands.report()

    run(flavour, work)
