"""Commands to an engine process: a failing command does not keep the next one from being carried out."""

import math
import time
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from longcat.storage.interface import Blob
from longcat.storage.opening import open_storage
from service.config import AdapterConfig, ModelConfig
from service.process.engine_commands import EngineCommands
from service.renderer import Renderer
from service.wire.events import ErrorEvent
from service.wire.messages import (
    AdapterAction,
    AdapterCommand,
    AdapterReport,
    CancelCommand,
    Command,
    GenerateCommand,
    Reply,
)
from service.wire.schema import ResolvedRequest
from tests.fuzz.values.adapters import small
from tests.service.adapters.conftest import put

SECONDS = 30


@pytest.fixture
def renderer(flavour: Flavour, model: Components, tmp_path: Path) -> Renderer:
    storage = open_storage((tmp_path / "root").as_uri())
    put(storage, model, tmp_path / "work", "ink", small())
    adapters = AdapterConfig(uri=storage.uri, folder=tmp_path / "downloads", rank=4)
    return Renderer(ModelConfig(flavour="embedded", device="cpu"), flavour, max_rows=2, adapters=adapters)


class Sent:
    """Replies by the id of their command."""

    def __init__(self) -> None:
        self.replies: Queue[tuple[str, Any]] = Queue()

    def __call__(self, uid: str, reply: Any) -> None:
        self.replies.put((uid, reply))

    def next(self) -> tuple[str, Reply]:
        return self.replies.get(timeout=SECONDS)


def action(name: str, action: AdapterAction, *, seconds: float = SECONDS) -> AdapterCommand:
    return AdapterCommand(id=name, action=action, name="ink@1", deadline=time.monotonic() + seconds)


def run(commands: EngineCommands, given: list[Command]) -> None:
    """Read these commands, then simulate the end of the manager process."""
    left = iter(given)

    def receive() -> tuple[float, Command]:
        for command in left:
            return 1.0, command
        raise EOFError

    commands.run(receive)


def test_a_command_that_fails_is_answered_and_the_next_is_carried_out(renderer: Renderer) -> None:
    sent = Sent()
    commands = EngineCommands(renderer, sent, started=0.0)
    broken: Any = GenerateCommand(id="broken", request_id="broken", request=None, submitted_at=1.0, deadline=math.inf)  # type: ignore[arg-type]
    renderer.submit = _fail  # type: ignore[method-assign]
    run(commands, [broken, action("next", AdapterAction.FIND)])
    uid, reply = sent.next()
    assert (uid, isinstance(reply, ErrorEvent)) == ("broken", True)
    uid, reply = sent.next()
    assert uid == "next"
    assert isinstance(reply, AdapterReport)
    assert [status.name for status in reply.adapters] == ["ink"]


def test_lists_do_not_wait_for_a_storage_that_hangs_and_abandoned_commands_are_dropped(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Queue[None]()

    def hang(*_: object, **__: object) -> Blob:
        hanging.get(timeout=SECONDS)
        raise FileNotFoundError

    monkeypatch.setattr(FileStorage, "read", hang)
    sent = Sent()
    commands = EngineCommands(renderer, sent, started=0.0)
    many = [action(f"find {number}", AdapterAction.FIND) for number in range(100)]
    late = [action(f"late {number}", AdapterAction.FIND, seconds=0.0) for number in range(20)]
    run(commands, [*many, *late, action("list", AdapterAction.LIST)])
    uid, reply = sent.next()
    assert (uid, isinstance(reply, AdapterReport)) == ("list", True)
    for _ in many:
        hanging.put(None)
    assert {sent.next()[0] for _ in many} == {command.id for command in many}
    commands._waiting.shutdown()
    assert sent.replies.empty()


@pytest.mark.parametrize(("deadline", "counted"), [(0.0, "timeout"), (math.inf, None)])
def test_a_request_cancelled_after_its_deadline_counts_as_too_long(
    renderer: Renderer, deadline: float, counted: str | None
) -> None:
    finished: list[str | None] = []
    renderer.observe = lambda _command, _timeline, last: finished.append(
        last.error.code if isinstance(last, ErrorEvent) else None
    )
    request = ResolvedRequest(
        prompt="一只猫", negative_prompt="", width=64, height=64, steps=4, guidance_scale=2.0, seed=1, num_images=1,
        cfg_renorm=True, rewrite_prompt=False, output_format="png",
    )  # fmt: skip
    commands: list[Command] = [
        GenerateCommand(id="late", request_id="late", request=request, submitted_at=1.0, deadline=deadline),
        CancelCommand(id="late"),
        CancelCommand(id="unknown"),
    ]
    run(EngineCommands(renderer, Sent(), started=0.0), commands)
    assert finished == [counted]


def _fail(*_: object) -> None:
    raise RuntimeError("can't start new thread")
