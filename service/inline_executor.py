"""An executor without threads: what is submitted is put into somebody's inbox, who runs it between other things."""

import queue
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class InlineExecutor(Executor):
    """Runs what is submitted wherever the inbox is emptied."""

    def __init__(self, inbox: queue.SimpleQueue[Callable[[], None]]) -> None:
        self._inbox = inbox

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Put a call into the inbox."""
        done: Future[Any] = Future()
        self._inbox.put(lambda: done.set_result(fn(*args, **kwargs)))
        return done
