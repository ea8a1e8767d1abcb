"""Telling others that a job is over: signed as Standard Webhooks has it, tried again a few times, never redirected."""

import logging
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_exponential

from longcat.logs import tell
from service import metrics
from service.schema import JobEvent, JobReport

log = logging.getLogger("lithograph")

_MOST_ATTEMPTS = 5
_TIMEOUT_SECONDS = 10.0
"""Of one attempt: whoever is told is to answer first and work later."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_GONE = 410
"""The receiver wants no more of it."""


class Webhooks:
    """A sender with one secret."""

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)

    async def tell(self, url: str, report: JobReport) -> None:
        """Tell the end of a job. What cannot be told is logged, and counted: nobody waits for it."""
        body = JobEvent(type=f"job.{report.status}", timestamp=datetime.now(UTC), data=report).model_dump_json()
        try:
            await self._deliver(url, report.id, body)
        except RetryError as error:
            metrics.WEBHOOKS.labels("given_up").inc()
            reason = error.last_attempt.exception()
            tell(
                log,
                "webhook_given_up",
                logging.WARNING,
                request_id=report.id,
                attempts=_MOST_ATTEMPTS,
                reason=str(reason),
            )
        except httpx.InvalidURL as error:
            metrics.WEBHOOKS.labels("given_up").inc()
            tell(log, "webhook_given_up", logging.WARNING, request_id=report.id, reason=str(error))
        else:
            metrics.WEBHOOKS.labels("delivered").inc()

    async def _deliver(self, url: str, job_id: str, body: str) -> None:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(_MOST_ATTEMPTS),
            wait=wait_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
            retry=retry_if_exception_type(httpx.HTTPError),
        )
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as client:
            async for attempt in attempts:
                with attempt:
                    reply = await client.post(url, content=body, headers=self._headers(f"msg_{job_id}", body))
                    if not reply.is_success and reply.status_code != _GONE:
                        raise httpx.HTTPStatusError(
                            f"{url} answered {reply.status_code}", request=reply.request, response=reply
                        )

    def _headers(self, message_id: str, body: str) -> dict[str, str]:
        """``message_id`` is the same in every attempt, so that the receiver can tell a repetition."""
        now = datetime.now(UTC)
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body),
        }
