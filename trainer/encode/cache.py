"""The cache of latents and prompt embeddings on disk, keyed by everything that affects them, so that none is stale.

An entry is a safetensors file named by its key, written atomically, with the SHA-256 of its numbers in its header: a
damaged entry is computed again. A prompt embedding keeps one pad row, which stands for all of them
(``longcat.sampling.text_encoder``).
Several trainings may share a cache, as an entry's content follows from its key.

Shapes: N image tokens, C = 64, L prompt rows, T rows up to the first pad row, J the text encoder's width.
"""

import hashlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from longcat.errors import DataError, StorageError
from longcat.problem import show
from longcat.storage.atomic import write_atomically

_UNUSED_DAYS = 30
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
"""Part of the names of entries, and of those that are being written."""


class Cache:
    """Tensors by key, in files and, up to ``memory_bytes``, in main memory."""

    def __init__(self, folder: Path, *, memory_bytes: int = 2 * 2**30) -> None:
        self.folder = folder
        self._unused_bytes = memory_bytes
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def read(self, key: str) -> Tensor | None:
        """Return an entry, on the CPU; None if it is missing or damaged."""
        if key in self._held:
            return self._held[key]
        try:
            with safe_open(self._path(key), framework="pt") as stream:
                tensor: Tensor = stream.get_tensor("rows")
                digest = (stream.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        if digest != _digest(tensor):
            return None
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
        tensor = tensor.detach().cpu().contiguous()
        path = self._path(key)
        content = save({"rows": tensor}, metadata={"sha256": _digest(tensor)})
        try:
            write_atomically(path, content, durable=False)  # reading detects an entry torn by a power cut
        except StorageError as error:
            raise StorageError(
                "cache_not_written",
                "the cache cannot be written: {cause}",
                remedy="free some disk space, or give another directory",
                field="cache_dir",
                value=str(self.folder),
                cause=error.problems[0],
            ) from error

    def touch(self, keys: Iterable[str]) -> None:
        """Mark entries as used, so that ``prune`` keeps them."""
        for key in keys:
            os.utime(self._path(key))

    def prune(self) -> int:
        """Remove entries that no training has used for 30 days, and files of killed writers; return their number.

        Other files in the directory stay, because a user may have chosen one that is not only a cache.
        """
        limit = time.time() - _UNUSED_DAYS * 86400
        old = [path for path in self.folder.glob("*/*") if _ENTRY.search(path.name) and path.stat().st_mtime < limit]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _hold(self, key: str, tensor: Tensor) -> None:
        self._held[key] = tensor
        self._unused_bytes -= tensor.nbytes
        while self._unused_bytes < 0:
            _, dropped = self._held.popitem(last=False)
            self._unused_bytes += dropped.nbytes

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """Return the key of a result that follows from these parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


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


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
