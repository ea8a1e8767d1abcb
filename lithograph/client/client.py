"""Typed clients of a running service: ``Client`` blocks, ``AsyncClient`` is awaited.

::

    with lithograph.Client("http://127.0.0.1:8000") as client:
        client.generate("a red apple", seed=1).images[0].save("apple.png")
        job = client.submit("一只猫", steps=50, num_images=4)
        pictures = client.wait(job).images
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from lithograph.client.errors import RequestError, ServiceError, check, unreachable
from lithograph.client.protocol import (
    AdapterReport,
    ClientEvent,
    Options,
    TokenCount,
    UsageQuery,
    body_of,
    check_end,
    event_of,
    query_of,
    result_of,
)  # fmt: skip
from longcat.validation import ProblemValueError, check_http_url
from service.wire.events import ResultEvent
from service.wire.job import JobReport
from service.wire.messages import UsageReport

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
"""The bounds of the pause between attempts, which the service's Retry-After sets."""
_POLL_SECONDS = 0.5


class Client:
    """A connection to one service. Methods raise ``RequestError`` for an invalid request, and ``ServiceError`` otherwise."""

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_seconds: float = 600.0, retries: int = 2, api_key: str | None = None
    ) -> None:
        """``timeout_seconds``: the time to wait for a reply. ``retries``: after 429 and 503, at Retry-After.

        ``api_key``: an API key of the service, or its admin key.
        """
        self._http = httpx.Client(**_settings(url, timeout_seconds, api_key))
        self._retrying = Retrying(**_policy(retries))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(self, prompt: str, **options: Unpack[Options]) -> ResultEvent:
        """Generate images and wait for them."""
        body = body_of(prompt, options, response_format="json")
        return ResultEvent.model_validate_json(self._request("POST", "/generate", json=body).content)

    def stream(
        self, prompt: str, *, previews: bool = False, **options: Unpack[Options]
    ) -> Generator[ClientEvent, None, None]:
        """Generate images and yield an event after every step; the last is the result. Closing the generator cancels."""
        body = body_of(prompt, options, stream=True, previews=previews)
        with _reachable(self._http.base_url), self._http.stream("POST", "/generate", json=body) as reply:
            if not reply.is_success:
                reply.read()
            check(reply)
            event = None
            for sse in EventSource(reply).iter_sse():
                event = event_of(sse)
                yield event
            check_end(event)

    def submit(self, prompt: str, *, webhook_url: str | None = None, **options: Unpack[Options]) -> JobReport:
        """Start a job that generates images."""
        hook = {} if webhook_url is None else {"webhook_url": webhook_url}
        body = body_of(prompt, options, response_format="json", **{"async": True}, **hook)
        return JobReport.model_validate_json(self._request("POST", "/generate", json=body).content)

    def job(self, job: JobReport | str) -> JobReport:
        """Return the state of a job."""
        return JobReport.model_validate_json(self._request("GET", _job_path(job)).content)

    def wait(self, job: JobReport | str) -> ResultEvent:
        """Wait for the result of a job."""
        while (result := result_of(self.job(job))) is None:
            time.sleep(_POLL_SECONDS)
        return result

    def cancel(self, job: JobReport | str) -> JobReport:
        """Cancel a job, or remove a finished one."""
        return JobReport.model_validate_json(self._request("DELETE", _job_path(job)).content)

    def adapters(self) -> AdapterReport:
        """Return the state of the adapters."""
        return AdapterReport.model_validate_json(self._request("GET", "/v1/adapters").content)

    def load_adapter(self, name: str) -> AdapterReport:
        """Load an adapter from storage now, even if it was unloaded."""
        return AdapterReport.model_validate_json(self._request("POST", _adapter_path(name, "load")).content)

    def pin_adapter(self, name: str) -> AdapterReport:
        """Pin an adapter's newest version to a slot."""
        return AdapterReport.model_validate_json(self._request("POST", _adapter_path(name, "pin")).content)

    def unpin_adapter(self, name: str) -> AdapterReport:
        """Unpin an adapter."""
        return AdapterReport.model_validate_json(self._request("POST", _adapter_path(name, "unpin")).content)

    def count_tokens(self, prompt: str) -> TokenCount:
        """Return the length of a prompt as the model counts it, and the limit."""
        return TokenCount.model_validate_json(self._request("POST", "/v1/tokens", json={"prompt": prompt}).content)

    def usage(self, **days: Unpack[UsageQuery]) -> UsageReport:
        """Return what the key, or each key for one with the role admin, has used."""
        return UsageReport.model_validate_json(self._request("GET", "/v1/usage", params=query_of(days)).content)

    def info(self) -> dict[str, Any]:
        """Return the model, limits, defaults and versions."""
        return dict(self._request("GET", "/v1/info").json())

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        for attempt in self._retrying.copy():
            with attempt, _reachable(self._http.base_url):
                return check(self._http.request(method, path, **content))
        raise AssertionError("tenacity raises in the end")


