"""The HTTP app of the HTTP process: a router a surface, error handlers, middleware. No torch, no LitServe.

A request for pictures goes through admission and the exchange to the engine process, and comes back as files, as JSON or as
server-sent events. A request whose client disconnects, or whose time is over, is cancelled at the engine's next step.
"""

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from longcat.errors import LithographError
from longcat.storage.opening import open_storage
from service.access.caller import Caller
from service.access.key_file import KeyFile
from service.config import ServiceConfig
from service.http import adapters, generate
from service.http.admission import Admission
from service.http.compat import openai, vllm
from service.http.edge.authentication import Authentication
from service.http.edge.body_limits import JsonBodies, LingeringClose
from service.http.edge.closing import ConnectionClose
from service.http.edge.context import ErrorReplies, RequestContext
from service.http.edge.errors import BodyTooLargeError, SlowRequestError
from service.http.edge.heads import CheckedHeads
from service.http.edge.origins import AllowedOrigins
from service.http.edge.paths import Paths, allowed_methods, path_of
from service.http.error_responses import (
    MethodNotAllowedError,
    NotFoundError,
    reply_to_error,
)
from service.http.jobs import routes as job_routes
from service.http.jobs.batches.batches import ImageBatches
from service.http.jobs.batches.routes import batches as batch_routes
from service.http.jobs.batches.routes import files as file_routes
from service.http.jobs.batches.routes.files import FILES_PATH
from service.http.jobs.batches.upload import FORM_BYTES, file_too_large
from service.http.jobs.jobs import ImageJobs
from service.http.jobs.lasting.calls import StorageCalls
from service.http.jobs.lasting.files import JobFiles
from service.http.jobs.lasting.store import LastingJobs
from service.http.jobs.store import JobsInMemory, JobStore
from service.http.operations import health, usage
from service.http.operations.docs_page import serve_docs
from service.http.operations.health import VERSION
from service.http.requests.json_body import error_of_body
from service.observability import metrics
from service.observability.refused_requests import log_refused_request
from service.observability.tracing import TracedRequests, current_request

_GENERATING = frozenset({"/generate", "/v1/images/generations", "/v1/images/edits"})
"""Paths whose requests are counted."""
PICTURE_PATHS = frozenset({"/generate", "/v1/images/edits", "/v1/images/variations"})
"""Paths whose bodies may have pictures."""
_KEY_REFUSALS = {
    "api_key_missing": "missing",
    "api_key_unknown": "unknown",
    "key_lacks_role": "role",
    "key_lacks_adapter": "adapter",
    "key_lacks_priority": "priority",
    "key_requests_at_a_time": "requests",
    "key_pixel_steps_per_minute": "pixel_steps",
}
"""Reasons in the metric of refused keys, by an error's code."""
_NOT_ALLOWED = 405
_TAGS = ("model", "jobs", "openai", "adapters", "operations")


def set_up(app: FastAPI, admission: Admission, *, is_draining: Callable[[], bool]) -> None:
    """Add all endpoints, error handlers and middleware to an app."""
    config = admission.config
    app.title = "Lithograph"
    app.version = VERSION
    app.description = "Pictures from Chinese and English prompts with LongCat-Image."
    app.openapi_tags = [{"name": tag} for tag in _TAGS]
    app.state.admission = admission
    key_file = _key_file(config)
    calls = _storage_calls(config)
    app.state.jobs = ImageJobs(admission, config.jobs, _job_store(admission, calls))
    app.state.batches = None if calls is None else ImageBatches(admission, calls, key_file)
    surfaces = (generate, job_routes, openai, file_routes, batch_routes, adapters, vllm, health, usage)
    routers = [surface.router for surface in surfaces]
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes]
    serve_docs(app)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, ClientDisconnect):  # while FastAPI read the body
            raise error.__cause__
        if error.status_code != _NOT_ALLOWED:
            return _reply(request, _of_framework(error, request, config))
        allowed = ", ".join(allowed_methods(request))
        is_refused = request.method != "OPTIONS"
        reply = _reply(request, _not_allowed(request, allowed)) if is_refused else Response(status_code=204)
        reply.headers["Allow"] = allowed
        return reply

    app.add_exception_handler(LithographError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_error)
    # From the innermost to the outermost.
    app.add_middleware(
        JsonBodies, max_bytes=functools.partial(max_body_bytes, config), max_seconds=config.http.body_seconds
    )
    app.add_middleware(Authentication, config=config.access, key_file=key_file)
    app.add_middleware(CheckedHeads, config=config.http)
    app.add_middleware(ErrorReplies, reply=_reply)
    app.add_middleware(ConnectionClose, is_draining=is_draining)
    if config.http.cors_origins:
        app.add_middleware(AllowedOrigins, origins=config.http.cors_origins)
    app.add_middleware(RequestContext, counted=_GENERATING)
    if config.otlp_endpoint is not None:
        app.add_middleware(TracedRequests, endpoint=config.otlp_endpoint)
    app.add_middleware(LingeringClose)
    app.add_middleware(Paths, root_path=config.http.root_path)


