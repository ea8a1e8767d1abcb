"""Prompts to embeddings: rewritten if that was asked, encoded, and the last ones kept."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from longcat.loading import Components
from longcat.prompt import tokenize_prompt
from longcat.rewrite import rewrite_prompt
from longcat.text_encoder import encode_prompt
from longcat.tokenizer import plain_ids

_CACHE_BYTES = 256 * 2**20


class CacheUse(NamedTuple):
    """How often an encoded prompt was at hand."""

    hits: int
    misses: int


class Prompts:
    """Reads prompts with one model; from any thread."""

    def __init__(self, model: Components) -> None:
        self._model = model
        self._most_tokens = model.flavour.settings.max_prompt_tokens
        each_bytes = self._most_tokens * model.transformer.config.joint_attention_dim * model.dtype.itemsize
        self._encode_and_keep = lru_cache(max(1, _CACHE_BYTES // each_bytes))(self._encode)

    @property
    def cache_use(self) -> CacheUse:
        """Since the start."""
        info = self._encode_and_keep.cache_info()
        return CacheUse(info.hits, info.misses)

    @torch.no_grad()
    def rewrite(self, prompt: str) -> str:
        """The prompt enriched by the model's own text encoder."""
        return rewrite_prompt(self._model.text_encoder, self._model.tokenizer, prompt, max_tokens=self._most_tokens)

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """What the transformer reads, which nobody may change. Raises ``PromptTooLongError``."""
        embeds_1LJ: Tensor = self._encode_and_keep(prompt)
        return embeds_1LJ

    def _encode(self, prompt: str) -> Tensor:
        model = self._model
        return encode_prompt(
            model.text_encoder,
            tokenize_prompt(prompt, plain_ids(model.tokenizer), max_tokens=self._most_tokens),
            pad_token_id=model.tokenizer.pad_token_id,
            max_tokens=self._most_tokens,
            device=model.device,
        )
