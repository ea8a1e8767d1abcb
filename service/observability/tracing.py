"""OpenTelemetry traces, if the server has an endpoint for them; otherwise OpenTelemetry is not imported.

A request's span is made in the HTTP process, as a child of the caller's if there is a ``traceparent`` header (W3C Trace
Context), and its context travels with the command to the engine process, whose spans are its children::

    POST /generate
    ├── queue
    ├── text
    ├── queue
    ├── denoise        one a picture
    │   └── step ...
    ├── decode         one a picture
    └── encode

Spans of a job continue after its request is answered.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from service.observability.timeline import Phase, Timeline
from service.wire.messages import GenerateCommand

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TIMEOUT_SECONDS = 5
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that probes and Prometheus poll every few seconds."""
_ERRORS = frozenset({"failed", "timeout"})


class RequestSpan:
    """The span of the current request."""

    def __init__(self, span: "Span", carrier: Mapping[str, str]) -> None:
        self._span = span
        self.carrier = carrier
        """W3C headers from which other processes create child spans."""

    @property
    def trace_id(self) -> str:
        """Return the id of its trace in hexadecimal."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def describe(self, command: GenerateCommand) -> None:
        """Add the resolved request's parameters as attributes."""
        self._span.set_attributes(_attributes(command))


current_request: ContextVar[RequestSpan | None] = ContextVar("current_request", default=None)
"""Span of the current request, if it is traced."""


class Tracing:
    """Creates spans and sends them in a thread of this process. Create it after a fork."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: a collector's URL for OTLP over HTTP; the OTEL_* variables set headers, sampling and more."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = Resource({"service.name": "lithograph", "service.version": version("lithograph")})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_TIMEOUT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lithograph")
        self._propagator = TraceContextTextMapPropagator()
        # Computed once, so that spans keep their order; a pause between the two readings would make it too small.
        self._epoch_ns = max(time.time_ns() - time.monotonic_ns() for _ in range(5))

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator["Span"]:
        """Open the span of a request; it is ``current_request`` meanwhile, if it is sampled."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        attributes = {"http.request.method": method, "url.path": path}
        context = self._propagator.extract(headers)
        with self._tracer.start_as_current_span(
            f"{method} {path}",
            context=context,
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,  # its text may contain values of the request
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier, set_span_in_context(span))
            sampled = span.get_span_context().trace_flags.sampled
            token = current_request.set(RequestSpan(span, carrier) if sampled else None)
            try:
                yield span
            finally:
                current_request.reset(token)

    def record(self, command: GenerateCommand, timeline: Timeline, outcome: str) -> None:
        """Record the spans of the engine's work for a finished request."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        assert command.trace is not None
        request = self._propagator.extract(command.trace)
        last = max((interval.end for interval in timeline.intervals), default=0.0)
        for interval in timeline.intervals:
            attributes: dict[str, Any] = {"lithograph.request_id": command.request_id}
            if interval.phase in (Phase.DENOISE, Phase.DECODE):
                seed = command.request.seed + interval.picture
                attributes = _attributes(command) | {"lithograph.picture": interval.picture, "lithograph.seed": seed}
            span = self._tracer.start_span(
                interval.phase, context=request, start_time=self._ns(interval.begin), attributes=attributes
            )
            if interval.end == last:
                span.set_attribute("lithograph.outcome", outcome)
                if outcome in _ERRORS:
                    span.set_status(Status(StatusCode.ERROR, outcome))
            if interval.phase is Phase.DENOISE:
                self._record_steps(timeline, interval.picture, set_span_in_context(span))
            span.end(self._ns(interval.end))

    def _record_steps(self, timeline: Timeline, picture: int, context: Any) -> None:
        for step in timeline.steps:
            if step.picture == picture:
                attributes = {"lithograph.step": step.step, "lithograph.rows": step.rows}
                span = self._tracer.start_span(
                    "step", context=context, start_time=self._ns(step.begin), attributes=attributes
                )
                span.end(self._ns(step.end))

    def _ns(self, monotonic_seconds: float) -> int:
        """Return nanoseconds since 1970."""
        return self._epoch_ns + round(monotonic_seconds * 1e9)

    def close(self) -> None:
        """Send the pending spans and stop."""
        self._provider.shutdown()


class TracedRequests:
    """ASGI middleware: a span for every request, except those of probes and Prometheus."""

    def __init__(self, app: "ASGIApp", endpoint: str) -> None:
        self._app = app
        self._endpoint = endpoint
        self._tracing: Tracing | None = None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one request, or the server's lifespan."""
        if self._tracing is None:  # only now: it has a thread, which would not survive the fork of the HTTP process
            self._tracing = Tracing(self._endpoint)
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                self._tracing.close()
        elif scope["type"] != "http" or (path := scope["path"].removeprefix(scope["root_path"])) in _UNTRACED:
            await self._app(scope, receive, send)
        else:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            with self._tracing.request(scope["method"], path, headers) as span:

                async def sent(message: "Message") -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                    await send(message)

                await self._app(scope, receive, sent)


def _attributes(command: GenerateCommand) -> dict[str, Any]:
    request = command.request
    return {
        "lithograph.request_id": command.request_id,
        "lithograph.adapters": [choice.name for choice in request.adapters],
        "lithograph.steps": request.steps,
        "lithograph.seed": request.seed,
        "lithograph.images": request.num_images,
        "lithograph.size": f"{request.width}x{request.height}",
    }