def max_body_bytes(config: ServiceConfig, scope: Scope) -> int:
    """Return the size limit of a request's body: pictures are base64 in JSON, which is a third larger."""
    if path_of(scope) == FILES_PATH:
        return config.batches.max_bytes + FORM_BYTES
    pictures = config.pictures.max_image_bytes * 4 // 3 if path_of(scope) in PICTURE_PATHS else 0
    return config.max_body_bytes + pictures


@asynccontextmanager
async def run_jobs(app: FastAPI) -> AsyncIterator[None]:
    """Work on jobs and batches while this context is entered."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.state.jobs.running())
        if app.state.batches is not None:
            await stack.enter_async_context(app.state.batches.running())
        yield


def _storage_calls(config: ServiceConfig) -> StorageCalls | None:
    if (uri := config.jobs.storage) is None:
        return None
    return StorageCalls(lambda: open_storage(uri, endpoint_url=config.jobs.endpoint_url))


def _job_store(admission: Admission, calls: StorageCalls | None) -> JobStore:
    config = admission.config.jobs
    if calls is None:
        return JobsInMemory(config)
    return LastingJobs(JobFiles(calls), config, lambda: admission.model_identity)


def _key_file(config: ServiceConfig) -> KeyFile | None:
    path = config.access.api_keys_file
    return None if path is None else KeyFile(path)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LithographError)
    return _reply(request, error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Reply to a body that is no valid request."""
    assert isinstance(error, RequestValidationError)
    return _reply(request, error_of_body(request))


def _name_of_key(request: Request) -> str | None:
    """Return the name of the key that a request was sent with; None if it was refused before that was known."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return None if caller is None else caller.name


def _of_framework(error: HTTPException, request: Request, config: ServiceConfig) -> LithographError:
    """Return an error of the framework as one of ours."""
    match error.status_code:
        case 404:
            return NotFoundError(
                "unknown_path", "there is no {path}", remedy="/docs lists the endpoints", path=request.url.path
            )
        case 408:
            return SlowRequestError(seconds=config.http.body_seconds)
        case 413 if path_of(request.scope) == FILES_PATH:
            return file_too_large(config.batches.max_bytes)
        case 413:
            return BodyTooLargeError(
                "body_too_large",
                "the body exceeds {max_bytes} bytes",
                remedy="send a shorter prompt, or a smaller picture",
                max_bytes=max_body_bytes(config, request.scope),
            )
    raise error  # a defect: the middleware logs it


def _not_allowed(request: Request, allowed: str) -> MethodNotAllowedError:
    return MethodNotAllowedError(
        "method_not_allowed",
        "{path} does not take {method}",
        remedy="use {allowed}",
        path=request.url.path,
        method=request.method,
        allowed=allowed.removesuffix(", OPTIONS"),
    )


def _reply(request: Request, error: LithographError) -> Response:
    """Return the reply to an error; log it, unless admission logs the outcome of the request."""
    reply = reply_to_error(request, error)
    if request.state.is_admitted:
        return reply
    if path_of(request.scope) in _GENERATING and request.method == "POST":
        metrics.REJECTED.labels(error.code).inc()
    admission: Admission = request.app.state.admission
    traced = current_request.get()
    if (reason := _KEY_REFUSALS.get(error.problems[0].code)) is not None:
        metrics.KEY_REFUSALS.labels(reason).inc()
    log_refused_request(
        error,
        status=reply.status_code,
        request_id=request.state.request_id,
        key=_name_of_key(request),
        endpoint=getattr(request.scope.get("route"), "path", None),
        with_text=admission.config.log_prompts,
        trace_id=None if traced is None else traced.trace_id,
    )
    return reply
