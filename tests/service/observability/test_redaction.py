"""Text from clients never gets into logs or traces, whatever the request's outcome."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from longcat.model.flavour import Flavour
from service.config import ServiceConfig
from tests.conftest import RunningServer, serve
from tests.longcat.test_logs import lines
from tests.service.http.in_process import http_client
from tests.service.observability.test_tracing import Collector

SECRET = "Xylophon"
LONG = f"{SECRET} " * 200
BODIES: tuple[Any, ...] = (
    {"prompt": SECRET, "steps": 1},
    {"prompt": SECRET, "negative_prompt": SECRET, "steps": 1, "stream": True},
    {"prompt": SECRET, "steps": 1, "async": True},
    {"prompt": LONG},
    {"prompt": "a cat", "negative_prompt": LONG, "stream": True},
    {"prompt": f"'{SECRET}'" * 100, "async": True},
    {"prompt": SECRET, "steps": 0},
    {"prompt": SECRET, "rewrite_prompt": True},
    {"promt": SECRET},
    {SECRET: 1},
    {"prompt": {"text": SECRET}},
    {"prompt": [SECRET] * 50},
    {"prompt": "a cat", **{f"{SECRET}{i}": SECRET for i in range(100)}},
    {"prompt": "a cat", "width": SECRET},
    {"prompt": "a cat", "output_format": SECRET},
    {"prompt": "a cat", "size": SECRET, "model": SECRET},
    {"prompt": "a cat", "model": SECRET},
    {"prompt": "a cat", "adapters": [{"name": f"{SECRET} please"}]},
    {"prompt": "a cat", "adapters": [SECRET]},
    {"prompt": "a cat", "adapters": [{"name": "a", SECRET: 1}]},
    {"prompt": "a cat", "async": True, "webhook_url": f"http://{SECRET}/"},
    {"prompt": SECRET, "timeout_seconds": 0.0001},
    f'{{"prompt": "{SECRET}',
    f'{{"prompt": "{SECRET}"}} {SECRET}',
    f'{{"prompt": "\\ud800{SECRET}"}}',
    f'["{SECRET}"]',
    f'"{SECRET}"',
    SECRET,
)


def content(body: Any) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("redaction")
    with serve(folder, "--adapters", (folder / "adapters").as_uri(), "--otlp-endpoint", collector.url) as running:
        yield running


def test_no_prompt_is_in_the_log_or_in_a_trace(traced: RunningServer, collector: Collector) -> None:
    ids = {}
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        for path in ("/generate", "/v1/images/generations"):
            for body in BODIES:
                reply = client.post(path, content=content(body))
                assert reply.status_code < 500 or reply.status_code == 504, reply.text
                ids[reply.headers["X-Request-Id"]] = (path, str(body)[:80], reply.status_code)
    assert traced.stop() == 0  # all spans are sent
    assert len(collector.spans) >= len(ids)
    assert not [span for span in collector.spans if SECRET.lower() in str(span).lower()]
    log = traced.log_text()
    assert SECRET.lower() not in log.lower()
    told = {
        line["request_id"]
        for line in lines("\n".join(line for line in log.splitlines() if line.startswith("{")))
        if str(line.get("event")).startswith("request_")
    }
    assert not {identity: request for identity, request in ids.items() if identity not in told}


@pytest.mark.parametrize("log_prompts", [False, True])
def test_an_option_logs_prompts(flavour: Flavour, caplog: pytest.LogCaptureFixture, log_prompts: bool) -> None:
    async def ask() -> None:
        async with http_client(flavour, ServiceConfig(model={}, log_prompts=log_prompts)) as client:
            for body in ({"prompt": LONG, "steps": 0}, {"prompt": SECRET, "promt": SECRET, "guidance_scale": 99}):
                assert (await client.post("/generate", json=body)).status_code == 422
            assert (await client.post("/generate", json={"prompt": LONG})).status_code == 422

    caplog.set_level(logging.INFO, logger="lithograph")
    asyncio.run(ask())
    wrong_steps, unknown, too_long = (record.__dict__["fields"]["message"] for record in caplog.records)
    assert wrong_steps == "steps = 0: too small; give at least 1"
    if log_prompts:
        assert f"promt = {SECRET}: unknown field; did you mean 'prompt'?" in unknown
        assert too_long.startswith(f"prompt = {SECRET} ")
    else:
        assert unknown == (
            "guidance_scale = 99: too large; give at most 30. … = …: unknown field; did you mean 'prompt'?"
        )
        assert too_long.startswith("prompt = …: has ")
