"""Whatever is sent to the endpoints that draw, the answer is one of those that are documented, in its shape; never a 500."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DRAWN = {200, 202}
REFUSED = {400, 404, 413, 422, 429}
ENDPOINTS = ("/generate", "/v1/images/generations")

TEXTS = st.one_of(
    st.text(max_size=40), st.sampled_from(["", "a cat", "一只猫", "\x00", "\ud800", "'", "“猫", "x" * 5_000])
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 1, 2, 64, 65, 128, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0])
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.one_of(st.sampled_from(["ink", "ink@1", "ink@", "@", "../../etc/passwd", "embedded", "a" * 300]), TEXTS)
LIKELY = {
    "prompt": TEXTS,
    "negative_prompt": TEXTS,
    "width": st.sampled_from([64, 100, 128, 2**20, 0]),
    "height": st.sampled_from([64, 128.0, "64", -64]),
    "size": st.sampled_from(["64x64", "64×64", "0x0", "99999x99999", "auto", "x", "64x64x64"]),
    "steps": st.sampled_from([1, 0, 101, 10**9, 1.0]),
    "guidance_scale": st.sampled_from([0, 1, 30, 31, float("nan"), float("inf"), "4"]),
    "seed": st.sampled_from([0, 2**63 - 1, 2**63, -1, 1.5]),
    "num_images": st.sampled_from([1, 2, 0, 10**6]),
    "n": st.sampled_from([1, 2, 0, 10**6]),
    "cfg_renorm": st.booleans(),
    "rewrite_prompt": st.booleans(),
    "adapters": st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"scale": NUMBERS}), max_size=5),
    "model": NAMES,
    "stream": st.booleans(),
    "previews": st.booleans(),
    "partial_images": st.integers(-1, 4),
    "async": st.booleans(),
    "webhook_url": st.sampled_from(["http://127.0.0.1/x", "http://[", "file:///etc/passwd", "http://a:b@c/"]),
    "timeout_seconds": st.sampled_from([0, 0.001, 5, 1e9]),
    "output_format": st.sampled_from(["png", "jpeg", "webp", "gif"]),
    "response_format": st.sampled_from(["binary", "json", "b64_json", "url"]),
    "background": st.sampled_from(["auto", "transparent"]),
}
OURS, OPENAIS = (
    {"width", "height", "num_images", "previews", "async", "webhook_url"},
    {"size", "n", "model", "partial_images"},
)


@st.composite
def bodies(draw: st.DrawFn, endpoint: str) -> dict[str, Any]:
    """A small picture, with a few fields as somebody might get them wrong, or a program that has gone mad."""
    foreign = OURS if endpoint.startswith("/v1/") else OPENAIS
    names = st.lists(st.sampled_from(sorted(LIKELY.keys() - foreign)), max_size=3, unique=True)
    body: dict[str, Any] = {"prompt": "a cat", "steps": 1}
    for name in draw(names):
        body[name] = draw(st.one_of(LIKELY[name], LIKELY[name], LIKELY[name], ANYTHING))
    if draw(st.integers(0, 9)) == 0:
        body[draw(TEXTS)] = draw(ANYTHING)
    return body


RAW = st.one_of(
    st.binary(max_size=200),
    ANYTHING.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 5_000, b'{"prompt": ' * 2_000, b'{"prompt": "a", "prompt": 1}', b"\xef\xbb\xbf{}", b"NaN"]),
)


def check(client: httpx.Client, endpoint: str, content: bytes, **headers: str) -> httpx.Response:
    reply = client.post(endpoint, content=content, headers={"Content-Type": "application/json", **headers})
    # 504: a time was asked for that is too short.
    assert reply.status_code in DRAWN | REFUSED | {504}, (content, reply.text)
    if reply.status_code not in DRAWN:
        error = reply.json()["error"]
        assert error["message"]
        assert "Traceback" not in error["message"]
        assert ("type" in error) == endpoint.startswith("/v1/")
    elif reply.headers["content-type"].startswith("text/event-stream"):
        last = [line for line in reply.text.splitlines() if line.startswith("event: ")][-1]
        assert last.removeprefix("event: ") in {"result", "error", "image_generation.completed"}
    return reply


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_request_is_answered_with_500(client: httpx.Client, endpoint: str) -> None:
    statuses = set()

    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(bodies(endpoint))
    def ask(body: dict[str, Any]) -> None:
        statuses.add(check(client, endpoint, json.dumps(body).encode()).status_code)

    ask()
    assert statuses & DRAWN, "nothing was drawn: what is sent is too wild to get beyond the first check"
    assert statuses & REFUSED


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_bytes_are_answered_with_500(client: httpx.Client, endpoint: str) -> None:
    @settings(max_examples=100)
    @given(RAW, st.sampled_from(["application/json", "text/plain", "", "multipart/form-data; boundary=x"]))
    def ask(content: bytes, kind: str) -> None:
        check(client, endpoint, content, **{"Content-Type": kind})

    ask()


def test_no_job_or_model_name_is_answered_with_500(client: httpx.Client) -> None:
    @settings(max_examples=60)
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
    def ask(name: str) -> None:
        quoted = httpx.QueryParams({"": name}).__str__().removeprefix("=").replace("+", "%20")
        for path in (f"/v1/jobs/{quoted}", f"/v1/jobs/{quoted}/result", f"/v1/models/{quoted}"):
            assert client.get(path).status_code in {200, 307, 404, 405}, path

    ask()
