"""The configuration of the HTTP server, a group of the service's options."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from longcat.options import LONGEST_SECONDS, Configuration, Flag
from longcat.problem import Problem
from longcat.validation import ProblemValueError

_ORIGIN = re.compile(r"https?://[A-Za-z0-9._~\[\]:-]+")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")


class HttpConfig(Configuration):
    """Addresses of the service, and limits of connections."""

    root_path: Annotated[str, Flag(metavar="/PREFIX", default="none")] = ""
    """Prefix of all addresses, where a proxy publishes the service below one; it may remove it or not."""
    cors_origins: Annotated[tuple[str, ...], Flag(name="cors-origin", metavar="ORIGIN")] = ()
    """Origin whose pages may send requests and read the replies, such as https://example.org, or * for all. Repeatable."""

    max_connections: Annotated[int, Field(ge=1)] = 512
    """Most connections; beyond it, the one that has been without a whole request for the longest is closed for a new one."""
    keep_alive_seconds: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)] = 75.0
    """Time for which a connection stays open between requests: longer than proxies keep theirs, which is often 60 s."""
    header_seconds: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)] = 10.0
    """Time for the headers of a request; beyond it, 408."""
    body_seconds: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)] = 30.0
    """Time for the body of a request, beside a second for each 16 KiB; beyond it, 408."""
    max_header_bytes: Annotated[int, Field(ge=1024, le=1024 * 1024)] = 32 * 1024
    """Largest request line and headers; beyond it, 431."""
    max_headers: Annotated[int, Field(ge=16)] = 100
    """Most headers of a request; beyond it, 431."""

    @field_validator("root_path")
    @classmethod
    def _check_prefix(cls, given: str) -> str:
        if not _PREFIX.fullmatch(given.rstrip("/")):
            raise ProblemValueError(
                Problem(
                    code="not_a_prefix",
                    template="not the path of a URL",
                    remedy_template="give one such as {example}",
                    details={"example": "/pictures"},
                )
            )
        return given.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.rstrip("/").lower() for origin in given)
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ProblemValueError(
                    Problem(
                        code="not_an_origin",
                        template="{origin} is not an origin",
                        remedy_template="give scheme and host, such as {example}, or *",
                        details={"origin": origin, "example": "https://example.org"},
                    )
                )
        return origins
