"""Invalid bodies: the problems in the reply, and its length."""

import codecs
import gzip
import json
import time
import zlib
from typing import Any

import httpx
import pytest

from longcat.errors import UserError
from service.http.requests.json_body import parse_json
from tests.conftest import RunningServer
from tests.service.http.replies import APPLE, problem

ENDPOINTS = ("/generate", "/v1/images/generations")
NUMBERS = {
    "/generate": ("width", "height", "steps", "num_images", "seed", "guidance_scale", "timeout_seconds"),
    "/v1/images/generations": ("n", "steps", "seed", "guidance_scale", "timeout_seconds", "partial_images"),
    "/v1/unload_lora_adapter": ("lora_int_id",),
}
IMPOSSIBLE = (
    "1" + "0" * 399 + "1", "-1" + "0" * 400, "9" * 4300, "9" * 4301, "-" + "9" * 60_000, "1e400", "-1e400", "NaN",
    "1e99999999", "1" * 308, "9" * 309,
)  # fmt: skip


def body_with(field: str, number: str) -> bytes:
    prompt = '"lora_name": "ink"' if field == "lora_int_id" else '"prompt": "a cat"'
    return f'{{{prompt}, "{field}": {number}}}'.encode()


@pytest.mark.parametrize(("endpoint", "field"), [(path, field) for path, fields in NUMBERS.items() for field in fields])
def test_a_number_that_no_field_takes_is_refused_by_the_name_of_its_field(
    client: httpx.Client, endpoint: str, field: str
) -> None:
    for number in IMPOSSIBLE:
        reply = client.post(endpoint, content=body_with(field, number))
        if field == "lora_int_id" and number.isdecimal() and len(number) <= 308:
            assert reply.status_code == 404  # the number has no effect: there is no adapter storage
            continue
        assert reply.status_code == (422 if endpoint == "/generate" else 400), (number[:20], reply.text)
        error = reply.json()["error"]
        expected = {"n": "num_images"}.get(field, field) if endpoint == "/generate" else field
        assert error["message"].startswith(f"{expected} = "), (number[:20], reply.text)
        assert len(reply.content) < 3_000


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a cat", "prompt": "a dog"}',
        b'{"prompt": "a cat", "pro\\u006dpt": "a cat"}',
        b'{"prompt": "a cat", "adapters": [{"name": "a", "name": "b"}]}',
        b'{"prompt": "a cat", "more": {"seed": 1, "seed": 1}}',
    ],
)
def test_a_field_given_twice_is_refused(client: httpx.Client, content: bytes) -> None:
    for path, status in {"/generate": 422, "/v1/tokens": 422, "/v1/images/generations": 400}.items():
        reply = client.post(path, content=content)
        assert reply.status_code == status
        assert reply.json()["error"]["message"].startswith("body: has the field ")
        assert reply.json()["error"]["message"].endswith(" twice; give it once")


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a", "adapters": [' + b"1," * 60_000 + b"1]}",
        b"{" + b",".join(b'"f%d":1' % i for i in range(10_001)) + b"}",
        b"[" + b"," * 60_000,
    ],
    ids=["items", "fields", "commas"],
)
def test_more_values_than_a_request_has_are_not_checked_one_by_one(content: bytes) -> None:
    """Two million unknown fields, on a server that takes 32 MiB, silenced it for 40 s."""
    begin = time.process_time()
    with pytest.raises(UserError, match="body: has more values than any request; send the fields of one request"):
        parse_json(content)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("number", ["-0", "-0.0", "0.0"])
def test_zero_has_no_sign(client: httpx.Client, number: str) -> None:
    assert client.post("/generate", content=f'{{"prompt": "a cat", "steps": 1, "seed": {number}}}').status_code == (
        200 if number == "-0" else 422
    )
    content = f'{{"prompt": "a cat", "steps": 1, "guidance_scale": {number}}}'
    assert client.post("/generate", content=content).status_code == 200


