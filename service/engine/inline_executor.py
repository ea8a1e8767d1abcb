"""An executor without threads: calls go to an inbox, and run in the thread that reads it."""

import queue
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class InlineExecutor(Executor):
    """An executor for weights that are offloaded between devices: two threads would move them under each other."""

    def __init__(self, inbox: queue.SimpleQueue[Callable[[], None]]) -> None:
        self._inbox = inbox

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Put a call into the inbox; the future has its result, or its exception, once the call has run."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as error:  # any: the future carries it to the waiting thread, as in every executor
                done.set_exception(error)

        self._inbox.put(run)
        return done
