"""The HTTP routes, in the HTTP process: check, order, answer. No torch, no LitServe.

A request to draw goes ``parse -> resolve -> exchange -> engine process`` and comes back as files, as JSON or as server-sent
events. Whoever goes away, or runs out of time, is cancelled at the engine's next step.
"""

import asyncio
import base64
import hmac
import logging
import platform
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from longcat.errors import DeadlineError
from longcat.flavour import Flavour
from longcat.prompt import Tokenize
from service import metrics
from service.config import ServiceConfig
from service.exchange import Exchange
from service.messages import AdapterAction, AdapterCommand, AdapterReport, Draw, Failed, PreviewFile, Reply, Step
from service.picture import Rendered
from service.replies import (
    DRAINING,
    NOT_READY,
    RESPONSES,
    event,
    failure_of,
    headers_of,
    phases,
    pictures_as_files,
    pictures_in_json,
    reply_to_error,
    reply_to_failure,
)
from service.schema import (
    BodyTooLargeError,
    ErrorBody,
    ErrorDetail,
    GenerateRequest,
    Limits,
    PreviewEvent,
    StepEvent,
    parse_request,
)

log = logging.getLogger("lithograph")

VERSION = version("lithograph")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "optimum-quanto", "torchao", "litserve")
_CLIENT_GONE = 499
"""Nobody reads it; nginx counts such requests under this number."""
_OVERTIME_SECONDS = 1.0
"""The engine says itself that time is over, between two steps; this long after, nobody waits for the step to end."""

_T = TypeVar("_T")


