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

    async def send(self, url: str, report: JobReport, *, request_id: str, next_seconds: float | None = None) -> bool:
        """Send the end of a job; return False if the receiver has not taken it, which is logged and counted.

        ``next_seconds``: the time until the caller sends it again, for the log; None if it does not.
        """
        sending = self._send(url, report, request_id, next_seconds)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, self._loop))

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True, name="webhooks").start()
        return loop

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()  # reads a file of all authorities: once, not for each webhook

    async def _send(self, url: str, report: JobReport, request_id: str, next_seconds: float | None) -> bool:
        message_id = f"msg_{report.id}"
        ended_at = report.finished_at or datetime.now(UTC)
        event = JobEvent(id=message_id, type=f"job.{report.status}", timestamp=ended_at, data=report)
        try:
            certificates = self._certificates
            async with asyncio.timeout(_TOTAL_SECONDS):
                await self._deliver(url, message_id, event.model_dump_json(), certificates)
        except RetryError as error:
            self._note_failure(request_id, error.last_attempt.exception() or error, next_seconds)
        except Exception as error:  # any: a proxy or a certificate file named in the environment raises its own
            self._note_failure(request_id, error, next_seconds)
        else:
            metrics.WEBHOOKS.labels("delivered").inc()
            return True
        return False

    def _note_failure(self, request_id: str, error: BaseException, next_seconds: float | None) -> None:
        result = "given_up" if next_seconds is None else "postponed"
        metrics.WEBHOOKS.labels(result).inc()
        reason = show(reason_of(error))  # it may repeat what the receiver sent, of any length
        level = logging.WARNING
        log_event(log, f"webhook_{result}", level, request_id=request_id, reason=reason, next_seconds=next_seconds)

    async def _deliver(self, url: str, message_id: str, body: str, certificates: ssl.SSLContext) -> None:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(_MOST_ATTEMPTS),
            wait=wait_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
            retry=retry_if_exception_type((httpx.HTTPError, TimeoutError)),
        )
        async with httpx.AsyncClient(verify=certificates, timeout=_ATTEMPT_SECONDS, follow_redirects=False) as client:
            async for attempt in attempts:
                with attempt:
                    status = await self._attempt(client, url, message_id, body)
                    if not httpx.codes.is_success(status) and status != _GONE:
                        raise httpx.HTTPError(f"the receiver replied with status {status}")

    async def _attempt(self, client: httpx.AsyncClient, url: str, message_id: str, body: str) -> int:
        """Send once and return the reply's status. Its body, which may be endless or a decompression bomb, is not read."""
        headers = self._headers(message_id, body)
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
