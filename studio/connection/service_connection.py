"""The connection to the service that generates: its address, its state, a client."""

import asyncio
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from lithograph.client.client import AsyncClient
from lithograph.client.errors import RequestError, ServiceError
from lithograph.client.protocol import AdapterReport, TokenCount, flavour_reason
from longcat.problem import Problem

log = logging.getLogger("lithograph.studio")

_STARTING_POLL_SECONDS = 0.5
_READY_POLL_SECONDS = 5.0
_PATIENCE_SECONDS = 20.0
_LOADING_POLL_SECONDS = 0.25


class ConnectionState(StrEnum):
    """The states of a service, as the studio sees them."""

    STARTING = "starting"
    """Its process starts, or it loads the model."""
    READY = "ready"
    UNREACHABLE = "unreachable"
    """No reply comes from its address."""


class ServiceConnection:
    """One service, polled every few seconds."""

    def __init__(self, url: str, *, api_key: str | None = None, is_own: bool) -> None:
        """``is_own``: this studio starts the service, so that no reply means that it is starting."""
        self.url = url
        self.is_own = is_own
        self.state = ConnectionState.STARTING
        self.detail: Problem | None = None
        """Reason for which it is not ready; None if it only starts, or is ready."""
        self.info: Mapping[str, Any] | None = None
        """The last reply of ``GET /v1/info``: model, limits, defaults."""
        self.client = AsyncClient(url, api_key=api_key)
        self._probe = AsyncClient(url, timeout_seconds=_PATIENCE_SECONDS, retries=0, api_key=api_key)
        self._watching: asyncio.Task[None] | None = None

    @property
    def flavour_reason(self) -> Problem | None:
        """Reason for which the service has chosen its model itself; None where its operator has."""
        return None if self.info is None else flavour_reason(self.info)

    @property
    def model(self) -> Mapping[str, Any]:
        """The model as ``GET /v1/info`` describes it; empty before the first reply."""
        return {} if self.info is None else self.info["model"]

    @property
    def fingerprint(self) -> str:
        """State and model: pages show them again when they change."""
        return f"{self.state}-{self.model.get('flavour', '')}-{self.model.get('precision', '')}-{self.detail or ''}"

    async def start(self) -> None:
        """Start polling."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop polling; close connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.client.close()
        await self._probe.close()

    async def adapters(self) -> AdapterReport:
        """Return the adapters that it serves now. Raises ``ServiceError``."""
        return await self._probe.adapters()

    async def count_tokens(self, prompt: str) -> TokenCount:
        """Return a prompt's length as its model counts it. Raises ``ServiceError``."""
        return await self._probe.count_tokens(prompt)

    async def wait_for_model(self) -> None:
        """Wait while the service starts or loads its model."""
        while self.state is ConnectionState.STARTING:
            await asyncio.sleep(_LOADING_POLL_SECONDS)

    async def is_restarting_after(self, error: ServiceError) -> bool:
        """Return True if a request failed because the service ended, and the service is starting again."""
        if isinstance(error, RequestError):
            return False
        await self.poll()
        return self.state is ConnectionState.STARTING

    def begin(self, problem: Problem | None) -> None:
        """Note that its process starts; ``problem``: the reason for which it takes long, or starts again."""
        self.state, self.detail = ConnectionState.STARTING, problem

    async def poll(self) -> None:
        """Read its state once."""
        try:
            info = await self._probe.info()
        except ServiceError as error:
            if self.is_own:  # it starts: the reason of an earlier end stays
                self._set(ConnectionState.STARTING, self.detail)
            else:
                self._set(ConnectionState.UNREACHABLE, error.problems[0])
            return
        self.info = info
        is_ready = info["status"] == "ready"
        self._set(ConnectionState.READY if is_ready else ConnectionState.STARTING, None)

    def _set(self, state: ConnectionState, detail: Problem | None) -> None:
        if state is not self.state:
            log.info("the service at %s is %s%s", self.url, state, f": {detail}" if detail else "")
        self.state, self.detail = state, detail

    async def _watch(self) -> None:
        while True:
            await self.poll()
            await asyncio.sleep(_READY_POLL_SECONDS if self.state is ConnectionState.READY else _STARTING_POLL_SECONDS)
