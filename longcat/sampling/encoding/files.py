"""Encoded pictures and prompts on disk, keyed by everything that affects them, so that none is stale.

An entry is a safetensors file named by its key and written atomically. The SHA-256 in its header covers the key, the
tensor's type and shape, and its numbers: a damaged entry counts as missing, and is computed again. Several processes may
share a folder, as an entry's content follows from its key.

A prompt's embedding keeps one pad row, which stands for all of them (``longcat.sampling.encoding.text_encoder``).

Shapes: L prompt rows, T rows up to the first pad row, J the text encoder's width.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from longcat.storage.atomic import write_atomically

_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
"""Part of the names of entries, and of those that are being written."""


class StoredFile(NamedTuple):
    """An entry on disk, or the rest of one whose writer was killed."""

    used_at: float
    """Time of its last use, in seconds since the epoch."""
    size_bytes: int
    path: Path


class TensorFiles:
    """Tensors by key, in the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Tensor | None:
        """Return an entry, on the CPU; None if it is missing or damaged."""
        try:
            with safe_open(self._path(key), framework="pt") as stream:
                tensor: Tensor = stream.get_tensor("rows").clone()  # a mapped file that is cut short ends the process
                digest = (stream.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        return tensor if digest == _digest(key, tensor) else None

    def write(self, key: str, tensor: Tensor) -> None:
        """Store an entry. Raises ``StorageError`` if the disk is full or cannot be written."""
        tensor = tensor.detach().cpu().contiguous()
        content = save({"rows": tensor}, metadata={"sha256": _digest(key, tensor)})
        write_atomically(self._path(key), content, durable=False)  # reading detects an entry torn by a power cut

    def touch(self, keys: Iterable[str]) -> None:
        """Mark entries as used."""
        for key in keys:
            os.utime(self._path(key))

    def files(self) -> Iterator[StoredFile]:
        """Yield all files of entries. Other files in the folder are not ours: it need not be only a cache."""
        for path in self.folder.glob("*/*"):
            if _ENTRY.search(path.name):
                with contextlib.suppress(OSError):  # removed meanwhile
                    status = path.stat()
                    yield StoredFile(status.st_mtime, status.st_size, path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """Return the key of a result that follows from these parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def compact(embeds_1LJ: Tensor, *, body: int) -> Tensor:
    """Return what is stored of a prompt's embedding, (T, J): the rows of its ``body`` tokens and one pad row."""
    return embeds_1LJ[0, : body + 1]


def prompt_rows(rows_TJ: Tensor, length: int) -> Tensor:
    """Extend a stored embedding to its full length, (L, J): its last row is a pad row and is repeated."""
    missing = length - rows_TJ.shape[0]
    return rows_TJ if missing == 0 else torch.cat([rows_TJ, rows_TJ[-1:].expand(missing, -1)])


def _digest(key: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
