"""Latents and prompt embeddings on disk, keyed by all that decides them: nothing is computed twice, nothing stale is used.

An entry is a safetensors file named by its key, written beside and renamed, with the SHA-256 of its numbers in its header:
what is damaged is computed again. Prompt embeddings keep one pad row, which stands for all (``longcat.text_encoder``).
Several trainings may share a cache: an entry's content follows from its key.

Shapes: N image tokens, C = 64, L prompt rows, T rows up to the first pad row, J the text encoder's width.
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from longcat.errors import StorageError
from trainer.atomic import write_atomically

_UNUSED_DAYS = 30


class Cache:
    """Tensors by key, in files and, as far as ``memory_bytes`` go, in main memory."""

    def __init__(self, folder: Path, *, memory_bytes: int = 2 * 2**30) -> None:
        self.folder = folder
        self._room = memory_bytes
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def read(self, key: str) -> Tensor | None:
        """The entry, on the CPU; None if it is not there or damaged."""
        if key in self._held:
            return self._held[key]
        try:
            with safe_open(self._path(key), framework="pt") as stream:
                tensor: Tensor = stream.get_tensor("rows")
                said = (stream.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        if said != _digest(tensor):
            return None
        self._hold(key, tensor)
        return tensor

    def write(self, key: str, tensor: Tensor) -> None:
        """Store an entry. Raises ``StorageError`` if the disk is full or not to be written."""
        tensor = tensor.detach().cpu().contiguous()
        path = self._path(key)
        content = save({"rows": tensor}, metadata={"sha256": _digest(tensor)})
        try:
            write_atomically(path, content, durable=False)  # what a power cut tears is found out when it is read
        except StorageError as error:
            raise StorageError(f"cache: {error}; make room, or name another cache_dir") from error

    def touch(self, keys: Iterable[str]) -> None:
        """These are in use."""
        for key in keys:
            os.utime(self._path(key))

    def prune(self) -> int:
        """Remove entries that no training has used for a month, and what writers that died left; return how many."""
        limit = time.time() - _UNUSED_DAYS * 86400
        old = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_mtime < limit]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _hold(self, key: str, tensor: Tensor) -> None:
        self._held[key] = tensor
        self._room -= tensor.nbytes
        while self._room < 0:
            _, dropped = self._held.popitem(last=False)
            self._room += dropped.nbytes

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """A key for what follows from these."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def fill(
    cache: Cache,
    batches: Sequence[tuple[tuple[str, ...], Callable[[], Iterable[Tensor]]]],
    on_done: Callable[[int, int, int], None],
) -> int:
    """Compute what is missing; return how many entries were. ``on_done`` hears of entries done, of all, and of those found.

    A batch is its keys and what computes them all: it is computed whole if any is missing, so that an entry's numbers do not
    depend on which of its neighbours were there.
    """
    total = sum(len(keys) for keys, _ in batches)
    done = found = 0
    for keys, compute in batches:
        if all(cache.read(key) is not None for key in keys):
            cache.touch(keys)
            found += len(keys)
        else:
            for key, tensor in zip(keys, compute(), strict=True):
                cache.write(key, tensor)
        done += len(keys)
        on_done(done, total, found)
    return done - found


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