@pytest.mark.parametrize("scale", IMPOSSIBLE)
def test_an_impossible_scale_of_an_adapter_is_refused(client: httpx.Client, scale: str) -> None:
    content = f'{{"prompt": "a cat", "adapters": [{{"name": "ink", "scale": {scale}}}]}}'
    assert problem(client.post("/generate", content=content), "adapters.0.scale")


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/jobs/{}/result", "/v1/models/{}", "/v1/models/ink@{}"])
@pytest.mark.parametrize("digits", [300, 5_000, 12_000])
def test_a_long_number_in_a_path_is_not_found_in_few_words(client: httpx.Client, path: str, digits: int) -> None:
    reply = client.get(path.format("9" * digits))
    assert reply.status_code == 404
    assert len(reply.content) < 1_500


def test_a_long_path_or_query_is_not_repeated(client: httpx.Client) -> None:
    reply = client.get("/" + "a" * 8_000, params={"width": "9" * 5_000})
    assert reply.status_code == 404
    assert len(reply.content) < 10_000


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=" + "9" * 5_000,
        "application/openmetrics-text; version=x; q=x; escaping=x",
        "text/plain; version=..; escaping=",
        ",;=,;" * 1_000,
    ],
)
def test_metrics_are_text_for_an_accept_header_that_means_nothing(client: httpx.Client, accept: str) -> None:
    reply = client.get("/metrics", headers={"Accept": accept})
    assert reply.status_code == 200
    assert "lithograph_ready" in reply.text


@pytest.mark.parametrize(
    ("endpoint", "body", "hidden"),
    [
        ("/generate", {"prompt": "a cat", **{f"f{i}": 1 for i in range(5_000)}}, 4_980),
        ("/v1/images/generations", {f"field_{i}": 1 for i in range(2_000)}, 1_981),
        ("/generate", {"prompt": "a cat", "adapters": [{f"f{i}": 1 for i in range(4_000)}]}, 3_981),
        ("/v1/unload_lora_adapter", {f"field_{i}": 1 for i in range(3_000)}, 2_980),
    ],
)
def test_a_reply_lists_twenty_problems_and_counts_the_rest(
    client: httpx.Client, server: RunningServer, endpoint: str, body: dict[str, Any], hidden: int
) -> None:
    before = len(server.log_text())
    reply = client.post(endpoint, json=body)
    error = reply.json()["error"]
    assert error["message"].endswith(f"and {hidden} more")
    assert len(reply.content) < 20_000
    if endpoint == "/generate":
        assert len(error["problems"]) == 21
        assert error["problems"][-1] == {
            "code": "more_problems", "field": "", "value": None, "problem": f"and {hidden} more", "remedy": "",
            "details": {"count": hidden},
        }  # fmt: skip
    assert len(server.log_text()) - before < 10_000


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("item", [1, {}, {"name": "ink"}, []])
def test_a_list_of_too_many_adapters_is_one_problem(client: httpx.Client, endpoint: str, item: object) -> None:
    reply = client.post(endpoint, json={"prompt": "a cat", "adapters": [item] * 4_000})
    assert "adapters = " in reply.json()["error"]["message"]
    assert "too many; give at most 4" in reply.json()["error"]["message"]
    assert len(reply.content) < 1_500


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["x"] * 12_000},
        {"prompt": {"x" * 20_000: "y" * 20_000}},
        {"prompt": "a cat", "x" * 60_000: 1},
        {"prompt": "a cat", "output_format": "x" * 60_000},
        {"prompt": "a cat", "adapters": [{"name": "x" * 60_000}]},
        {"prompt": "x" * 60_000, "negative_prompt": "y"},
        {"prompt": "a cat", "async": True, "webhook_url": "http://" + "x" * 60_000},
        {"prompt": "a cat", "async": True, "webhook_url": "http://a" + "\u0323\u0301" * 4_000},
    ],
)
def test_of_a_long_value_or_name_200_characters_are_repeated(client: httpx.Client, body: dict[str, Any]) -> None:
    reply = client.post("/generate", content=json.dumps(body, ensure_ascii=False).encode())
    assert reply.status_code == 422
    for found in reply.json()["error"]["problems"]:
        assert len(found["field"]) <= 200
        assert len(found["value"] or "") <= 200
    assert len(reply.content) < 5_000


@pytest.mark.parametrize(
    "body",
    [
        {"model": "x" * 60_000, "prompt": "a cat"},
        {"prompt": "a cat", "size": "9" * 60_000},
        {"prompt": 1, "n": "x" * 60_000},
    ],
)
def test_of_a_long_value_little_is_repeated_in_openais_shape(client: httpx.Client, body: dict[str, Any]) -> None:
    reply = client.post("/v1/images/generations", json=body)
    assert reply.status_code in (400, 404)
    assert len(reply.content) < 1_000


