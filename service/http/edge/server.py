"""The arguments of uvicorn, for service and studio."""

import logging
import resource
from collections.abc import Callable
from typing import Any

from longcat.errors import LithographError
from service.http.edge.protocol import BoundedProtocol, Bounds
from service.http.edge.settings import HttpConfig

log = logging.getLogger("lithograph")

_OTHER_DESCRIPTORS = 256
"""Open files beside connections: listeners, queues, downloads, webhooks."""
BACKLOG = 1024
"""Connections that the kernel queues, and that asyncio accepts before it handles any: a burst beyond it waits a second."""


def uvicorn_arguments(
    config: HttpConfig, *, write_error: Callable[[LithographError, str], tuple[int, bytes]]
) -> dict[str, Any]:
    """Return the arguments; ``write_error`` returns the status and the JSON body of an error for a request's id."""
    bounds = Bounds(
        max_connections=_reserve_descriptors(config.max_connections),
        header_seconds=config.header_seconds,
        max_header_bytes=config.max_header_bytes,
        max_headers=config.max_headers,
        write_error=write_error,
    )
    return {
        "http": type("Protocol", (BoundedProtocol,), {"bounds": bounds, "waiting": {}}),
        "h11_max_incomplete_event_size": config.max_header_bytes,
        "timeout_keep_alive": config.keep_alive_seconds,
        "backlog": BACKLOG,
        "ws": "none",
        "access_log": False,
        "server_header": False,
    }


def _reserve_descriptors(connections: int) -> int:
    """Raise the process's limit of open files for so many connections, and return how many it allows."""
    wanted = connections + BACKLOG + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == wanted:
        return connections
    possible = min(connections, max(1, (soft - _OTHER_DESCRIPTORS) // 2))  # the other half for those just accepted
    log.warning("at most %d connections, not %d: the limit of open files is %d", possible, connections, soft)
    return possible
