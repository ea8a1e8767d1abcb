"""No body blocks the event loop: neither its parsing, nor its validation, nor the error reply."""

import asyncio
import itertools
import json
import string
import time
from typing import Any

import httpx
import pytest

from longcat.model.flavour import Flavour
from service.config import ServiceConfig
from tests.conftest import RunningServer
from tests.service.http.in_process import http_client

KEY = {"Authorization": "bearer secret"}
NAMES = ["".join(letters) for letters in itertools.product(string.ascii_letters, repeat=3)][:6_000]
MANY_FIELDS = json.dumps(dict.fromkeys(NAMES, 1))
LONG = [
    '"' + "a" * 61_000 + '"',
    "' " + "a'" * 25_000,
    "'a '" * 14_000,
    "1" * 61_000,
    " " * 61_000 + "a",
    "“" + "猫" * 20_000 + "”",
]


def generating(**fields: Any) -> tuple[tuple[str, str], ...]:
    content = json.dumps({"prompt": "a", **fields}, ensure_ascii=False)
    return (("/generate", content), ("/v1/images/generations", content))


HOSTILE = (
    *itertools.chain.from_iterable(generating(prompt=prompt) for prompt in LONG),
    *itertools.chain.from_iterable(generating(negative_prompt=prompt) for prompt in LONG),
    *generating(prompt=LONG[0], rewrite_prompt=True),
    *generating(prompt=[1] * 15_000),
    *generating(adapters=[1] * 15_000),
    *generating(adapters=[{}] * 15_000),
    *generating(adapters=[{"name": "ink"}] * 3_500),
    *generating(webhook_url="http://a" + "\u0301\u0323" * 10_000),
    *generating(model="a" * 60_000),
    *((path, MANY_FIELDS) for path in ("/generate", "/v1/images/generations", "/v1/load_lora_adapter")),
    ("/generate", f'{{"prompt": "a", "adapters": [{MANY_FIELDS}]}}'),
    ("/generate", '{"prompt":' + "[" * 30_000),
    ("/generate", '{"prompt":' + "[" * 800 + "]" * 800 + "}"),
    ("/generate", '{"a":' * 10_000 + "1" + "}" * 10_000),
    ("/generate", '{"' + "a" * 60_000 + '": 1}'),
    ("/generate", '{"prompt": "a", "width": ' + "9" * 60_000 + "}"),
    ("/generate", '{"prompt": "a", "guidance_scale": 99.' + "3" * 60_000 + "}"),
    ("/v1/load_lora_adapter", json.dumps({"lora_name": "ink", "lora_path": "/a" * 30_000})),
)
LONGEST_SECONDS = 0.05
"""Limit of CPU time, so that other programs on this machine do not count. It used to be up to 6 s."""


def test_no_callback_of_the_event_loop_takes_long(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begin = time.thread_time()
        run(handle)
        spent.append(time.thread_time() - begin)

    async def ask() -> None:
        async with http_client(flavour, ServiceConfig(model={}, access={"admin_key": "secret"})) as client:
            await client.post("/generate", content="{", headers=KEY)  # one-time work, such as imports, does not count
            for path, content in HOSTILE[:2] + HOSTILE[-1:]:  # one-time work, such as imports, does not count
                await client.post(path, content=content.encode(), headers=KEY)
            monkeypatch.setattr(asyncio.Handle, "_run", timed)
            for path, content in HOSTILE:
                spent.clear()
                reply = await client.post(path, content=content.encode(), headers=KEY)
                assert reply.status_code in (400, 404, 422), (path, content[:60], reply.text[:200])
                assert max(spent) < LONGEST_SECONDS, (path, content[:60], max(spent))

    with asyncio.Runner(
        loop_factory=asyncio.SelectorEventLoop
    ) as runner:  # not uvloop, whose callbacks cannot be timed
        runner.run(ask())


def test_healthz_answers_while_eight_clients_send_hostile_prompts(server: RunningServer) -> None:
    waited: list[float] = []

    async def ask() -> None:
        content = json.dumps({"prompt": LONG[0]})
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await client.get("/healthz")
            hostile = asyncio.gather(*(client.post("/generate", content=content) for _ in range(8)))
            while not hostile.done() or not waited:
                begin = time.monotonic()
                assert (await client.get("/healthz")).is_success
                waited.append(time.monotonic() - begin)
            assert {reply.status_code for reply in await hostile} == {422}

    asyncio.run(ask())
    assert max(waited) < 2, "a probe of Kubernetes waits for 1 s by default; before, this took 22 s and more"
