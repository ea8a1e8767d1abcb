"""Streams of events."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Message

from longcat.errors import DeadlineError
from service.http import pictures
from service.http.edge.context import RequestContext
from service.observability import metrics
from service.wire.events import ErrorEvent, Event, StepEvent

STEP = StepEvent(image=0, step=1, steps=2)


@pytest.mark.parametrize("ends_with_error", [False, True])
def test_a_silent_stream_sends_comments_until_its_events_come(
    monkeypatch: pytest.MonkeyPatch, ends_with_error: bool
) -> None:
    monkeypatch.setattr(pictures, "SILENCE_SECONDS", 0.05)
    app = FastAPI()
    app.add_middleware(RequestContext, counted=())

    async def events() -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.18)
        yield STEP
        await asyncio.sleep(0.08)
        yield ErrorEvent(DeadlineError()) if ends_with_error else STEP

    @app.get("/")
    async def stream(request: Request) -> Response:
        return await pictures.reply_with_events(request, events(), lambda event: [type(event).__name__.encode()])

    before, between, end = TestClient(app).get("/").content.replace(b"ErrorEvent", b"StepEvent").split(b"StepEvent")
    assert before == b": ping\n\n" * 3
    assert between == b": ping\n\n"
    assert end == b""


def test_no_proxy_that_waits_a_minute_sees_a_silent_stream() -> None:
    assert pictures.SILENCE_SECONDS <= 15


@pytest.mark.parametrize(("events", "status"), [([STEP, ErrorEvent(DeadlineError())], 504), ([STEP, STEP], 499)])
def test_a_client_that_closes_after_the_last_event_is_counted_by_it(
    monkeypatch: pytest.MonkeyPatch, events: list[Event], status: int
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(metrics, "observe_request", lambda status, *_: counted.append(status))
    app = FastAPI()
    app.add_middleware(RequestContext, counted=("/",))
    last = asyncio.Event()

    async def drawn() -> AsyncGenerator[Event, None]:
        for event in events:
            yield event

    @app.post("/")
    async def stream(request: Request) -> Response:
        return await pictures.reply_with_events(request, drawn(), lambda event: [type(event).__name__.encode()])

    async def receive() -> Message:
        await last.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body") == type(events[-1]).__name__.encode():
            last.set()
            await asyncio.sleep(0.05)  # the client closes before the end of the reply is sent

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(app(scope, receive, send))
    assert counted == [status]
