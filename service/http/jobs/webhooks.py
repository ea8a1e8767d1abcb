"""Webhooks at the end of a job: signed by the Standard Webhooks specification, retried, never redirected."""

import asyncio
import logging
import ssl
import threading
from datetime import UTC, datetime
from functools import cached_property

import httpx
from standardwebhooks import Webhook
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_exponential

from longcat.logs import log_event
from longcat.problem import reason_of, show
from service.observability import metrics
from service.wire.job import JobEvent, JobReport

log = logging.getLogger("lithograph")

_MOST_ATTEMPTS = 5
_ATTEMPT_SECONDS = 10.0
"""Time from connecting to the reply's status: a receiver is expected to reply before it acts."""
_TOTAL_SECONDS = 30.0
"""Time for all attempts, because a shutdown waits for them."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_GONE = 410
"""Status with which a receiver unsubscribes, by Standard Webhooks."""


class Webhooks:
    """A sender of webhooks that are signed with one secret.

    It has an event loop in a thread of its own: a receiver that sends headers or interim replies as fast as it can keeps the
    parser busy until the deadline, and no request may wait for that.
    """

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)

    async def send(self, url: str, report: JobReport, *, request_id: str) -> None:
        """Send the end of a job. A failure is logged and counted, not raised: no caller could act on it."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._send(url, report, request_id), self._loop))

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True, name="webhooks").start()
        return loop

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()  # reads a file of all authorities: once, not for each webhook

    async def _send(self, url: str, report: JobReport, request_id: str) -> None:
        body = JobEvent(type=f"job.{report.status}", timestamp=datetime.now(UTC), data=report).model_dump_json()
        try:
            certificates = self._certificates
            async with asyncio.timeout(_TOTAL_SECONDS):
                await self._deliver(url, report.id, body, certificates)
        except RetryError as error:
            self._give_up(request_id, error.last_attempt.exception() or error)
        except Exception as error:  # any: a proxy or a certificate file named in the environment raises its own
            self._give_up(request_id, error)
        else:
            metrics.WEBHOOKS.labels("delivered").inc()

    def _give_up(self, request_id: str, error: BaseException) -> None:
        metrics.WEBHOOKS.labels("given_up").inc()
        reason = show(reason_of(error))  # it may repeat what the receiver sent, of any length
        log_event(log, "webhook_given_up", logging.WARNING, request_id=request_id, reason=reason)

    async def _deliver(self, url: str, job_id: str, body: str, certificates: ssl.SSLContext) -> None:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(_MOST_ATTEMPTS),
            wait=wait_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
            retry=retry_if_exception_type((httpx.HTTPError, TimeoutError)),
        )
        async with httpx.AsyncClient(verify=certificates, timeout=_ATTEMPT_SECONDS, follow_redirects=False) as client:
            async for attempt in attempts:
                with attempt:
                    status = await self._attempt(client, url, job_id, body)
                    if not httpx.codes.is_success(status) and status != _GONE:
                        raise httpx.HTTPError(f"the receiver replied with status {status}")

    async def _attempt(self, client: httpx.AsyncClient, url: str, job_id: str, body: str) -> int:
        """Send once and return the reply's status. Its body, which may be endless or a decompression bomb, is not read."""
        headers = self._headers(f"msg_{job_id}", body)
        async with (
            asyncio.timeout(_ATTEMPT_SECONDS),
            client.stream("POST", url, content=body, headers=headers) as reply,
        ):
            return reply.status_code

    def _headers(self, message_id: str, body: str) -> dict[str, str]:
        """Return the signed headers; ``message_id`` is the same in every attempt, so that a receiver recognizes a retry."""
        now = datetime.now(UTC)
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body),
        }
