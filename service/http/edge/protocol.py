"""Connections with limits, over uvicorn's protocol for HTTP/1.1.

uvicorn limits the bytes of an unfinished head (``h11_max_incomplete_event_size``) and the idle time between two requests
(``timeout_keep_alive``). It has no deadline for a head, and its ``limit_concurrency`` answers 503 to all requests, health
probes included, while clients that send nothing hold the connections. This subclass adds, from the moment of a connection:

- a deadline for every head, 408;
- a cap on connections; beyond it, the connection that has been without a whole request for the longest makes room;
- a deadline for clients that read nothing of their replies;
- a limit of the chunks of a body, each of which takes time on the event loop, however short it is;
- a shutdown that waits for no request that has not arrived as a whole;
- replies to clients that have closed their sending side (``nc -N``), for which uvicorn drops the reply;
- replies to invalid HTTP in the same form as all other errors, and a pause before the connection ends, so that clients
  that are still sending can read them.

The implementation is h11: httptools, uvicorn's first choice, keeps an unfinished header of any size in memory.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from uuid import uuid4

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from longcat.errors import LithographError
from service.http.edge.errors import (
    ConnectionLimitError,
    HeadersTooLargeError,
    MalformedRequestError,
    SlowRequestError,
    UnknownEncodingError,
)
from service.observability.refused_requests import log_refused_request
from service.wire.errors import DrainingError, UnavailableError

LINGER_SECONDS = 5.0
"""Longest time that a connection stays open after an early reply while its client sends nothing."""
LINGER_BYTES = 256 * 2**20
"""Most bytes that are read and dropped after an early reply."""
_HALF_CLOSED_SECONDS = 1.0
"""Time for the replies to a client that sends no more. Its request is then cancelled, as one that is gone looks alike."""
_SPARE_CHUNKS = 2048
"""Chunks that any body may have, a few hundredths of a second of work: programs that write JSON piece by piece send each."""
_BYTES_PER_CHUNK = 256
"""Least mean size of all other chunks."""
_STALL_SECONDS = 30.0
"""Longest time in which a client may read nothing of a reply that waits for it."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The limits of one server's connections, and the form of its errors."""

    max_connections: int
    header_seconds: float
    max_header_bytes: int
    max_headers: int
    write_error: Callable[[LithographError, str], tuple[int, bytes]]
    """Returns the status and the JSON body of an error, from the error and a request's id."""


class BoundedConnection(h11.Connection):
    """The events of one connection, which end with an error when a body has too many chunks for its size."""

    _chunks = 0
    _body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event. Raises ``h11.RemoteProtocolError``."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if self._chunks > _SPARE_CHUNKS + self._body_bytes // _BYTES_PER_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too many and too short")
        return event


