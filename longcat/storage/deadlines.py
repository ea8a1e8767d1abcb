"""Blocking calls to storage, each with a deadline. No torch."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from longcat.errors import StorageTimeoutError

Result = TypeVar("Result")


class Deadlines:
    """Runs each call in a thread of its own, and abandons that thread at the call's deadline.

    Nothing can interrupt a read from a dead network mount, or from a server that sends a byte a minute. While an abandoned
    thread lives, further calls with its URI fail at once: threads do not add up, and only the first call waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._overdue: Counter[str] = Counter()
        """Abandoned threads that have not ended, by URI."""

    def run(self, uri: str, seconds: float, call: Callable[[], Result]) -> Result:
        """Return the call's result, or raise its exception. Raises ``StorageTimeoutError`` at the deadline."""
        if self._overdue[uri]:
            raise _timeout(uri, seconds)
        future: Future[Result] = Future()
        threading.Thread(target=settle, args=(call, future), daemon=True, name="storage").start()
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():  # the call's own
                raise
            with self._lock:
                self._overdue[uri] += 1
            future.add_done_callback(lambda _: self._end(uri))
            raise _timeout(uri, seconds) from None

    def _end(self, uri: str) -> None:
        with self._lock:
            self._overdue[uri] -= 1
            if not self._overdue[uri]:
                del self._overdue[uri]


def settle(call: Callable[[], Result], future: Future[Result]) -> None:
    """Make a call, and give its result or its exception to a future: the target of a thread that may be abandoned."""
    try:
        result = call()
    except BaseException as error:  # any: it is the caller's
        future.set_exception(error)
    else:
        future.set_result(result)


def _timeout(uri: str, seconds: float) -> StorageTimeoutError:
    return StorageTimeoutError(
        "storage_timeout",
        "{uri} has not been read within {seconds} s",
        remedy="check the storage, its network and its mounts",
        uri=uri,
        seconds=round(seconds),
    )
