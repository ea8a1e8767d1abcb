"""Prompts to embeddings: optional rewriting, the text encoder, and caches of embeddings in memory and on disk."""

import threading
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from longcat.model.device.errors import first_that_fits
from longcat.model.loading import Components
from longcat.model.shape import PROMPT_CACHE_BYTES
from longcat.model.tokenizer import plain_ids
from longcat.sampling.encoding.reference import ReferenceEncoder
from longcat.sampling.encoding.rewrite import rewrite_prompt
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.sampling.encoding.text_encoder import encode_prompt
from longcat.sampling.prompt import PromptTokens, tokenize_prompt
from service.engine.encoding.prompt_files import PromptFiles


class CacheCounts(NamedTuple):
    """Lookups of embeddings since the start: in memory, on disk, and misses."""

    memory: int
    disk: int
    misses: int


class PromptEncoder:
    """The text encoder of one model, with its caches. All methods may be called from any thread."""

    def __init__(self, model: Components, files: PromptFiles | None) -> None:
        """Encode nothing yet. ``files``: embeddings on disk."""
        self._model = model
        self._files = files
        self._counting = threading.Lock()
        self._disk_hits = 0
        self._rewriting = threading.Lock()
        """One prompt at a time: the language head is on the device meanwhile, and so are the keys and values of the text."""
        self._max_tokens = model.flavour.settings.max_prompt_tokens
        embedding_bytes = self._max_tokens * model.transformer.config.joint_attention_dim * model.dtype.itemsize
        self._cached_encode = lru_cache(max(1, PROMPT_CACHE_BYTES // embedding_bytes))(self._find)
        self._references = ReferenceEncoder(model)
        """Of prompts with a picture, which a model that edits has, and no others."""

    @property
    def cache_counts(self) -> CacheCounts:
        """Return the cache hits and misses since the start."""
        info = self._cached_encode.cache_info()
        pictured = self._references.prompts
        return CacheCounts(info.hits + pictured.hits, self._disk_hits, info.misses - self._disk_hits + pictured.misses)

    @torch.no_grad()
    def rewrite(self, prompt: str) -> str:
        """Return the prompt, rewritten by the model's own text encoder."""
        model = self._model
        with self._rewriting:
            return rewrite_prompt(
                model.text_encoder, model.tokenizer, prompt, max_tokens=self._max_tokens, device=model.device
            )

    @torch.no_grad()
    def encode(self, prompt: str, reference: SourcePicture | None = None) -> Tensor:
        """Return the cached embedding, (1, L, J). Treat it as read-only. Raises ``PromptTooLongError``.

        ``reference``: the picture that is seen with the prompt, by a model that edits; those embeddings are not on disk.
        """
        if reference is not None:
            return self._references.embed(prompt, reference)
        embeds_1LJ: Tensor = self._cached_encode(prompt)
        return embeds_1LJ

    def _find(self, prompt: str) -> Tensor:
        """Return the embedding on disk, or encode the prompt and keep it."""
        if self._files is None:
            return self._encode(self._tokens(prompt))
        found = self._files.read(prompt)
        if found is not None:
            with self._counting:
                self._disk_hits += 1
            return found
        tokens = self._tokens(prompt)
        embeds_1LJ = self._encode(tokens)
        self._files.write(prompt, embeds_1LJ, body=len(tokens.body))
        return embeds_1LJ

    def _tokens(self, prompt: str) -> PromptTokens:
        return tokenize_prompt(prompt, plain_ids(self._model.tokenizer), max_tokens=self._max_tokens)

    def _encode(self, tokens: PromptTokens) -> Tensor:
        model = self._model

        def encode() -> Tensor:
            return encode_prompt(
                model.text_encoder,
                tokens,
                pad_token_id=model.tokenizer.pad_token_id,
                max_tokens=self._max_tokens,
                device=model.device,
            )

        return first_that_fits(
            encode, encode
        )  # the second attempt has the memory that torch had cached for other sizes
