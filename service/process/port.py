"""The port of a server, and the error of one that is taken."""

import contextlib
import socket
from collections.abc import Iterator

from longcat.errors import UserError


def check_port_is_free(host: str, port: int) -> None:
    """Raise ``UserError`` if a port cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As in uvicorn: connections in TIME_WAIT do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with port_errors(host, port):
            probe.bind((host, port))


@contextlib.contextmanager
def port_errors(host: str, port: int) -> Iterator[None]:
    """Raise ``UserError`` where the port cannot be bound within the context."""
    try:
        yield
    except OSError as error:
        raise UserError(
            "port_taken",
            "cannot be bound on {host}: {reason}",
            remedy="give another with --port",
            field="port",
            value=port,
            host=host,
            reason=error.strerror,
        ) from error
