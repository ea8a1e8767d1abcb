"""The configuration of jobs, a group of the service's options."""

import base64
import binascii
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from longcat.errors import LithographError
from longcat.options import LONGEST_SECONDS, Configuration, Flag
from longcat.problem import Problem
from longcat.storage.address import parse_address
from longcat.validation import ProblemValueError
from service.wire.webhook_host import WebhookHost

_LEAST_SECRET_BYTES = 24
"""Minimum length of a secret in the specification of Standard Webhooks."""
_KEPT_IN_MEMORY_SECONDS, _KEPT_IN_STORAGE_SECONDS = 3600.0, 86400.0
"""Times from a job's end to its removal."""

_Count = Annotated[int, Field(ge=1)]


class JobConfig(Configuration):
    """Storage of requests with ``"async": true``, and the webhooks that report them."""

    storage: Annotated[str | None, Flag(name="jobs-storage", metavar="URI")] = None
    """Storage of jobs: file:///directory or s3://bucket/prefix, shared by all replicas. Jobs outlive their server, and any
    replica answers for them. Without it, they are in the memory of the server that took them."""
    endpoint_url: Annotated[str | None, Flag(name="jobs-storage-endpoint-url", metavar="URL")] = None
    """Endpoint of an S3 store other than AWS."""
    lease_seconds: Annotated[float, Field(ge=2, le=3600), Flag(name="jobs-lease-seconds")] = 30.0
    """With jobs-storage: time without a sign of life of a replica, after which another takes its jobs. Give all replicas the
    same."""
    most: Annotated[_Count, Flag(name="max-jobs")] = 1000
    """Asynchronous jobs kept in memory; beyond it, those that ended first are removed. Jobs under way count in max_queue."""
    mib: Annotated[_Count, Flag(name="jobs-mib")] = 256
    """Memory for images of jobs; beyond it, jobs that ended first are removed, the newest never."""
    ttl_seconds: Annotated[
        float | None,
        Field(ge=1, le=LONGEST_SECONDS),
        Flag(name="job-ttl-seconds", default="3600; with jobs-storage, 86400"),
    ] = None
    """Time from a job's end to its removal."""
    webhook_secret: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """Secret that signs webhooks: 24 bytes or more in base64, with or without whsec_ before it. Make one with `openssl rand
    -base64 32`."""
    webhook_hosts: Annotated[tuple[str, ...], Flag(name="webhook-host", metavar="HOST[:PORT]")] = ()
    """Host that webhooks may be sent to, on port 443 for https and 80 for http; HOST:PORT allows another port, HOST:*
    every port. Other addresses are refused, so that a request cannot reach internal ones (SSRF). Repeatable."""

    @field_validator("webhook_hosts")
    @classmethod
    def _check_hosts(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(WebhookHost.parse(host)) for host in given)

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, given: str | None) -> str | None:
        try:
            if given is not None:
                parse_address(given)
        except LithographError as error:
            raise ProblemValueError(replace(error.problems[0], field="", value=None)) from error
        return given

    @property
    def kept_seconds(self) -> float:
        """Return the time from a job's end to its removal."""
        if self.ttl_seconds is not None:
            return self.ttl_seconds
        return _KEPT_IN_MEMORY_SECONDS if self.storage is None else _KEPT_IN_STORAGE_SECONDS

    @model_validator(mode="after")
    def _check_webhooks(self) -> Self:
        """Check the secret here: the problem of a single field would show its value."""
        if (self.webhook_secret is None) != (not self.webhook_hosts):
            raise ProblemValueError(
                Problem(
                    code="webhook_incomplete",
                    template="webhooks need both a secret and the hosts that they may be sent to",
                    remedy_template="give both --webhook-secret and --webhook-host, or neither",
                )
            )
        if self.webhook_secret is not None and len(_secret_bytes(self.webhook_secret)) < _LEAST_SECRET_BYTES:
            raise ProblemValueError(
                Problem(
                    code="webhook_secret_too_short",
                    template="is not {bytes} bytes or more in base64",
                    remedy_template="make one with: openssl rand -base64 32",
                    field="webhook_secret",
                    details={"bytes": _LEAST_SECRET_BYTES},
                )
            )
        return self


def _secret_bytes(secret: str) -> bytes:
    with suppress(binascii.Error):
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    return b""
