"""Every reply of the service is a documented one in the documented shape, in time and short; never a 500."""

import json
import re
from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from hypothesis import strategies as st

from tests.fuzz.cases import sweep, try_all
from tests.fuzz.conftest import ADMIN_KEY
from tests.fuzz.values.requests import LONG_LISTS, LONG_PROMPTS, NAMES, PROMPTS, SMALL, bodies, likely_fields
from tests.fuzz.values.strange import (
    ODD_VALUES,
    RAW_JSON,
    TEXTS,
    UNICODE,
    VALUES,
    as_json,
    changed,
    json_bytes,
    one_of_these,
)
from tests.fuzz.wire import WireReply, WireRequest, exchange

Clock = Callable[[], float]
DRAWN = {200, 202}
REFUSED = {400, 404, 413, 415, 422, 429}
ENDPOINTS = ("/generate", "/v1/images/generations")
LONGEST_ERROR_BYTES = 100_000
REFUSAL_SECONDS = 1.0
_ATTEMPTS = 3
"""Number of slow rejections that count as a failure, because other load on the machine does not last."""

MANY_FIELDS = {f"field_{number}": number for number in range(5_000)}


def check(url: str, request: WireRequest) -> WireReply:
    """Send a request, and check the properties of every reply."""
    for attempt in range(_ATTEMPTS):
        reply = exchange(url, request)
        if reply.status in DRAWN or reply.status == 504 or reply.seconds < REFUSAL_SECONDS:
            break
        assert attempt + 1 < _ATTEMPTS, f"refused with {reply.status} after {reply.seconds:.1f} s"
    assert reply.status < 500 or reply.status in (501, 503, 504), reply.body[:2_000]
    assert b"Traceback" not in reply.body
    if reply.status >= 400:
        assert len(reply.body) < LONGEST_ERROR_BYTES
    return reply


def check_generation(url: str, endpoint: str, content: bytes, kind: bytes = b"application/json") -> WireReply:
    reply = check(
        url, WireRequest(method="POST", target=endpoint.encode(), headers=[(b"Content-Type", kind)], body=content)
    )
    # 504: the requested time was too short.
    assert reply.status in DRAWN | REFUSED | {504}, reply.body[:2_000]
    if reply.status not in DRAWN:
        error = json.loads(reply.body)["error"]
        assert error["message"]
        assert ("type" in error) == endpoint.startswith("/v1/")
    elif reply.headers["content-type"].startswith("text/event-stream"):
        last = [line for line in reply.body.decode().splitlines() if line.startswith("event: ")][-1]
        assert last.removeprefix("event: ") in {"result", "error", "image_generation.completed"}
    return reply


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_request_for_pictures_is_answered_with_500(service: str, loop_clock: Clock, endpoint: str) -> None:
    statuses = set()

    def ask(content: bytes) -> None:
        statuses.add(check_generation(service, endpoint, content).status)

    fields = bodies(endpoint)
    try_all(f"{endpoint}: fields", ask, st.one_of(fields.map(as_json), json_bytes(fields)), cases=60, clock=loop_clock)
    assert statuses & DRAWN, "nothing was drawn: what is sent is too wild to get beyond the first check"
    assert statuses & REFUSED