@pytest.mark.parametrize("content", [b"[" * 60_000, b'{"a":' * 10_000, b'{"prompt": ' + b"[" * 700 + b"]" * 700 + b"}"])
def test_a_deeply_nested_body_is_refused(client: httpx.Client, content: bytes) -> None:
    reply = client.post("/generate", content=content)
    assert reply.status_code in (400, 422)
    assert len(reply.content) < 1_500


def test_a_byte_order_mark_is_skipped(client: httpx.Client) -> None:
    for endpoint in ENDPOINTS:
        content = codecs.BOM_UTF8 + json.dumps({"prompt": "a cat", "steps": 1}).encode()
        assert client.post(endpoint, content=content).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_another_encoding_is_named(client: httpx.Client, encoding: str) -> None:
    reply = client.post("/generate", content=json.dumps(APPLE).encode(encoding))
    assert reply.status_code == 400
    message = f"the body is encoded in {encoding[:6].upper()}; send JSON in UTF-8"
    assert reply.json()["error"]["message"] == message


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_declared_encoding_is_believed_for_text_beyond_ascii(client: httpx.Client, endpoint: str) -> None:
    """In GBK, 一只猫 is the UTF-8 of three other characters, of which a picture was made."""
    content = '{"prompt": "一只猫", "steps": 1}'.encode("gbk")
    content.decode("utf-8")
    reply = client.post(endpoint, content=content, headers={"Content-Type": "application/json; charset=GBK"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "the body is encoded in gbk; send JSON in UTF-8"
    plain, chinese = json.dumps({"prompt": "a cat", "steps": 1}), '{"prompt": "一只猫", "steps": 1}'
    for text, charset in ((plain, "iso-8859-1"), (plain, "?"), (chinese, "UTF8"), (chinese, '"utf-8"')):
        headers = {"Content-Type": f"application/json; charset={charset}"}
        assert client.post(endpoint, content=text.encode(), headers=headers).status_code == 200, charset


@pytest.mark.parametrize("choice", ["1", "true", "null", '["ink"]', "1.5"])
def test_an_adapter_that_is_neither_name_nor_object_is_told_of_both(client: httpx.Client, choice: str) -> None:
    reply = client.post("/generate", content=f'{{"prompt": "a cat", "adapters": [{choice}]}}')
    remedy = 'neither the name of an adapter nor a JSON object; give "ink" or {"name": "ink", "scale": 0.8}'
    assert reply.status_code == 422
    assert reply.json()["error"]["message"].startswith("adapters.0")
    assert reply.json()["error"]["message"].endswith(remedy)


def test_bytes_of_an_older_encoding_are_pointed_at(client: httpx.Client) -> None:
    reply = client.post("/generate", content='{"prompt": "café"}'.encode("latin-1"))
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "the body is not UTF-8 at byte 15; send JSON in UTF-8"


@pytest.mark.parametrize(
    ("content", "headers", "compression"),
    [
        (gzip.compress(b"{}", mtime=0), {}, "gzip"),
        (gzip.compress(b"{}", mtime=0), {"Content-Encoding": "gzip"}, "gzip"),
        (zlib.compress(b"{}"), {}, "deflate"),
        (zlib.compress(b"{}", 9), {"Content-Encoding": "deflate"}, "deflate"),
        (b"\x28\xb5\x2f\xfd\x00", {}, "zstd"),
        (b"\x0b\x01\x80", {"Content-Encoding": "br"}, "br"),
        (b"\x0b\x01\x80", {"Content-Encoding": "GZIP, br"}, "gzip, br"),
    ],
)
def test_a_compressed_body_is_named(
    client: httpx.Client, content: bytes, headers: dict[str, str], compression: str
) -> None:
    for endpoint in ENDPOINTS:
        reply = client.post(endpoint, content=content, headers=headers)
        assert reply.status_code == 400
        message = reply.json()["error"]["message"]
        assert message == f"the body is compressed ({compression}); send it as it is, without Content-Encoding"


def test_an_encoding_that_changes_nothing_is_taken(client: httpx.Client) -> None:
    reply = client.post("/generate", json=APPLE, headers={"Content-Encoding": "identity"})
    assert reply.status_code == 200
