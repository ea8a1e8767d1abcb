"""Pictures that are edited: at their canvas, as latents, and with a prompt. What is computed is cached by content.

Shapes: H and W the canvas in px, N its tokens, C = 64, L prompt rows, J the text encoder's width.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longcat.model.device.errors import first_that_fits
from longcat.model.device.threads import one_core
from longcat.model.loading import Components
from longcat.model.shape import PROMPT_CACHE_BYTES
from longcat.model.tokenizer import plain_ids
from longcat.sampling import latents
from longcat.sampling.encoding.byte_cache import ByteCache
from longcat.sampling.encoding.seen_picture import SeenPicture, encode_edit_prompt, see
from longcat.sampling.prompt import EDIT_TEMPLATE_PREFIX, tokenize_prompt


@dataclass(frozen=True, eq=False)
class ReferencePicture:
    """A picture that is edited, in mode RGB, of its canvas' size."""

    canvas: Image.Image

    @classmethod
    def of(cls, picture: Image.Image, *, width_px: int, height_px: int) -> "ReferencePicture":
        """Return a picture brought to a canvas, sides in multiples of 16 px (``longcat.model.shape.canvas_size``)."""
        return cls(picture.convert("RGB").resize((width_px, height_px), Image.Resampling.LANCZOS))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canvas' size and pixels."""
        return hashlib.sha256(f"{self.canvas.size}\0".encode() + self.canvas.tobytes()).hexdigest()

    @property
    def half(self) -> Image.Image:
        """The picture as the text encoder sees it, at half the canvas' sides."""
        return self.canvas.resize((self.canvas.width // 2, self.canvas.height // 2), Image.Resampling.LANCZOS)

    @property
    def pixels(self) -> Tensor:
        """The canvas in -1..1, (1, 3, H, W) in float32."""
        return torch.from_numpy(np.asarray(self.canvas, dtype=np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1


class ReferenceEncoder:
    """The encoders of a model that edits, for its pictures and the prompts about them. Any thread may call its methods."""

    def __init__(self, model: Components, *, most_bytes: int = PROMPT_CACHE_BYTES) -> None:
        """Encode nothing yet. ``most_bytes``: of latents, seen pictures and embeddings that are kept, together."""
        self.cache: ByteCache[Any] = ByteCache(most_bytes)
        self._model = model

    def latents(self, picture: ReferencePicture) -> Tensor:
        """Return the picture's packed latents, (1, N, C), on the device. Treat them as read-only."""
        packed: Tensor = self.cache.get(("latents", picture.digest), lambda: self._fitting(self._latents, picture))
        return packed

    def embed(self, prompt: str, picture: ReferencePicture) -> Tensor:
        """Return the embedding of a prompt with its picture, (1, L, J). Treat it as read-only.

        Raises ``PromptTooLongError``.
        """
        key = ("prompt", prompt, picture.digest)
        embeds_1LJ: Tensor = self.cache.get(key, lambda: self._fitting(self._embed, prompt, picture))
        return embeds_1LJ

    @staticmethod
    def _fitting(compute: Any, *arguments: Any) -> Tensor:
        """Compute; if memory runs out, once more, with what torch had cached for other sizes."""
        result: Tensor = first_that_fits(lambda: compute(*arguments), lambda: compute(*arguments))
        return result

    @torch.no_grad()
    def _latents(self, picture: ReferencePicture) -> Tensor:
        model = self._model
        pixels = picture.pixels.to(model.device, model.vae.dtype).contiguous(memory_format=torch.channels_last)
        with one_core(model.device):
            return latents.pack(latents.encode(model.vae, pixels)).to(model.dtype)

    def _embed(self, prompt: str, picture: ReferencePicture) -> Tensor:
        model, limit = self._model, self._model.flavour.settings.max_prompt_tokens
        tokens = tokenize_prompt(prompt, plain_ids(model.tokenizer), max_tokens=limit, prefix=EDIT_TEMPLATE_PREFIX)
        seen: SeenPicture = self.cache.get(("seen", picture.digest), lambda: self._see(picture))
        return encode_edit_prompt(
            model.text_encoder,
            tokens,
            seen,
            pad_token_id=model.tokenizer.pad_token_id,
            max_tokens=limit,
            device=model.device,
        )

    def _see(self, picture: ReferencePicture) -> SeenPicture:
        model = self._model
        assert model.image_processor is not None  # a model that edits has one
        return see(model.text_encoder, model.image_processor, picture.half, device=model.device)
