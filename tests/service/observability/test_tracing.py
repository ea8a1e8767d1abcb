"""Traces from a real server to a real OTLP/HTTP receiver."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.conftest import RunningServer, serve
from tests.longcat.test_logs import lines

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
DRAW = {"prompt": "a red apple", "steps": 3, "seed": 7}


class Collector:
    """An OTLP/HTTP receiver that stores every span with its service."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def wait_for(self, trace_id: str, names: set[str]) -> list[Span]:
        """Return the spans of a trace, once all these names are among them."""
        deadline = time.monotonic() + 60
        while True:
            found = [span for span in self.spans if span.trace_id.hex() == trace_id]
            if names <= {span.name for span in found}:
                return found
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def attributes(span: Span) -> dict[str, Any]:
    kinds = {"string_value", "int_value"}
    found = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        if kind == "array_value":
            found[attribute.key] = [value.string_value for value in attribute.value.array_value.values]
        elif kind in kinds:
            found[attribute.key] = getattr(attribute.value, kind)
    return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms: delay of sending spans together
        patch.setenv("OTEL_SERVICE_NAME", "pictures")
        folder = tmp_path_factory.mktemp("traced")
        options = ("--otlp-endpoint", collector.url, "--adapters", (folder / "adapters").as_uri())
        yield stack.enter_context(serve(folder, *options))


def test_a_request_is_one_trace_across_both_processes(collector: Collector, traced: RunningServer) -> None:
    with ThreadPoolExecutor(2) as pool:  # another request shares its forwards
        pool.submit(httpx.post, f"{traced.url}/generate", json=DRAW | {"steps": 6}, timeout=120)
        reply = httpx.post(
            f"{traced.url}/generate",
            json=DRAW | {"num_images": 2},
            headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
            timeout=120,
        )
    assert reply.status_code == 200
    names = {"POST /generate", "queue", "text", "denoise", "step", "decode", "encode"}
    spans = collector.wait_for(TRACE, names)
    assert {span.name for span in spans} == names
    (request,) = [span for span in spans if span.name == "POST /generate"]
    assert request.parent_span_id.hex() == CALLER
    assert request.kind == Span.SPAN_KIND_SERVER
    found = attributes(request)
    assert found["lithograph.request_id"] == reply.headers["X-Request-Id"]
    assert found["http.response.status_code"] == 200
    expected = {"lithograph.steps": 3, "lithograph.seed": 7, "lithograph.images": 2, "lithograph.adapters": []}
    assert expected.items() <= found.items()
    phases = [span for span in spans if span.name not in ("POST /generate", "step")]
    assert {span.parent_span_id for span in phases} == {request.span_id}
    assert all(attributes(span)["lithograph.request_id"] == reply.headers["X-Request-Id"] for span in phases)
    pictures = sorted(
        (span for span in spans if span.name == "denoise"), key=lambda s: attributes(s)["lithograph.seed"]
    )
    assert [attributes(span)["lithograph.seed"] for span in pictures] == [7, 8]
    for picture in pictures:
        steps = [span for span in spans if span.name == "step" and span.parent_span_id == picture.span_id]
        assert [attributes(step)["lithograph.step"] for step in steps] == [1, 2, 3]
        for step in steps:
            assert picture.start_time_unix_nano <= step.start_time_unix_nano <= step.end_time_unix_nano
            assert attributes(step)["lithograph.rows"] >= 2
    order = ["text", "denoise", "decode", "encode"]
    begins = [min(span.start_time_unix_nano for span in phases if span.name == name) for name in order]
    assert begins == sorted(begins)
    assert all(request.start_time_unix_nano - 10**7 <= span.start_time_unix_nano for span in phases)
    assert collector.services == {"pictures"}


def test_a_request_without_a_caller_begins_a_trace_that_the_log_and_an_exemplar_name(
    collector: Collector, traced: RunningServer
) -> None:
    reply = httpx.post(f"{traced.url}/generate", json=DRAW, timeout=120)
    told = lines(traced.log_text())
    (line,) = [line for line in told if line.get("request_id") == reply.headers["X-Request-Id"]]
    spans = collector.wait_for(line["trace_id"], {"POST /generate", "encode"})
    (request,) = [span for span in spans if span.name == "POST /generate"]
    assert request.parent_span_id == b""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    metrics = httpx.get(f"{traced.url}/metrics", headers=accept)
    assert metrics.headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(metrics.text)}
    exemplars = [sample.exemplar for sample in families["lithograph_request_seconds"].samples if sample.exemplar]
    assert line["trace_id"] in [exemplar.labels["trace_id"] for exemplar in exemplars]


def test_what_fails_is_marked_and_what_is_refused_has_its_status(collector: Collector, traced: RunningServer) -> None:
    parents = [f"00-{number:032x}-{CALLER}-01" for number in (1, 2, 3)]
    bodies = [
        DRAW | {"adapters": [{"name": "none"}]},
        DRAW | {"steps": 0},
        DRAW | {"steps": 100, "width": 256, "height": 256, "num_images": 4, "timeout_seconds": 3},
    ]
    statuses = []
    for parent, body in zip(parents, bodies, strict=True):
        reply = httpx.post(f"{traced.url}/generate", json=body, headers={"traceparent": parent}, timeout=120)
        statuses.append(reply.status_code)
    assert statuses == [404, 422, 504]
    for number, status in zip((1, 2, 3), statuses, strict=True):
        spans = collector.wait_for(f"{number:032x}", {"POST /generate"})
        (request,) = [span for span in spans if span.name == "POST /generate"]
        assert attributes(request)["http.response.status_code"] == status
    spans = collector.wait_for(f"{3:032x}", {"denoise"})
    (denoise,) = [span for span in spans if span.name == "denoise"]
    assert attributes(denoise)["lithograph.outcome"] == "timeout"
    assert denoise.status.code == Status.STATUS_CODE_ERROR


def test_a_request_that_is_not_sampled_by_its_client_is_not_traced(collector: Collector, traced: RunningServer) -> None:
    unsampled = "5" * 32
    headers = {"traceparent": f"00-{unsampled}-{CALLER}-00"}
    assert httpx.post(f"{traced.url}/generate", json=DRAW, headers=headers, timeout=120).status_code == 200
    httpx.get(f"{traced.url}/readyz", headers={"traceparent": f"00-{'6' * 32}-{CALLER}-01"})
    marker = "7" * 32
    headers = {"traceparent": f"00-{marker}-{CALLER}-01"}
    httpx.post(f"{traced.url}/generate", json=DRAW, headers=headers, timeout=120)
    collector.wait_for(marker, {"POST /generate", "encode"})
    assert not [span for span in collector.spans if span.trace_id.hex() in (unsampled, "6" * 32)]


def test_what_waits_is_sent_when_the_server_stops(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    trace = "8" * 32
    with serve(tmp_path) as server:
        headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
        assert httpx.post(f"{server.url}/generate", json=DRAW, headers=headers, timeout=120).status_code == 200
        assert not [span for span in collector.spans if span.trace_id.hex() == trace]
        assert server.stop() == 0
        assert "Traceback" not in server.log_text()
    collector.wait_for(trace, {"POST /generate", "queue", "encode"})


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = "import service.process.server, sys; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