class Routes:
    """Endpoints over one exchange with the engine process."""

    def __init__(
        self, config: ServiceConfig, flavour: Flavour, limits: Limits, tokenize: Tokenize, exchange: Exchange
    ) -> None:
        self._config = config
        self._flavour = flavour
        self._limits = limits
        self._tokenize = tokenize
        self._exchange = exchange
        self.state: MutableMapping[str, Any] = {}
        """Shared by all processes: ``phase``, and what is loaded."""

    def add_to(self, app: FastAPI) -> None:
        """Register everything but ``POST /generate``."""

        def add(method: str, path: str, endpoint: Callable[..., Any], summary: str, tag: str, **options: Any) -> None:
            name = endpoint.__name__.strip("_")
            app.add_api_route(path, endpoint, methods=[method], name=name, summary=summary, tags=[tag], **options)

        not_ready = {503: {"description": "not ready"}}
        add("GET", "/healthz", self._healthz, "Is the process alive?", "operations")
        add("GET", "/readyz", self._readyz, "Can it draw?", "operations", responses=not_ready)
        add("GET", "/metrics", self._metrics, "Prometheus metrics", "operations")
        add("GET", "/v1/info", self._info, "Model, limits, defaults, versions", "model")
        replies = {"response_model": AdapterReport, "responses": {401: {"model": ErrorBody}, 404: {"model": ErrorBody}}}
        add("GET", "/v1/adapters", self._list_adapters, "Adapters, slots, storage", "adapters", **replies)
        add(
            "POST",
            "/v1/adapters/{name}/{action}",
            self._change_adapter,
            "load, pin, unpin or unload",
            "adapters",
            **replies,
        )
        add("DELETE", "/v1/adapters/{name}", self._remove_adapter, "Remove from storage", "adapters", **replies)

    def add_generate(self, app: FastAPI) -> None:
        """Register ``POST /generate``."""
        schema = GenerateRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs")  # they are among the components already, as parts of the response
        app.add_api_route(
            "/generate",
            self._generate,
            methods=["POST"],
            name="generate",
            tags=["model"],
            summary="Draw pictures",
            response_class=Response,
            responses=RESPONSES,
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        )

    async def _generate(self, request: Request) -> Response:
        begin = time.monotonic()
        try:
            response = await self._answer(request, begin)
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_GONE)
        except Exception as error:
            response = reply_to_error(error)
        if not isinstance(response, StreamingResponse):  # those count themselves when they are over
            _count(response.status_code, begin)
        return response

    async def _answer(self, request: Request, begin: float) -> Response:
        wanted = parse_request(await self._read_body(request))
        phase = self.state["phase"]
        if phase != "ready":
            return reply_to_failure(DRAINING if phase == "draining" else NOT_READY)
        resolved = self._limits.resolve(wanted, self._tokenize)
        if self._exchange.is_full:
            message = f"{self._exchange.requests} requests are under way, as many as are taken; come back later"
            wait = self._exchange.wait_seconds
            return reply_to_failure(Failed(status=429, code="busy", message=message, retry_after_seconds=wait))
        draw = Draw(
            id=str(uuid.uuid4()),
            request=resolved,
            submitted_at=begin,
            deadline=begin + min(wanted.timeout_seconds or float("inf"), self._config.timeout_seconds),
            progress=wanted.stream,
            previews=wanted.stream and wanted.previews,
        )
        if wanted.stream:
            return StreamingResponse(self._events(request, draw), media_type="text/event-stream")
        async with self._exchange.send(draw) as mailbox:
            reply = await _before(draw.deadline, request, mailbox.next())
        if isinstance(reply, Failed):
            self._log(draw, f"failed with {reply.status}: {reply.message}")
            return reply_to_failure(reply)
        assert isinstance(reply, Rendered)
        self._note(draw, reply)
        headers = headers_of(draw.id, self._flavour.hash, resolved, reply)
        if wanted.response_format == "json":
            body = pictures_in_json(draw.id, self._flavour.hash, resolved, reply).model_dump_json()
            return Response(body, media_type="application/json", headers=headers)
        return pictures_as_files(resolved, reply, headers)

    async def _events(self, request: Request, draw: Draw) -> AsyncIterator[bytes]:
        status = 200
        try:
            async with self._exchange.send(draw) as mailbox:
                while not mailbox.is_over:
                    reply = await _before(draw.deadline, request, mailbox.next())
                    yield self._event(draw, reply)
                    if isinstance(reply, Failed):
                        status = reply.status
        except ClientDisconnect:
            status = _CLIENT_GONE
        except Exception as error:  # the status line is sent already: it has to be an event
            failed = failure_of(error)
            status = failed.status
            yield self._event(draw, failed)
        finally:
            _count(status, draw.submitted_at)

    def _event(self, draw: Draw, reply: Reply) -> bytes:
        match reply:
            case Step():
                return event("progress", StepEvent(image=reply.image, step=reply.step, steps=reply.steps))
            case PreviewFile():
                content = base64.b64encode(reply.content).decode("ascii")
                return event("preview", PreviewEvent(image=reply.image, step=reply.step, b64=content))
            case Rendered():
                self._note(draw, reply)
                return event("result", pictures_in_json(draw.id, self._flavour.hash, draw.request, reply))
            case Failed():
                self._log(draw, f"failed with {reply.status}: {reply.message}")
                return event("error", ErrorBody(error=ErrorDetail(code=reply.code, message=reply.message)))
            case _:
                raise AssertionError(f"no reply to a request to draw: {reply!r}")

    def _note(self, draw: Draw, rendered: Rendered) -> None:
        request = draw.request
        self._exchange.learn(rendered, request.steps)
        metrics.observe_timings(rendered.timings)
        metrics.PICTURES.inc(request.num_images)
        metrics.STEPS.inc(request.steps * request.num_images)
        metrics.count_adapters(adapter.name for adapter in rendered.adapters)
        seconds = phases(rendered.timings)
        used = "".join(f" {adapter.reference} x {adapter.scale:g}" for adapter in rendered.adapters)
        self._log(draw, ", ".join(f"{phase} {value * 1000:.0f} ms" for phase, value in seconds.items()), used)

    def _log(self, draw: Draw, outcome: str, used: str = "") -> None:
        r = draw.request
        shown = f"{r.width}x{r.height} steps {r.steps} images {r.num_images} seed {r.seed}"
        log.info("request %s %s%s: %s", draw.id, shown, used and f" adapters{used}", outcome)

    async def _read_body(self, request: Request) -> bytes:
        limit = self._config.max_body_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLargeError(f"the body is over {limit} bytes; send a shorter prompt")
        return bytes(body)

    async def _list_adapters(self) -> Response:
        """Desired and served versions, their state, and the slots that are taken."""
        return await self._manage(AdapterAction.LIST)

    async def _change_adapter(self, name: str, action: str, request: Request) -> Response:
        """Load (again), pin to a slot, unpin, or stop serving, on this server alone."""
        allowed = {
            a.value: a for a in (AdapterAction.LOAD, AdapterAction.PIN, AdapterAction.UNPIN, AdapterAction.UNLOAD)
        }
        if action not in allowed:
            message = f"{action!r} is none of {', '.join(allowed)}"
            return reply_to_failure(Failed(status=404, code="not_found", message=message))
        if (refusal := self._unauthorized(request)) is not None:
            return refusal
        return await self._manage(allowed[action], name)

    async def _remove_adapter(self, name: str, request: Request) -> Response:
        """Remove an adapter, all its versions, from storage: from all servers."""
        if self._config.admin_key is None:
            message = (
                "nothing is removed over HTTP without an admin key; start with --admin-key, or use lithograph adapters"
            )
            return reply_to_failure(Failed(status=403, code="forbidden", message=message))
        if (refusal := self._unauthorized(request)) is not None:
            return refusal
        return await self._manage(AdapterAction.REMOVE, name)

    def _unauthorized(self, request: Request) -> Response | None:
        if (key := self._config.admin_key) is None:
            return None
        given = request.headers.get("authorization", "").encode()
        if hmac.compare_digest(given, f"Bearer {key}".encode()):
            return None
        message = "changing adapters takes the admin key: Authorization: Bearer KEY"
        reply = reply_to_failure(Failed(status=401, code="unauthorized", message=message))
        reply.headers["WWW-Authenticate"] = "Bearer"
        return reply

    async def _manage(self, action: AdapterAction, name: str = "") -> Response:
        if self.state["phase"] not in ("ready", "draining", "waiting for adapters"):
            return reply_to_failure(NOT_READY)
        reply = await self._exchange.ask(AdapterCommand(id=str(uuid.uuid4()), action=action, name=name))
        if isinstance(reply, Failed):
            return reply_to_failure(reply)
        assert isinstance(reply, AdapterReport)
        return Response(reply.model_dump_json(), media_type="application/json")

    async def _healthz(self) -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    async def _readyz(self) -> JSONResponse:
        """Whether a warm-up picture is drawn, required adapters are there, and requests are answered."""
        phase = self.state["phase"]
        return JSONResponse({"status": phase}, status_code=200 if phase == "ready" else 503)

    async def _metrics(self) -> Response:
        """Prometheus metrics of all processes."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def _info(self) -> dict[str, Any]:
        """What is served, with which limits, by which versions."""
        flavour, limits, settings = self._flavour, self._limits, self._flavour.settings
        adapters = self._config.adapters
        state = dict(self.state)
        return {
            "status": state.pop("phase"),
            "model": {"flavour": flavour.name, "revision": flavour.revision, "hash": flavour.hash, **state},
            "limits": {
                "max_pixels": limits.max_pixels,
                "max_steps": limits.max_steps,
                "max_images": limits.max_images,
                "max_prompt_tokens": settings.max_prompt_tokens,
                "max_body_bytes": self._config.max_body_bytes,
                "max_queue": self._config.max_queue,
                "timeout_seconds": self._config.timeout_seconds,
            },
            "adapters": None
            if adapters is None
            else {
                "storage": adapters.uri,
                "slots": adapters.slots,
                "max_rank": adapters.rank,
                "required": adapters.required,
            },
            "defaults": {
                "width": settings.default_size_px,
                "height": settings.default_size_px,
                "steps": settings.default_steps,
                "guidance_scale": settings.default_guidance_scale,
            },
            "versions": {
                "lithograph": VERSION,
                "python": platform.python_version(),
                **{library: version(library) for library in _LIBRARIES},
            },
        }


async def _before(deadline: float, request: Request, coming: Coroutine[Any, Any, _T]) -> _T:
    """What comes, unless the client goes away (``ClientDisconnect``) or time is over (``DeadlineError``) first."""
    waiting = asyncio.ensure_future(coming)
    gone = asyncio.ensure_future(_gone(request))
    timeout = max(0.0, deadline + _OVERTIME_SECONDS - time.monotonic())
    try:
        await asyncio.wait({waiting, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if gone.done():
            raise ClientDisconnect
        raise DeadlineError("timeout_seconds is over; give more, or ask for fewer steps or pictures")
    finally:
        waiting.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns once the client is gone. For requests whose body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _count(status: int, begin: float) -> None:
    metrics.REQUESTS.labels(str(status)).inc()
    metrics.REQUEST_SECONDS.labels(str(status)).observe(time.monotonic() - begin)
