"""The engine: one request's prompt to pictures. It knows neither HTTP nor the request schema, and owns the device.

One way through: rewrite -> encode text -> denoise (all pictures of the request in one forward a step) -> decode.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longcat import denoise
from longcat.loading import Components
from longcat.prompt import tokenize_prompt
from longcat.rewrite import rewrite_prompt
from longcat.text_encoder import encode_prompt
from longcat.tokenizer import plain_ids

OnStep = Callable[[int, int], None]
"""Called after every forward with the steps made and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to draw: everything is decided, nothing is left to a default."""

    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    cfg_renorm: bool
    rewrite_prompt: bool
    seeds: tuple[int, ...]
    """One picture each."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of an order, in the order of its seeds."""

    pictures: tuple[np.ndarray, ...]
    """Each (H, W, 3) in uint8."""
    prompt: str
    """The prompt that was drawn: the rewritten one, if it was."""
    text_seconds: float
    denoise_seconds: float
    decode_seconds: float


class Engine:
    """Draws orders one after the other on the device of its model."""

    def __init__(self, model: Components, *, max_rows: int) -> None:
        """``max_rows``: most rows (a picture has two, with guidance) that share a forward; it bounds memory; at least 2."""
        self.model = model
        self._max_pictures = max_rows // 2
        if model.device.type == "cpu":
            denoise.make_rows_independent(model.transformer)

    def draw(self, order: Order, on_step: OnStep | None = None) -> Drawn:
        """Draw all pictures of an order."""
        begin = self._now()
        prompt = order.prompt
        if order.rewrite_prompt:
            limit = self.model.flavour.settings.max_prompt_tokens
            prompt = rewrite_prompt(self.model.text_encoder, self.model.tokenizer, prompt, max_tokens=limit)
        embeds = self._encode(prompt)
        negative_embeds = self._encode(order.negative_prompt) if order.guidance_scale > 1 else None
        encoded = self._now()
        pictures = [
            denoise.start(
                self.model,
                embeds_1LD=embeds,
                negative_embeds_1LD=negative_embeds,
                height_px=order.height_px,
                width_px=order.width_px,
                steps=order.steps,
                guidance_scale=order.guidance_scale,
                cfg_renorm=order.cfg_renorm,
                seed=seed,
            )
            for seed in order.seeds
        ]
        total = order.steps * -(-len(pictures) // self._max_pictures)
        made = 0
        for first in range(0, len(pictures), self._max_pictures):
            together = pictures[first : first + self._max_pictures]
            while not together[0].is_done:
                denoise.advance(self.model.transformer, together)
                made += 1
                if on_step is not None:
                    on_step(made, total)
        denoised = self._now()
        pixels = tuple(denoise.decode(self.model.vae, picture) for picture in pictures)
        return Drawn(
            pictures=pixels,
            prompt=prompt,
            text_seconds=encoded - begin,
            denoise_seconds=denoised - encoded,
            decode_seconds=self._now() - denoised,
        )

    def _now(self) -> float:
        """Seconds on a clock, once the device has done what it was told so far."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        elif self.model.device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()

    def _encode(self, prompt: str) -> Tensor:
        limit, tokenizer = self.model.flavour.settings.max_prompt_tokens, self.model.tokenizer
        return encode_prompt(
            self.model.text_encoder,
            tokenize_prompt(prompt, plain_ids(tokenizer), max_tokens=limit),
            pad_token_id=tokenizer.pad_token_id,
            max_tokens=limit,
            device=self.model.device,
        )
