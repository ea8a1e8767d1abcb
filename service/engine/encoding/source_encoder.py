"""Pictures of requests to latents: the VAE's encoder, and a cache of latents by content."""

from contextlib import AbstractContextManager

import torch

from longcat.model.loading import Components
from longcat.model.shape import SOURCE_CACHE_BYTES
from longcat.sampling.encoding.byte_cache import ByteCache
from longcat.sampling.encoding.source import EncodedSource, area_of, encode_picture_latents
from longcat.sampling.encoding.source_picture import SourcePicture


class SourceEncoder:
    """The VAE's encoder for the pictures of requests. Any thread may call it."""

    def __init__(self, model: Components, exclusive: AbstractContextManager[object]) -> None:
        """Encode nothing yet. ``exclusive``: entered while the VAE encodes, for a device that has memory for one image."""
        self._model = model
        self._exclusive = exclusive
        self.cache: ByteCache[torch.Tensor] = ByteCache(SOURCE_CACHE_BYTES)

    def encode(self, picture: SourcePicture, *, strength: float) -> EncodedSource:
        """Return the picture as the source of images. Its latents may be cached: treat them as read-only."""
        model = self._model
        clean_1NC = self.cache.get(picture.digest, lambda: self._latents(picture))
        area = area_of(picture, device=model.device, dtype=model.dtype)
        return EncodedSource(clean_1NC=clean_1NC, strength=strength, area=area)

    def _latents(self, picture: SourcePicture) -> torch.Tensor:
        with self._exclusive:
            return encode_picture_latents(
                self._model.vae, picture.pixel_array, device=self._model.device, dtype=self._model.dtype
            )