def test_no_prompt_that_is_counted_is_answered_with_500(service: str, loop_clock: Clock) -> None:
    statuses = set()

    def ask(content: bytes) -> None:
        headers = [(b"Content-Type", b"application/json")]
        reply = check(service, WireRequest(method="POST", target=b"/v1/tokens", headers=headers, body=content))
        assert reply.status in {200} | REFUSED, reply.body[:2_000]
        if reply.status == 200:
            counted = json.loads(reply.body)
            assert counted["is_exact"] or counted["tokens"] > counted["max_tokens"]
        statuses.add(reply.status)

    fields = changed({"prompt": "a cat"}, {"prompt": PROMPTS})
    try_all("/v1/tokens: fields", ask, st.one_of(fields.map(as_json), json_bytes(fields)), cases=60, clock=loop_clock)
    assert {200, 422} <= statuses


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_field_is_given_every_odd_value(service: str, loop_clock: Clock, endpoint: str) -> None:
    odd = [SMALL | {name: value} for name in likely_fields(endpoint) for value in ODD_VALUES]
    odd += [SMALL | {name: text} for name in ("prompt", "negative_prompt") for text in LONG_PROMPTS]
    odd += [SMALL | {"rewrite_prompt": True, "prompt": text} for text in LONG_PROMPTS]
    odd += [SMALL | {"adapters": adapters} for adapters in LONG_LISTS] + [SMALL | MANY_FIELDS]
    sweep(
        f"{endpoint}: odd values",
        lambda fields: check_generation(service, endpoint, as_json(fields)) and None,
        odd,
        clock=loop_clock,
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_bytes_are_answered_with_500(service: str, loop_clock: Clock, endpoint: str) -> None:
    kinds = one_of_these(
        [
            b"application/json",
            b"text/plain",
            b"",
            b"multipart/form-data; boundary=x",
            b"\xff",
            b"application/json; charset=utf-16",
        ]
    )
    contents = st.one_of(RAW_JSON, st.binary(max_size=200), VALUES.map(as_json), json_bytes(bodies(endpoint)))
    try_all(
        f"{endpoint}: bytes",
        lambda content, kind: check_generation(service, endpoint, content, kind),
        contents,
        kinds,
        cases=80,
        clock=loop_clock,
    )


HEADERS = one_of_these([
    (b"Authorization", b"bearer " + ADMIN_KEY.encode()), (b"Authorization", b"Bearer \xff"), (b"Authorization",
    b"Basic x"), (b"Cookie", b"\xff=;"),
    (b"X-Request-Id", b"x" * 5_000), (b"X-Request-Id", b"a\xffb"), (b"X-Request-Id", b""), (b"traceparent",
    b"00-" + b"f" * 400), (b"Host", b"[::1"),
    (b"Host", b""), (b"Content-Length", b"-1"), (b"Content-Length", b"9" * 5_000), (b"Content-Length",
    b"0, 0"), (b"Transfer-Encoding", b"chunked"),
    (b"Transfer-Encoding", b"gzip"), (b"Content-Encoding", b"gzip"), (b"Expect", b"100-continue"), (b"Accept",
    b"text/event-stream"),
    (b"Accept", b"\xff"), (b"Accept-Encoding", b"gzip;q=x"), (b"Range", b"bytes=9-1"), (b"Origin",
    b"http://["), (b"Upgrade", b"websocket"),
    (b"Access-Control-Request-Method", b"x\xff"), (b"X-Forwarded-For", b"\xff"), (b"Forwarded", b"for=["),
    (b" X", b"1"), (b"a b", b"1"), (b"", b""),
    (b"X-Folded", b"a\r\n b"), (b"Last-Event-ID", b"\xff"), (b"Idempotency-Key", b"x" * 5_000), (b"X-Strange",
    bytes(range(1, 10))),
])  # fmt: skip
PARTS = st.one_of(
    one_of_these(
        [
            "ink",
            "ink@1",
            "embedded",
            "load",
            "pin",
            "unpin",
            "unload",
            ".",
            "..",
            "%00",
            "x" * 5_000,
            "../../etc/passwd",
            "~",
            "9" * 5_000,
        ]
    ),
    UNICODE,
)
ADMIN_FIELDS = {
    "lora_name": NAMES, "lora_path": st.one_of(TEXTS, one_of_these(["ink", "ink/1", "/etc/passwd",
    "file:///etc", "s3://x/y", "\0", "~x/y"])),
    "load_inplace": VALUES, "lora_int_id": VALUES,
}  # fmt: skip


@pytest.fixture(scope="module")
def routes(service: str) -> list[tuple[str, str]]:
    """Return method and path of each route, and of some that do not exist."""
    paths = httpx.get(f"{service}/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    others = [(method, "/generate") for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "FOO")]
    return [
        *found,
        *others,
        ("GET", "/{nothing}"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("HEAD", "/healthz"),
        ("OPTIONS", "*"),
    ]


@st.composite
def requests(draw: st.DrawFn, routes: list[tuple[str, str]]) -> WireRequest:
    """Return a request to a route with strange path parts, a strange query, up to three strange headers, a body or none."""
    method, path = draw(st.sampled_from(routes))
    safe = draw(st.sampled_from(["", "/"]))
    target = re.sub(r"\{\w+\}", lambda _: quote(draw(PARTS), safe=safe), path)
    target += draw(
        one_of_these(
            [
                "",
                "",
                "",
                "?",
                "?a=1&a=2",
                "?%ff=%00&",
                "?" + "x=1&" * 2_000,
                "/",
                "//",
                "/%2e%2e",
                "#a",
                "?a=" + "%" * 90,
            ]
        )
    )
    body = (
        b""
        if method in ("GET", "HEAD")
        else draw(st.one_of(st.just(b""), json_bytes(changed({"lora_name": "ink"}, ADMIN_FIELDS)), RAW_JSON))
    )
    headers = [(b"Authorization", f"Bearer {ADMIN_KEY}".encode())] if draw(st.booleans()) else []
    headers += draw(st.lists(HEADERS, max_size=3))
    return WireRequest(method=method, target=target.encode("ascii", "replace"), headers=headers, body=body)


def test_no_route_answers_with_500(service: str, loop_clock: Clock, routes: list[tuple[str, str]]) -> None:
    statuses = set()

    def ask(request: WireRequest) -> None:
        try:
            statuses.add(check(service, request).status)
        except TimeoutError:  # an announced body is missing
            assert _waits_for_more(request)

    try_all("routes of the service", ask, requests(routes), cases=120, clock=loop_clock)
    assert {200, 400, 404} <= statuses


def _waits_for_more(request: WireRequest) -> bool:
    fields = [(name.lower(), value) for name, value in request.headers]
    return any((name == b"content-length" and value > b"0") or name == b"transfer-encoding" for name, value in fields)
