"""Errors of requests as HTTP messages, before any endpoint sees them.

::

    UserError
    ├── BodyTooLargeError             its body exceeds the size limit
    └── MessageError                  the connection ends with the reply
        ├── MalformedRequestError     it is not HTTP, or ambiguous
        ├── UnknownEncodingError      its body has an encoding that the server does not read
        ├── HeadersTooLargeError      its head exceeds a limit
        └── SlowRequestError          it did not arrive in time
    UnavailableError
    └── ConnectionLimitError          there are too many connections
"""

from longcat.errors import UserError
from longcat.problem import show
from service.wire.errors import UnavailableError


class MessageError(UserError):
    """A request is unusable as a message; what its connection carries after it cannot be trusted."""


class MalformedRequestError(MessageError):
    """A request is not HTTP/1.1, or is ambiguous."""

    code = "malformed_request"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "malformed_request", "the request is not valid HTTP/1.1: {reason}", remedy="use an HTTP client library",
            reason=show(reason),
        )  # fmt: skip


class UnknownEncodingError(MessageError):
    """A request's Transfer-Encoding is another than chunked."""

    code = "unknown_transfer_encoding"

    def __init__(self) -> None:
        super().__init__(
            "unknown_transfer_encoding",
            "the only Transfer-Encoding of request bodies is chunked",
            remedy="send the body with a Content-Length, or chunked",
        )


class HeadersTooLargeError(MessageError):
    """The head of a request exceeds a limit."""

    code = "headers_too_large"

    def __init__(self, *, max_bytes: int, max_headers: int) -> None:
        super().__init__(
            "headers_too_large",
            "the request line and headers exceed {max_bytes} bytes or {max_headers} headers",
            remedy="send fewer and shorter headers",
            max_bytes=max_bytes,
            max_headers=max_headers,
        )


class SlowRequestError(MessageError):
    """A request did not arrive in time."""

    code = "request_timeout"

    def __init__(self, *, seconds: float) -> None:
        super().__init__(
            "request_too_slow",
            "the request did not arrive within {seconds} s",
            remedy="send the whole request at once",
            seconds=f"{seconds:g}",
        )


class BodyTooLargeError(UserError):
    """A body exceeds the size limit."""

    code = "body_too_large"


class ConnectionLimitError(UnavailableError):
    """The server has as many connections as it may have."""

    code = "too_many_connections"

    def __init__(self, *, most: int) -> None:
        super().__init__(
            "too_many_connections",
            "the server has {most} connections already",
            remedy="send the request again later",
            most=most,
        )
