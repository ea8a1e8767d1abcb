"""Embeddings of prompts on disk, shared by all servers of a model: a known prompt needs no text encoder.

Shapes: L prompt rows, T rows up to the first pad row, J the text encoder's width.
"""

import contextlib
import logging
import threading
from pathlib import Path

import torch
from torch import Tensor

from longcat.errors import StorageError
from longcat.logs import log_event
from longcat.model.loading import Components
from longcat.model.quantized.snapshot import device_kind, library_versions
from longcat.model.shape import POSITION_POLICY
from longcat.sampling.encoding.files import TensorFiles, compact, key_of, prompt_rows
from service.config import ModelConfig

log = logging.getLogger("lithograph")

_UNSEEN_SHARE = 16
"""A server looks at the folder's files again once it has written this part of the limit, so that servers which write at the
same time exceed the limit by no more than this part each."""
_HEADER_BYTES = 256
"""The most that a file has beside the embedding."""


class PromptFiles:
    """The embeddings of one model's prompts. All methods may be called from any thread."""

    def __init__(self, model: Components, folder: Path, *, most_bytes: int) -> None:
        """Read and write nothing yet. ``most_bytes``: size of the folder, beyond which the oldest embeddings are removed."""
        self._model = model
        self._files = TensorFiles(folder)
        self._most_bytes = most_bytes
        self._rows = model.flavour.settings.max_prompt_tokens
        self._writing = threading.Lock()
        self._unseen_bytes = most_bytes
        """Bytes written since the folder's files were last looked at."""
        self._has_failed = False

    def read(self, prompt: str) -> Tensor | None:
        """Return a prompt's embedding, (1, L, J), on the device; None if it is not there or damaged."""
        key = self._key(prompt)
        rows_TJ = self._files.read(key)
        if rows_TJ is None or not self._fits(rows_TJ):
            return None
        with contextlib.suppress(OSError):  # a read-only folder, or another server has removed it
            self._files.touch([key])
        return prompt_rows(rows_TJ, self._rows)[None].to(self._model.device)

    def write(self, prompt: str, embeds_1LJ: Tensor, *, body: int) -> None:
        """Keep the embedding of a prompt of ``body`` tokens. If the disk is full or read-only, log it once."""
        rows_TJ = compact(embeds_1LJ, body=body)
        try:
            with self._writing:
                self._make_room(rows_TJ.nbytes)
                self._files.write(self._key(prompt), rows_TJ)
        except (OSError, StorageError) as error:
            if not self._has_failed:
                self._has_failed = True
                log_event(log, "prompt_cache_not_written", logging.WARNING, reason=str(error))

    def _make_room(self, size_bytes: int) -> None:
        """Remove the embeddings that were used least recently, if this one may exceed the limit."""
        size_bytes += _HEADER_BYTES
        self._unseen_bytes += size_bytes
        if self._unseen_bytes <= self._most_bytes // _UNSEEN_SHARE:
            return
        self._unseen_bytes = size_bytes
        files = sorted(self._files.files())
        kept_bytes = self._most_bytes * (_UNSEEN_SHARE - 1) // _UNSEEN_SHARE
        excess = sum(file.size_bytes for file in files) + size_bytes - kept_bytes
        for file in files:
            if excess <= 0:
                return
            file.path.unlink(missing_ok=True)
            excess -= file.size_bytes

    def _fits(self, rows_TJ: Tensor) -> bool:
        width: int = self._model.transformer.config.joint_attention_dim
        shape = rows_TJ.shape
        return rows_TJ.dtype == self._model.dtype and len(shape) == 2 and shape[0] <= self._rows and shape[1] == width

    def _key(self, prompt: str) -> str:
        """Return the digest of all that an embedding follows from, to the last bit."""
        model = self._model
        kind = device_kind(model.device)
        if model.device.type == "cpu":
            kind += torch.backends.cpu.get_cpu_capability()
        settings = model.text_encoder_precision, model.dtype, kind, self._rows, POSITION_POLICY
        return key_of("prompt", prompt, model.flavour.hash, *settings, *library_versions(), 1)


def prompt_files(model: Components, config: ModelConfig) -> PromptFiles | None:
    """Return the files that the configuration gives, None without."""
    if config.prompt_cache_dir is None:
        return None
    return PromptFiles(model, config.prompt_cache_dir, most_bytes=config.prompt_cache_mib * 2**20)
