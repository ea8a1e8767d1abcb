"""The ``lithograph`` command, the entry point of every program, and ``lithograph.Client``.

Importing it imports nothing else: the clients are imported on first access.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lithograph.client.client import AsyncClient, Client
    from lithograph.client.errors import RequestError, ServiceError

__all__ = ["AsyncClient", "Client", "RequestError", "ServiceError"]
_HOMES = {
    "AsyncClient": "client.client",
    "Client": "client.client",
    "RequestError": "client.errors",
    "ServiceError": "client.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lithograph.{_HOMES[name]}"), name)