class AsyncClient:
    """The asynchronous ``Client``."""

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_seconds: float = 600.0, retries: int = 2, api_key: str | None = None
    ) -> None:
        """Take the same arguments as ``Client``."""
        self._http = httpx.AsyncClient(**_settings(url, timeout_seconds, api_key))
        self._retrying = AsyncRetrying(**_policy(retries))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(self, prompt: str, **options: Unpack[Options]) -> ResultEvent:
        """Generate images and wait for them."""
        body = body_of(prompt, options, response_format="json")
        return ResultEvent.model_validate_json((await self._request("POST", "/generate", json=body)).content)

    async def stream(
        self, prompt: str, *, previews: bool = False, **options: Unpack[Options]
    ) -> AsyncGenerator[ClientEvent, None]:
        """Generate images and yield an event after every step; the last is the result. Closing the generator cancels."""
        body = body_of(prompt, options, stream=True, previews=previews)
        with _reachable(self._http.base_url):
            async with self._http.stream("POST", "/generate", json=body) as reply:
                if not reply.is_success:
                    await reply.aread()
                check(reply)
                event = None
                async for sse in EventSource(reply).aiter_sse():
                    event = event_of(sse)
                    yield event
                check_end(event)

    async def submit(self, prompt: str, *, webhook_url: str | None = None, **options: Unpack[Options]) -> JobReport:
        """Start a job that generates images."""
        hook = {} if webhook_url is None else {"webhook_url": webhook_url}
        body = body_of(prompt, options, response_format="json", **{"async": True}, **hook)
        return JobReport.model_validate_json((await self._request("POST", "/generate", json=body)).content)

    async def job(self, job: JobReport | str) -> JobReport:
        """Return the state of a job."""
        return JobReport.model_validate_json((await self._request("GET", _job_path(job))).content)

    async def wait(self, job: JobReport | str) -> ResultEvent:
        """Wait for the result of a job."""
        while (result := result_of(await self.job(job))) is None:
            await asyncio.sleep(_POLL_SECONDS)
        return result

    async def cancel(self, job: JobReport | str) -> JobReport:
        """Cancel a job, or remove a finished one."""
        return JobReport.model_validate_json((await self._request("DELETE", _job_path(job))).content)

    async def adapters(self) -> AdapterReport:
        """Return the state of the adapters."""
        return AdapterReport.model_validate_json((await self._request("GET", "/v1/adapters")).content)

    async def load_adapter(self, name: str) -> AdapterReport:
        """Load an adapter from storage now, even if it was unloaded."""
        return AdapterReport.model_validate_json((await self._request("POST", _adapter_path(name, "load"))).content)

    async def pin_adapter(self, name: str) -> AdapterReport:
        """Pin an adapter's newest version to a slot."""
        return AdapterReport.model_validate_json((await self._request("POST", _adapter_path(name, "pin"))).content)

    async def unpin_adapter(self, name: str) -> AdapterReport:
        """Unpin an adapter."""
        return AdapterReport.model_validate_json((await self._request("POST", _adapter_path(name, "unpin"))).content)

    async def count_tokens(self, prompt: str) -> TokenCount:
        """Return the length of a prompt as the model counts it, and the limit."""
        reply = await self._request("POST", "/v1/tokens", json={"prompt": prompt})
        return TokenCount.model_validate_json(reply.content)

    async def usage(self, **days: Unpack[UsageQuery]) -> UsageReport:
        """Return what the key, or each key for one with the role admin, has used."""
        reply = await self._request("GET", "/v1/usage", params=query_of(days))
        return UsageReport.model_validate_json(reply.content)

    async def info(self) -> dict[str, Any]:
        """Return the model, limits, defaults and versions."""
        return dict((await self._request("GET", "/v1/info")).json())

    async def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async for attempt in self._retrying.copy():
            with attempt, _reachable(self._http.base_url):
                return check(await self._http.request(method, path, **content))
        raise AssertionError("tenacity raises in the end")


@contextmanager
def _reachable(url: httpx.URL) -> Iterator[None]:
    """Turn the errors of a connection to the service into ours."""
    try:
        yield
    except httpx.TransportError as error:
        raise unreachable(error, url) from error


def _settings(url: str, timeout_seconds: float, api_key: str | None) -> dict[str, Any]:
    """Return the arguments of httpx's clients. Raises ``RequestError``."""
    try:
        check_http_url(url, example=DEFAULT_URL)
    except ProblemValueError as error:
        raise RequestError.of([error.problem.within(field="url", value=url)]) from None
    return {
        "base_url": url,
        "timeout": httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
    }


def _policy(retries: int) -> dict[str, Any]:
    """Return the retry policy: retry busy replies, at the service's Retry-After."""
    return {
        "stop": stop_after_attempt(retries + 1),
        "retry": retry_if_exception(lambda error: isinstance(error, ServiceError) and error.is_busy),
        "wait": _pause_seconds,
        "reraise": True,
    }


def _pause_seconds(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    requested = error.retry_after_seconds if isinstance(error, ServiceError) else None
    return min(_PAUSE_SECONDS if requested is None else requested, _LONGEST_PAUSE_SECONDS)


def _job_path(job: JobReport | str) -> str:
    return f"/v1/jobs/{_segment(job if isinstance(job, str) else job.id)}"


def _adapter_path(name: str, action: str) -> str:
    return f"/v1/adapters/{_segment(name)}/{action}"


def _segment(name: str) -> str:
    """Return a name as one segment of a path: the service answers a wrong one, which must not name another endpoint."""
    return quote(name, safe="@", errors="replace").replace(".", "%2E")
