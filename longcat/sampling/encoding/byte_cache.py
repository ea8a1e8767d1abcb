"""A cache that is bounded by the bytes of its values. No torch."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class HasBytes(Protocol):
    """A value of known size, such as a tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""


_Value = TypeVar("_Value", bound=HasBytes)


class ByteCache(Generic[_Value]):
    """Values by key, of which those that were used least recently are evicted. Any thread may call it."""

    def __init__(self, most_bytes: int) -> None:
        """Start empty. ``most_bytes``: of all values together; a larger value is not kept."""
        self.hits = 0
        self.misses = 0
        self.used_bytes = 0
        self._most_bytes = most_bytes
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], _Value]) -> _Value:
        """Return the value of a key; compute it, outside the lock, if it is not there."""
        with self._lock:
            if key in self._values:
                self.hits += 1
                self._values.move_to_end(key)
                return self._values[key]
            self.misses += 1
        value = compute()
        if value.nbytes > self._most_bytes:
            return value
        with self._lock:
            if key not in self._values:  # another thread may have computed it meanwhile
                self._values[key] = value
                self.used_bytes += value.nbytes
            while self.used_bytes > self._most_bytes:
                _, evicted = self._values.popitem(last=False)
                self.used_bytes -= evicted.nbytes
        return value
