"""The service that draws: where it is, and whether it answers."""

import asyncio
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from lithograph.answers import AdapterReport, ServiceError
from lithograph.client import AsyncClient

log = logging.getLogger("lithograph.studio")

_STARTING_POLL_SECONDS = 0.5
_READY_POLL_SECONDS = 5.0
_PATIENCE_SECONDS = 20.0


class LinkState(StrEnum):
    """Whether pictures can be had."""

    STARTING = "starting"
    """It loads the model, or its process is being started."""
    READY = "ready"
    UNREACHABLE = "unreachable"
    """Nothing answers there."""


class Link:
    """One service, looked at every few seconds."""

    def __init__(self, url: str, *, admin_key: str | None = None, is_own: bool) -> None:
        """``is_own``: this studio starts it, so that no answer at first means that it is coming up."""
        self.url = url
        self.is_own = is_own
        self.state = LinkState.STARTING
        self.detail = ""
        """Why it is not ready, in its own words."""
        self.info: Mapping[str, Any] | None = None
        """What ``GET /v1/info`` last said: model, limits, defaults."""
        self.client = AsyncClient(url, admin_key=admin_key)
        self._probe = AsyncClient(url, timeout_seconds=_PATIENCE_SECONDS, retries=0)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look now, and keep looking."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop looking; close connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.client.close()
        await self._probe.close()

    async def adapters(self) -> AdapterReport:
        """Which adapters it serves now. Raises ``ServiceError``."""
        return await self._probe.adapters()

    def lost(self, detail: str) -> None:
        """Its process ended; another is being started."""
        self.state, self.detail = LinkState.STARTING, detail

    async def look(self) -> None:
        """Ask it once."""
        try:
            info = await self._probe.info()
        except ServiceError as error:
            self._say(LinkState.STARTING if self.is_own else LinkState.UNREACHABLE, str(error))
            return
        self.info = info
        is_ready = info["status"] == "ready"
        self._say(LinkState.READY if is_ready else LinkState.STARTING, "" if is_ready else str(info["status"]))

    def _say(self, state: LinkState, detail: str) -> None:
        if state is not self.state:
            log.info("the service at %s is %s%s", self.url, state, f": {detail}" if detail else "")
        self.state, self.detail = state, detail

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_READY_POLL_SECONDS if self.state is LinkState.READY else _STARTING_POLL_SECONDS)
