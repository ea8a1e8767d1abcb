"""Paths: a prefix, trailing slashes, HEAD, OPTIONS, and other origins, on a real server."""

import http.client
import re
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest

from longcat.errors import ConfigError
from service.http.edge.settings import HttpConfig
from tests.conftest import RunningServer, serve

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 1}
ORIGIN = "https://studio.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client of a server that a proxy publishes below /draw, with an allowed origin."""
    folder = tmp_path_factory.mktemp("published")
    with (
        serve(folder, "--root-path", "/draw/", "--cors-origin", ORIGIN) as running,
        httpx.Client(base_url=running.url, timeout=60) as session,
    ):
        yield session


@pytest.mark.parametrize("prefix", ["", "/draw"], ids=["proxy removes it", "proxy keeps it"])
def test_addresses_carry_the_prefix(published: httpx.Client, prefix: str) -> None:
    reply = published.post(f"{prefix}/generate", json=APPLE | {"async": True})
    assert reply.status_code == 202
    location = reply.headers["location"]
    assert location == f"/draw/v1/jobs/{reply.json()['id']}"
    deadline = time.monotonic() + 60
    while (job := published.get(location).json())["status"] != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert job["result_url"] == f"{location}/result"
    assert published.get(job["result_url"]).headers["content-type"] == "image/png"


@pytest.mark.parametrize("prefix", ["", "/draw"])
@pytest.mark.parametrize("page", ["/docs", "/docs/"])
def test_the_docs_page_finds_its_files_and_the_schema_names_the_prefix(
    published: httpx.Client, prefix: str, page: str
) -> None:
    front = published.get(f"{prefix}/")
    assert (front.status_code, front.headers["location"]) == (307, "/draw/docs")
    shown = published.get(prefix + page)
    files = re.findall(r"""(?:src|href|url)['"]?[=:] ?['"](\.[^'"]+)""", shown.text)
    assert len(files) == 4, shown.text
    for file in files:
        assert published.get(httpx.URL(str(shown.url)).join(file)).status_code == 200, file
    assert published.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/draw"}]


def test_the_prefix_alone_is_the_front_page(published: httpx.Client) -> None:
    assert published.get("/draw").headers["location"] == "/draw/docs"
    assert published.get("/drawing").status_code == 404


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/v1/info", "/v1/models", "/docs", "/openapi.json"]
)
def test_head_is_answered_as_get_without_a_body(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/jobs/none").status_code == 404


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", "GET, HEAD, OPTIONS"),
        ("/generate", "POST, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/v1/jobs/x", "GET, DELETE, HEAD, OPTIONS"),
        ("/v1/adapters/x", "DELETE, OPTIONS"),
        ("/docs-assets/swagger-ui.css", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_and_405_name_every_method_of_a_path(client: httpx.Client, path: str, allowed: str) -> None:
    options = client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
    assert "access-control-allow-origin" not in client.options(path, headers={"Origin": ORIGIN}).headers
    refused = client.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    error = refused.json()["error"]
    assert (error["code"], error["request_id"]) == ("method_not_allowed", refused.headers["x-request-id"])


def test_options_of_the_whole_server_and_of_no_path(server: RunningServer) -> None:
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as connection:
        for target, status in (("*", 204), ("/nowhere", 404)):
            connection.request("OPTIONS", target)
            reply = connection.getresponse()
            assert (reply.status, reply.read()[:9]) == (status, b"" if status == 204 else b'{"error":')


@pytest.mark.parametrize("target", ["/healthz/", "/healthz//", "http://elsewhere.example/healthz", "/healthz?"])
def test_forms_of_an_address_that_clients_send(server: RunningServer, target: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as connection:
        connection.request("GET", target)
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, b'{"status":"ok"}')


def test_a_trailing_slash_makes_no_difference_to_a_post(client: httpx.Client) -> None:
    assert client.post("/generate/", json=APPLE).content == client.post("/generate", json=APPLE).content


def test_pages_of_an_allowed_origin_may_send_and_read(published: httpx.Client) -> None:
    preflight = published.options("/generate", headers={"Origin": ORIGIN} | PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "content-type,authorization"
    assert "x-request-id" in preflight.headers
    for body, status in ((APPLE, 200), ({}, 422), (APPLE | {"async": True}, 202), ("x" * 70_000, 413)):
        reply = published.post("/generate", headers={"Origin": ORIGIN}, json=body)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, ORIGIN)
        exposed = reply.headers["access-control-expose-headers"].split(", ")
        assert {"X-Request-Id", "Location", "Retry-After"} <= set(exposed)
        assert "Origin" in reply.headers["vary"]


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": f"{ORIGIN}.evil"}]
)
def test_pages_of_other_origins_may_not(published: httpx.Client, headers: dict[str, str]) -> None:
    for reply in (
        published.options("/generate", headers=headers | PREFLIGHT),
        published.post("/generate", headers=headers, json={}),
    ):
        assert reply.status_code in (204, 422)
        assert "access-control-allow-origin" not in reply.headers
        assert "access-control-allow-methods" not in reply.headers


def test_a_method_that_no_page_may_use_is_not_allowed(published: httpx.Client) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "TRACE"}
    assert "access-control-allow-methods" not in published.options("/generate", headers=asked).headers


@pytest.mark.parametrize(
    "fields",
    [
        {"root_path": "draw"},
        {"root_path": "/a b"},
        {"root_path": "//evil.example"},
        {"root_path": "/draw\n"},
        {"cors_origins": ("studio.example",)},
        {"cors_origins": ("https://studio.example/page",)},
        {"cors_origins": ("null",)},
        {"cors_origins": ("https://studio.example\n",)},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        HttpConfig(**fields)
