"""Requests, replies and the client, the same for the service and the baseline, which share one JSON format.

Prompts never repeat within a run, so that a cache of prompt embeddings only helps with the empty negative prompt. Requests
ask for uncompressed replies: LitServe gzips by default, and pictures are compressed already.
"""

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

_TIMEOUT_SECONDS = 3600.0
_SUBJECTS = {
    "en": ("apple", "cat", "rocket", "fish", "house", "tree", "star", "flower", "dog", "car", "boat", "book", "bird",
           "cake", "key", "moon", "horse", "guitar", "mushroom", "clock"),
    "zh": ("苹果", "猫", "火箭", "鱼", "房子", "树", "星星", "花", "狗", "汽车", "船", "书", "鸟", "蛋糕", "钥匙", "月亮",
           "马", "吉他", "蘑菇", "时钟"),
}  # fmt: skip
_BACKGROUNDS = {
    "en": ("white", "black", "red", "blue", "green", "yellow", "purple", "orange", "pink", "grey"),
    "zh": ("白色", "黑色", "红色", "蓝色", "绿色", "黄色", "紫色", "橙色", "粉色", "灰色"),
}
_SENTENCES = {
    "en": ("a {0} on a {1} background", "{1} background, one {0}", "draw a {0}, {1} background", "{0} against {1}"),
    "zh": ("一个{0}，{1}背景", "{1}背景，一幅{0}的插画", "画一个{0}，{1}背景", "{0}，{1}背景"),
}


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One request for one picture; equal requests give equal pictures."""

    prompt: str
    seed: int
    steps: int | None
    """None leaves it to the adapter or the model, as for the guidance."""
    guidance_scale: float | None
    size_px: int
    adapter: str | None = None
    """A name, or name@version."""
    quality: str | None = None
    priority: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the body for ``POST /generate``."""
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.size_px,
            "height": self.size_px,
        }
        sampling = {"steps": self.steps, "guidance_scale": self.guidance_scale, "quality": self.quality}
        sampling["priority"] = self.priority
        body |= {name: value for name, value in sampling.items() if value is not None}
        return body if self.adapter is None else body | {"adapters": [{"name": self.adapter, "scale": 1.0}]}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A reply and its times."""

    status: int
    """HTTP status; 0 if the connection failed, with the reason in ``content``."""
    begin_seconds: float
    """Time of sending, by ``time.monotonic``."""
    seconds: float
    """Time from sending to the last byte."""
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        """Return True if the reply is not a picture."""
        return self.status != 200

    @property
    def problem(self) -> str:
        """Return status and beginning of a reply that is not a picture."""
        return f"{self.status}: {self.content[:300].decode(errors='replace')}"


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """One server-sent event."""

    name: str
    data: dict[str, Any]
    at_seconds: float
    """Time of arrival, by ``time.monotonic``."""


class StreamError(Exception):
    """A stream ended without its result; the message is the server's."""


class LoadClient:
    """Connections to one server."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        """``key``: the API key of its requests."""
        authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=_TIMEOUT_SECONDS,
            limits=httpx.Limits(max_connections=None),
            headers={"Accept-Encoding": "identity"} | authorization,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def draw(self, drawing: ImageRequest) -> Reply:
        """Request a picture. A failure is returned as a reply, because a load test counts it."""
        begin = time.monotonic()
        try:
            response = await self._http.post("/generate", json=drawing.body())
        except httpx.HTTPError as error:
            seconds = time.monotonic() - begin
            return Reply(status=0, begin_seconds=begin, seconds=seconds, content=repr(error).encode())
        return Reply(
            status=response.status_code,
            begin_seconds=begin,
            seconds=time.monotonic() - begin,
            content=response.content,
            headers=response.headers,
        )

    async def stream(self, drawing: ImageRequest) -> AsyncIterator[StreamEvent]:
        """Request a picture and yield its events. Raises ``StreamError`` or ``httpx.HTTPError``."""
        async with self._http.stream("POST", "/generate", json=drawing.body() | {"stream": True}) as response:
            if response.status_code != 200:
                raise StreamError(f"{response.status_code}: {(await response.aread()).decode(errors='replace')}")
            name, data = "", ""
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    name = line.removeprefix("event:").strip()
                elif line.startswith("data:"):
                    data += line.removeprefix("data:").strip()
                elif not line and name:
                    event = StreamEvent(name=name, data=json.loads(data or "{}"), at_seconds=time.monotonic())
                    if name == "error":
                        raise StreamError(data)
                    yield event
                    name, data = "", ""

    async def get(self, path: str) -> httpx.Response:
        """Send a GET request to any other path. Raises ``httpx.HTTPError``."""
        return await self._http.get(path)


def prompts(seed: int) -> Iterator[str]:
    """Yield prompts, Chinese and English in turn, in an order determined by the seed; repeats are numbered."""
    shuffled = {}
    for language, sentences in _SENTENCES.items():
        all_of_it = list(product(sentences, _SUBJECTS[language], _BACKGROUNDS[language]))
        order = np.random.default_rng(seed).permutation(len(all_of_it))
        shuffled[language] = [all_of_it[i][0].format(*all_of_it[i][1:]) for i in order]
    number = 1
    while True:
        for pair in zip(*shuffled.values(), strict=True):
            yield from (prompt if number == 1 else f"{prompt} {number}" for prompt in pair)
        number += 1
