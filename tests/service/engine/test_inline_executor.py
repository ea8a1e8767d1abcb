"""The executor without threads."""

import queue
from collections.abc import Callable

import pytest

from service.engine.inline_executor import InlineExecutor


def test_a_future_has_the_result_or_the_exception_of_its_call() -> None:
    inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    executor = InlineExecutor(inbox)
    half, failed = executor.submit(divmod, 7, 2), executor.submit(divmod, 7, 0)
    assert not half.done()
    while not inbox.empty():
        inbox.get()()
    assert half.result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        failed.result(timeout=0)
