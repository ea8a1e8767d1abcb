"""All routes of the studio, read from the app, with strange paths, fields, files, bodies and headers: never a 500."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
from hypothesis import strategies as st

from longcat.model.flavour import Flavour
from tests.fuzz.asgi import Answer
from tests.fuzz.cases import try_all
from tests.fuzz.filled_studio import Studio, known, routes
from tests.fuzz.values.pictures import png, zipped
from tests.fuzz.values.strange import NUMBERS, RAW_JSON, TEXTS, UNICODE, broken, one_of_these

_LOOP_SECONDS = 1.0


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, flavour: Flavour) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("studio")
    (home / "root").mkdir()
    made = Studio(home, flavour)
    yield made
    made.context.training.close()
    made.client.close()


PATHS = one_of_these([
    ".", "..", "~", "~nosuchuser/x", "/", "/etc/passwd", "\0", "a\0b", "x" * 5_000, "%00", "../../etc/passwd", "a.png", "file:///etc/passwd",
    "\\", "s3://bucket/x", "/proc/self/mem", "/dev/zero", "a.png/", "./a.png", "A.PNG", "a.txt", "sub/../a.png", "*", "?",
])  # fmt: skip
LITERALS = one_of_these(
    [
        "1",
        "0",
        "-1",
        "9" * 5_000,
        "1e3",
        "NaN",
        "true",
        "on",
        "",
        "null",
        "٣",
        "embedded",
        "final",
        "textfile",
        "queued",
    ]
)
FILES = st.one_of(
    st.just(png()),
    st.just(zipped([("a.png", png()), ("a.txt", b"a cat")])),
    broken(st.just(zipped([("a.png", png()), ("b/c.png", png())]))),
    RAW_JSON,
    st.binary(max_size=60),
)
FILE_NAMES = one_of_these(
    [
        "a.png",
        "z.zip",
        "config.json",
        "x.safetensors",
        "adapter_config.json",
        "",
        "../a.png",
        "a\r\nb.png",
        "一.txt",
        '"',
        "\0",
    ]
)
HEADERS = one_of_these([
    (b"hx-request", b"true"), (b"accept", b"text/html"), (b"accept-language", b"zh;q=nan"),
    (b"accept-language", b"zh;q=1e999,en;q=x,;q="),
    (b"cookie", b"language=zh; theme=dark; studio=x"), (b"cookie", b"\xff=\xfe;;=="), (b"cookie",
    b"language=" + b"x" * 5_000),
    (b"referer", b"http://[::1"), (b"referer", b"\xff"), (b"content-length", b"9" * 5_000), (b"content-length",
    b"-1"), (b"range", b"bytes=9-1,x"),
    (b"range", b"bytes=0-0,1-1,2-2"), (b"if-none-match", b'"\xff"'), (b"authorization", b"bearer \xff"),
    (b"sec-fetch-site", b"none"),
    (b"if-modified-since", b"Thu, 99 Foo 99999 99:99:99 GMT"), (b"origin", b"http://127.0.0.1:8001"),
    (b"x-forwarded-proto", b"\xff"),
    (b"hx-current-url", b"http://["), (b"if-range", b"x"), (b"accept-encoding", b"gzip;q=x"),
])  # fmt: skip
BOUNDARIES = one_of_these([b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=x",
                           b"multipart/form-data; boundary=" + b"x" * 500,
                           b"application/x-www-form-urlencoded; charset=utf-7",
                           b"application/json", b"\xff", b"text/plain"])  # fmt: skip


@st.composite
def requests(draw: st.DrawFn, studio: Studio) -> tuple[str, bytes, list[tuple[bytes, bytes]], bytes]:
    """Return method, target, headers and body of a request to one of the routes."""
    method, path = draw(st.sampled_from(studio.routes))
    values = known(studio)

    def value(name: str) -> str:
        right = one_of_these(values.get(name, ["1"]))
        return draw(st.one_of(right, right, right, UNICODE, PATHS, LITERALS, NUMBERS.map(str)))

    target = re.sub(
        r"\{(\w+)(:\w+)?\}", lambda part: quote(value(part[1]), safe=draw(st.sampled_from(["", "/"]))), path
    )
    names = draw(st.lists(st.sampled_from(studio.fields), max_size=5))
    names += draw(
        st.lists(st.sampled_from(["path", "key", "name", "prompt", "instance_data_dir", "adapter_name"]), max_size=4)
    )
    pairs = [(name, value(name)) for name in names]
    if method == "GET":
        target += "?" + "&".join(f"{quote_plus(name)}={quote_plus(text)}" for name, text in pairs)
    if draw(st.integers(0, 9)) == 0:
        target += draw(
            one_of_these(
                ["?", "?&&=&", "?path=%ff%fe&key=%00", "?seen[]=1&=x", "#", "//", "/%2e%2e/", "%", "?a=" + "%" * 50]
            )
        )
    headers, body = [(b"host", b"127.0.0.1:8001")], b""
    if method in ("POST", "PUT"):
        kind, body = draw(bodies(pairs))
        headers.append((b"content-type", kind))
    headers += draw(st.lists(HEADERS, max_size=2, unique_by=lambda header: header[0]))
    return method, target.encode("ascii", "replace"), headers, body


@st.composite
def bodies(draw: st.DrawFn, pairs: list[tuple[str, str]]) -> tuple[bytes, bytes]:
    """Return type and content of a form with some fields, with or without files, or broken."""
    data: dict[str, Any] = {}
    for name, text in pairs:
        data.setdefault(name, []).append(text)
    files = [
        (draw(st.sampled_from(["files", "file", "path"])), (draw(FILE_NAMES), draw(FILES)))
        for _ in range(draw(st.sampled_from([0, 0, 1, 2])))
    ]
    request = httpx.Request("POST", "http://x/", data=data, files=files or None)
    content, kind = request.read(), request.headers.get("content-type", "").encode()
    match draw(st.integers(0, 11)):
        case 0:
            content = draw(broken(st.just(content)))
        case 1:
            kind = draw(BOUNDARIES)
        case 2:
            content = draw(
                st.one_of(
                    st.binary(max_size=100), RAW_JSON, TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
                )
            )
    return kind, content


def test_every_route_is_known_and_its_fields_have_values(studio: Studio) -> None:
    names = {name for _, path in routes(studio.app) for name in re.findall(r"\{(\w+)", path)}
    assert names - known(studio).keys() <= {"generation_id", "nothing"}
    assert len(routes(studio.app)) > 50


def check_answer(
    request: tuple[str, bytes, list[tuple[bytes, bytes]], bytes], answer: Answer, log: pytest.LogCaptureFixture
) -> None:
    errors = [record for record in log.records if record.levelno >= logging.ERROR]
    assert not errors, errors[0].exc_info and errors[0].exc_info[1]
    assert answer.status != 500, request
    assert answer.status < 500 or answer.status in (502, 503, 504), request
    assert answer.loop_seconds < _LOOP_SECONDS, f"{answer.loop_seconds:.1f} s on the event loop"
    headers = dict(answer.headers)
    assert b"content-security-policy" in headers
    assert b"traceback" not in answer.body.lower()
    if headers.get(b"content-type", b"").startswith(b"application/json"):
        json.loads(answer.body)
    assert not any(b"\r" in value or b"\n" in value for _, value in answer.headers)


@pytest.mark.heavy
def test_no_request_to_the_studio_is_answered_with_500(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    statuses: set[int] = set()

    def check(request: tuple[str, bytes, list[tuple[bytes, bytes]], bytes]) -> None:
        caplog.clear()
        studio.refill()
        answer = studio.client.send(*request)
        check_answer(request, answer, caplog)
        statuses.add(answer.status)

    try_all("studio", check, requests(studio), cases=150)
    assert {200, 303, 404, 422} <= statuses


def test_pages_are_shown_for_what_names_something(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    values = known(studio)
    for method, path in routes(studio.app):
        if method == "GET" and "{nothing}" not in path and "{generation_id}" not in path:
            target = re.sub(r"\{(\w+)(:\w+)?\}", lambda part: quote(values[part[1]][0]), path)
            answer = studio.client.send(
                "GET", f"{target}?path={quote(str(studio.dataset))}".encode(), [(b"host", b"localhost")], b""
            )
            check_answer((method, target.encode(), [], b""), answer, caplog)
    asyncio.run(asyncio.sleep(0))
