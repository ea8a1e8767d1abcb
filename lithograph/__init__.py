"""The ``lithograph`` command, one entry to everything that a person runs; and ``lithograph.Client`` for programs.

Importing it imports nothing else: the clients come when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lithograph.answers import RequestError, ServiceError
    from lithograph.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "RequestError", "ServiceError"]
_HOMES = {"AsyncClient": "client", "Client": "client", "RequestError": "answers", "ServiceError": "answers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lithograph.{_HOMES[name]}"), name)
