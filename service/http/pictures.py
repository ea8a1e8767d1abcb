"""Replies with pictures: as files, as JSON, or as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from service.http.error_responses import GENERATE_ERRORS, Responses, status_of
from service.wire.errors import wrapped
from service.wire.events import AcceptedEvent, ErrorEvent, Event, ResultEvent, SentEvent
from service.wire.job import JobReport
from service.wire.picture import MEDIA_TYPES, zip_pictures
from service.wire.schema import Timings

log = logging.getLogger("lithograph")

SILENCE_SECONDS = 15.0
"""Longest time without a byte in a stream; proxies close connections that are silent for longer, nginx after 60 s."""
_FILE = {"schema": {"type": "string", "format": "binary"}}
EVENTS = {"schema": {"description": "Server-sent events: an event's name, and its data as JSON."}}
"""The documented content of a stream. Its schema has no type: readers of OpenAPI apply it to each event, or to the text."""
PICTURES: Responses = {
    200: {
        "description": "The picture; a zip of several; JSON with the pictures in base64; or events.",
        "model": ResultEvent,
        "content": {
            **dict.fromkeys((*MEDIA_TYPES.values(), "application/zip"), _FILE),
            "text/event-stream": EVENTS,
        },
    },
    202: {"description": "A job; its address is in Location.", "model": JobReport},
    **GENERATE_ERRORS,
}
"""The documented responses of ``POST /generate``."""


def reply_with_pictures(result: ResultEvent, *, as_json: bool) -> Response:
    """Return JSON, the picture itself, or a zip of several that are named by their seeds."""
    headers = headers_of(result)
    if as_json:
        return Response(result.model_dump_json(), media_type="application/json", headers=headers)
    if len(result.images) == 1:
        return Response(result.images[0].content, media_type=result.media_type, headers=headers)
    archive = zip_pictures((f"{image.seed}.{result.request.output_format}", image.content) for image in result.images)
    return Response(archive, media_type="application/zip", headers=headers)


def headers_of(result: ResultEvent) -> dict[str, str]:
    """Return the headers that describe a result."""
    headers = {
        "X-Request-Id": result.request_id,
        "X-Seed": str(result.request.seed),
        "X-Model-Hash": result.model_hash,
        "Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in phases(result.timings).items()),
    }
    if result.adapters:
        headers["X-Adapters"] = ", ".join(
            f"{a.reference};scale={a.scale:g};modules={a.modules};sha256={a.sha256}" for a in result.adapters
        )
    return headers


def phases(timings: Timings) -> dict[str, float]:
    """Return seconds by phase: queue, text, denoise, decode, encode."""
    return {name.removesuffix("_seconds"): seconds for name, seconds in timings.model_dump().items()}


def server_sent(name: str, data: BaseModel) -> bytes:
    """Return one server-sent event."""
    return format_sse_event(event=name, data_str=data.model_dump_json())


async def with_silences(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event | None, None]:
    """Yield events as they come, and None whenever none has come for ``SILENCE_SECONDS``."""
    async with aclosing(events):
        is_over = False
        while not is_over:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait([coming], timeout=SILENCE_SECONDS))[0]:
                    yield None
            finally:
                coming.cancel()
                await asyncio.wait([coming])  # a generator that runs cannot be closed
            if (event := coming.result()) is None:
                is_over = True
            else:
                yield event


async def reply_with_events(
    request: Request, events: AsyncGenerator[Event, None], encode: Callable[[SentEvent], Iterable[bytes]]
) -> StreamingResponse:
    """Return a reply that sends events as they come, and comments between them so that no proxy closes it as idle.

    Wait for the first event, so that an unknown adapter has its own status; but no longer than a reply may be silent. Raises
    the error of a request that the engine has not accepted. Later, the status that a reply is counted under is that of its
    last event, even where the client closes as soon as it has read it.
    """
    stream = with_silences(events)
    first = await anext(stream)
    if isinstance(first, ErrorEvent):
        await stream.aclose()
        raise first.error

    def encoded(event: Event | None) -> Iterable[bytes]:
        match event:
            case None:
                return (KEEPALIVE_COMMENT,)
            case AcceptedEvent():
                return ()
            case ErrorEvent():
                request.state.outcome = status_of(event.error)
            case ResultEvent():
                request.state.outcome = 200
        return encode(event)

    async def body() -> AsyncIterator[bytes]:
        try:
            async with aclosing(stream):
                for chunk in encoded(first):
                    yield chunk
                async for event in stream:
                    for chunk in encoded(event):
                        yield chunk
        except ClientDisconnect:  # the middleware counts it
            pass
        except Exception as error:  # the status line is sent already: an unexpected error must be an event, too
            log.exception("request %s failed", request.state.request_id)
            failure = wrapped(error)
            request.state.outcome = status_of(failure)
            for chunk in encode(ErrorEvent(failure)):
                yield chunk

    return StreamingResponse(body(), media_type="text/event-stream")
