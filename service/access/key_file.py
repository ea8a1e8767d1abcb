"""The keys of a running server, which follow the changes of their file."""

import asyncio
import logging
import os
import time
from pathlib import Path

from longcat.errors import ConfigError, StorageTimeoutError
from longcat.logs import log_event
from longcat.storage.deadlines import Deadlines
from service.access.caller import Caller
from service.access.keys import ApiKeys
from service.observability import metrics

log = logging.getLogger("lithograph")

_CHECK_SECONDS = 1.0
"""Longest time for which a removed key is still accepted."""
_READ_SECONDS = 2.0
"""Time limit of a check, on a file system that does not answer."""

_Stamp = tuple[int, int, int]


class KeyFile:
    """Holds the keys of a file, and reads it again when it has changed.

    Kubernetes replaces a mounted Secret by a link, an editor the file: both change its inode. A file that cannot be read, or
    has an error, leaves the keys as they are, with a log line and a metric: nobody is locked out by a typing error. It is
    read again at each check, so that a removed key does not outlive a file system's passing error.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ``ConfigError``."""
        self._path = path
        self._stamp = _stamp_of(path)
        self._keys = ApiKeys.read(path)
        self._problem = ""
        """The last change could not be read for this reason, which is logged once."""
        self._deadlines = Deadlines()
        self._next_check = time.monotonic() + _CHECK_SECONDS
        self._check: asyncio.Future[None] | None = None
        metrics.API_KEYS_CURRENT.set(1)

    @property
    def keys(self) -> ApiKeys:
        """The keys that were read last."""
        return self._keys

    async def caller_of(self, key: str) -> Caller | None:
        """Return the sender of a request with a key; None for an unknown key."""
        await self._refresh()
        return self._keys.caller_of(key)

    async def caller_named(self, name: str | None) -> Caller | None:
        """Return the sender of requests with the key of a name; None if there is no such key."""
        await self._refresh()
        return next((key.caller for key in self._keys.keys if key.name == name), None)

    async def _refresh(self) -> None:
        """Read the file again if it has changed, at most once a second and never on the event loop."""
        if self._check is None or self._check.done():
            if time.monotonic() < self._next_check:
                return
            self._check = asyncio.ensure_future(asyncio.to_thread(self._follow))
        await asyncio.wait({self._check})

    def _follow(self) -> None:
        """Take the file's keys if it has changed, or log why they cannot be read."""
        try:
            changes = self._deadlines.run(str(self._path), _READ_SECONDS, self._changes)
        except (ConfigError, StorageTimeoutError) as error:
            if self._problem != (problem := str(error)):
                self._problem = problem
                log_event(log, "api_keys_not_read", logging.ERROR, reason=problem, keys=len(self._keys.keys))
                metrics.API_KEYS_CURRENT.set(0)
        else:
            if changes is not None:
                self._stamp, self._keys = changes
                self._problem = ""
                log_event(log, "api_keys_read", keys=len(self._keys.keys))
                metrics.API_KEYS_CURRENT.set(1)
        finally:
            self._next_check = time.monotonic() + _CHECK_SECONDS

    def _changes(self) -> tuple[_Stamp, ApiKeys] | None:
        """Return the file's stamp and keys; None if they are the known ones. Raises ``ConfigError``."""
        stamp = _stamp_of(self._path)
        if stamp == self._stamp and not self._problem:
            return None
        return stamp, ApiKeys.read(self._path)


def _stamp_of(path: Path) -> _Stamp:
    """Return what changes with a file; zeros where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