class BoundedProtocol(H11Protocol):
    """One connection."""

    bounds: ClassVar[Bounds]
    waiting: ClassVar[dict["BoundedProtocol", None]]
    """The connections without a whole request, in the order in which they began to wait."""

    _timer: asyncio.TimerHandle | None = None
    """The deadline of the head that is awaited, or of a connection that was refused."""
    _stall: asyncio.TimerHandle | None = None
    _is_refused = False
    _is_half_closed = False
    """True once the client has closed its sending side."""
    _dropped_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a request, if there is room for the connection."""
        super().connection_made(transport)
        self.conn = BoundedConnection(h11.SERVER, max_incomplete_event_size=self.bounds.max_header_bytes)
        has_room = len(self.connections) <= self.bounds.max_connections or self._make_room()
        self._wait()
        if has_room:
            self._await_head()
        else:
            self._refuse(ConnectionLimitError(most=self.bounds.max_connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        self._stop_waiting()
        self._set_timer(None)
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what a client sends. Everything after an error reply or the last request is dropped."""
        if self._is_refused or self.conn.their_state is h11.MUST_CLOSE:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        if self.conn.their_state in (h11.IDLE, h11.DONE) and not self.conn.trailing_data[0]:
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2: an empty line before a request is ignored
            if not data:
                return
        super().data_received(data)
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's returns None, which closes the connection
        """Return True to keep the connection open for replies that are on their way."""
        self._is_half_closed = True
        if self._is_refused:
            return False
        if self._has_request:
            self._set_timer(self.loop.call_later(_HALF_CLOSED_SECONDS, self.transport.close))
            return True
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._refuse(MalformedRequestError("it is incomplete"))
        return False

    def send_400_response(self, msg: str) -> None:
        """Reject a request that h11 cannot parse; uvicorn calls this method while it handles h11's error."""
        match getattr(sys.exception(), "error_status_hint", 400):
            case 431:
                limits = self.bounds
                self._refuse(HeadersTooLargeError(max_bytes=limits.max_header_bytes, max_headers=limits.max_headers))
            case 501:
                self._refuse(UnknownEncodingError())
            case _:
                reason, _, _ = str(sys.exception() or msg).partition(":")  # after it, h11 repeats what it has read
                self._refuse(MalformedRequestError(reason))

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()
        if self._has_request:  # it was sent ahead
            self._stop_waiting()
        elif self._is_half_closed:
            self.transport.close()

    def pause_writing(self) -> None:
        """Give the client time to read."""
        super().pause_writing()
        self._stall = self.loop.call_later(_STALL_SECONDS, self._check_progress, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Note that the client reads."""
        super().resume_writing()
        self._end_stall()

    def shutdown(self) -> None:
        """Let a request that has arrived finish; end every other connection."""
        if self._is_refused:
            self.transport.abort()
        elif self._has_request:
            super().shutdown()
        elif self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._refuse(DrainingError())
            self.transport.close()
        else:
            super().shutdown()

    @property
    def _has_request(self) -> bool:
        """Return True while a request that has arrived completely has no complete reply."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _should_upgrade(self) -> bool:
        """Return False: a request to upgrade is answered as HTTP/1.1, without the warnings that uvicorn logs."""
        return False

    def _watch(self) -> None:
        """Set or end the deadline of a head, by what h11 has read."""
        if self._is_refused:
            return
        if self._has_request:
            self._stop_waiting()
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._set_timer(None)
        # h11 has no limit for requests that were sent before the reply to an earlier one: the client waits to send more.
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) > self.bounds.max_header_bytes:
            self.flow.pause_reading()

    def _await_head(self) -> None:
        if self._timer is None:
            self._set_timer(self.loop.call_later(self.bounds.header_seconds, self._on_late_head))

    def _on_late_head(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(SlowRequestError(seconds=self.bounds.header_seconds))
        else:  # opened in advance, as browsers do: there is nothing to answer
            self.transport.close()

    def _make_room(self) -> bool:
        """End the connection that has waited for a request for the longest. Return False if all have one."""
        oldest = next(iter(self.waiting), None)
        if oldest is None:
            return False
        oldest._stop_waiting()
        self.connections.discard(oldest)  # it would be counted until the event loop comes round
        oldest.transport.abort()
        return True

    def _wait(self) -> None:
        """Move to the end of the connections that wait for a request."""
        self._stop_waiting()
        self.waiting[self] = None

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)

    def _refuse(self, error: LithographError) -> None:
        """Send an error in place of the reply to the current request, and end the connection."""
        self._is_refused = True
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # for the app, the client has disconnected
            self.cycle.message_event.set()
        request_id = str(uuid4())
        status, body = self.bounds.write_error(error, request_id)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of a reply
            self._log(error, status)
            self.transport.close()
            return
        log_refused_request(error, status=status, request_id=request_id)
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope is not None and self.scope["method"] == "HEAD"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("X-Request-Id", request_id),
        ]
        if isinstance(error, UnavailableError):
            headers.append(("Retry-After", str(error.retry_after_seconds)))
        reply = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        for event in (reply, h11.Data(data=b"" if is_head else body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        # Closing now would reset the connection of a client that is still sending, and its reply would be lost.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_timer(self.loop.call_later(LINGER_SECONDS, self.transport.abort))

    def _log(self, error: LithographError, status: int) -> None:
        """Log why a connection ends that has no reply with this status, under the id of the request that it cuts off."""
        state = {} if self.scope is None else self.scope.get("state", {})
        log_refused_request(error, status=status, request_id=state.get("request_id", ""))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _check_progress(self, before_bytes: int) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes >= before_bytes:
            self.transport.abort()
        else:
            self._stall = self.loop.call_later(_STALL_SECONDS, self._check_progress, left_bytes)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
