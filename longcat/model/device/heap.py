"""Main memory that was freed, given back to the system."""

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Give back the memory that glibc keeps of freed blocks below 32 MiB; do nothing with other C libraries.

    A model that is quantized layer by layer otherwise leaves its size behind in freed weights. See malloc_trim(3).
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    found: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
    return found
