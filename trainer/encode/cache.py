"""The trainer's cache of latents and prompt embeddings: files (``longcat.sampling.encoding.files``) and main memory.

Several trainings may share a cache, as an entry's content follows from its key.

Shapes: N image tokens, C = 64, T rows up to the first pad row, J the text encoder's width.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from longcat.errors import DataError, StorageError
from longcat.problem import show
from longcat.sampling.encoding.files import TensorFiles

_UNUSED_DAYS = 30


class Cache(TensorFiles):
    """Tensors by key, in files and, up to ``memory_bytes``, in main memory."""

    def __init__(self, folder: Path, *, memory_bytes: int = 2 * 2**30) -> None:
        super().__init__(folder)
        self._unused_bytes = memory_bytes
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def read(self, key: str) -> Tensor | None:
        """Return an entry, on the CPU; None if it is missing or damaged."""
        if key in self._held:
            return self._held[key]
        tensor = super().read(key)
        if tensor is not None:
            self._hold(key, tensor)
        return tensor

    def require(self, key: str, source: str) -> Tensor:
        """Return an entry that was cached before training, on the CPU. Raises ``DataError`` if it is lost."""
        tensor = self.read(key)
        if tensor is None:
            raise DataError(
                "cache_entry_lost",
                "the entry of {source} was removed or damaged after the run began",
                remedy="start again, which computes it again",
                field="cache",
                value=str(self.folder),
                source=show(source),
            )
        return tensor

    def write(self, key: str, tensor: Tensor) -> None:
        """Store an entry. Raises ``StorageError`` if the disk is full or cannot be written."""
        try:
            super().write(key, tensor)
        except StorageError as error:
            raise StorageError(
                "cache_not_written",
                "the cache cannot be written: {cause}",
                remedy="free some disk space, or give another directory",
                field="cache_dir",
                value=str(self.folder),
                cause=error.problems[0],
            ) from error

    def prune(self) -> int:
        """Remove entries that no training has used for 30 days, and files of killed writers; return their number."""
        limit = time.time() - _UNUSED_DAYS * 86400
        old = [file.path for file in self.files() if file.used_at < limit]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _hold(self, key: str, tensor: Tensor) -> None:
        self._held[key] = tensor
        self._unused_bytes -= tensor.nbytes
        while self._unused_bytes < 0:
            _, dropped = self._held.popitem(last=False)
            self._unused_bytes += dropped.nbytes


def fill(
    cache: Cache,
    batches: Sequence[tuple[tuple[str, ...], Callable[[], Iterable[Tensor]]]],
    on_done: Callable[[int, int, int], None],
) -> int:
    """Compute missing entries and return their number. ``on_done`` gets the entries done, of all, and cache hits.

    A batch is its keys and a function that computes all of them. It is computed whole if any entry is missing, so that an
    entry's numbers do not depend on the hits among the others.
    """
    total = sum(len(keys) for keys, _ in batches)
    done = hits = 0
    for keys, compute in batches:
        if all(cache.read(key) is not None for key in keys):
            cache.touch(keys)
            hits += len(keys)
        else:
            for key, tensor in zip(keys, compute(), strict=True):
                cache.write(key, tensor)
        done += len(keys)
        on_done(done, total, hits)
    return done - hits
