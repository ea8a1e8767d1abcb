"""Prompts with the picture that they edit: embeddings, cached by content within a bound of bytes.

Shapes: L prompt rows, J the text encoder's width.
"""

import torch
from PIL import Image
from torch import Tensor

from longcat.model.device.errors import first_that_fits
from longcat.model.loading import Components
from longcat.model.shape import PROMPT_CACHE_BYTES
from longcat.model.tokenizer import plain_ids
from longcat.sampling.encoding.byte_cache import ByteCache
from longcat.sampling.encoding.seen_picture import SeenPicture, encode_edit_prompt, see
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.sampling.prompt import EDIT_TEMPLATE_PREFIX, tokenize_prompt

_SEEN_SHARE = 8
"""One part in so many of the bound is for pictures as the vision tower has seen them, the rest for embeddings."""


class ReferenceEncoder:
    """The text encoder of a model that edits, with its vision tower. Any thread may call it."""

    def __init__(self, model: Components, *, most_bytes: int = PROMPT_CACHE_BYTES) -> None:
        """Encode nothing yet. ``most_bytes``: of all that is kept."""
        seen_bytes = most_bytes // _SEEN_SHARE
        self.seen: ByteCache[SeenPicture] = ByteCache(seen_bytes)
        self.prompts: ByteCache[Tensor] = ByteCache(most_bytes - seen_bytes)
        self._model = model

    @torch.no_grad()
    def embed(self, prompt: str, picture: SourcePicture) -> Tensor:
        """Return the embedding of a prompt with its picture, (1, L, J). Treat it as read-only.

        Raises ``PromptTooLongError``.
        """
        return self.prompts.get(
            (prompt, picture.digest),
            # The second attempt has the memory that torch had cached for other sizes.
            lambda: first_that_fits(lambda: self._embed(prompt, picture), lambda: self._embed(prompt, picture)),
        )

    def _embed(self, prompt: str, picture: SourcePicture) -> Tensor:
        model, limit = self._model, self._model.flavour.settings.max_prompt_tokens
        tokens = tokenize_prompt(prompt, plain_ids(model.tokenizer), max_tokens=limit, prefix=EDIT_TEMPLATE_PREFIX)
        return encode_edit_prompt(
            model.text_encoder,
            tokens,
            self.seen.get(picture.digest, lambda: self._see(picture)),
            pad_token_id=model.tokenizer.pad_token_id,
            max_tokens=limit,
            device=model.device,
        )

    def _see(self, picture: SourcePicture) -> SeenPicture:
        model = self._model
        assert model.image_processor is not None  # a model that edits has one
        return see(model.text_encoder, model.image_processor, half(picture), device=model.device)


def half(picture: SourcePicture) -> Image.Image:
    """Return a picture as the text encoder sees it: at half its sides."""
    canvas = Image.fromarray(picture.pixel_array)
    return canvas.resize((canvas.width // 2, canvas.height // 2), Image.Resampling.LANCZOS)
