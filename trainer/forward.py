"""What training saves of the transformer's forward and backward passes; the mathematics is diffusers' own.

The last block's prompt rows are read by nobody: it asks, feeds forward and projects for the image's rows alone, as
``longcat.forward`` does when it draws. Rotations are products of complex numbers, which is one pass each way instead of six.

Shapes: B batch, T rows of prompt and image, D the inner width.
"""

from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_longcat_image import (
    LongCatImageAttention,
    LongCatImageAttnProcessor,
    LongCatImageSingleTransformerBlock,
)
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, (T, head width) each; every number is there twice."""


def slim(transformer: LongCatImageTransformer2DModel) -> None:
    """Make the transformer compute only what its output needs. Parameters, names and results stay."""
    transformer.set_attn_processor(_Attention())
    # The same module with another forward: what holds it, offloads it or wraps it need not know.
    transformer.single_transformer_blocks[-1].__class__ = _LastBlock


class _LastBlock(LongCatImageSingleTransformerBlock):  # type: ignore[misc]  # diffusers ships no types
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rope,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of prompt (B, L, D) and image (B, N, D): the prompt as it came, and the image's rows."""
        skipped = encoder_hidden_states.shape[1]
        tokens_BTD, gate_BD = self.norm(torch.cat([encoder_hidden_states, hidden_states], dim=1), emb=temb)
        mlp = self.act_mlp(self.proj_mlp(tokens_BTD[:, skipped:]))
        attended = self.attn(
            hidden_states=tokens_BTD,
            image_rotary_emb=image_rotary_emb,
            skipped=skipped,
            **(joint_attention_kwargs or {}),
        )
        out = hidden_states + gate_BD.unsqueeze(1) * self.proj_out(torch.cat([attended, mlp], dim=2))
        return encoder_hidden_states, out.clip(-65504, 65504) if out.dtype == torch.float16 else out


class _Attention(LongCatImageAttnProcessor):  # type: ignore[misc]
    """One for all blocks, so that they share the rotations of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self._cosines: Tensor | None = None
        self._turns: Tensor | None = None

    def __call__(
        self,
        attn: LongCatImageAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rope | None = None,
        skipped: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention over (B, T, D); the first ``skipped`` rows are attended and ask nothing."""
        assert image_rotary_emb is not None

        def heads(layer: Any, x_BTD: Tensor) -> Tensor:
            return layer(x_BTD).unflatten(-1, (attn.heads, -1))  # type: ignore[no-any-return]

        query = attn.norm_q(heads(attn.to_q, hidden_states[:, skipped:]))
        key = attn.norm_k(heads(attn.to_k, hidden_states))
        value = heads(attn.to_v, hidden_states)
        if encoder_hidden_states is not None:
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj, encoder_hidden_states)), query], dim=1)
            key = torch.cat([attn.norm_added_k(heads(attn.add_k_proj, encoder_hidden_states)), key], dim=1)
            value = torch.cat([heads(attn.add_v_proj, encoder_hidden_states), value], dim=1)
        joined: Tensor = dispatch_attention_fn(
            self._rotate(query, image_rotary_emb, skipped),
            self._rotate(key, image_rotary_emb, 0),
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = joined.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        prompt_rows = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](attended[:, prompt_rows:]))
        return image, attn.to_add_out(attended[:, :prompt_rows])

    def _rotate(self, x: Tensor, rope: Rope, skipped: int) -> Tensor:
        """Turn pairs of numbers of (B, T, heads, width) by their token's angles, in float32."""
        if x.device.type == "mps":  # has no complex numbers
            rotated: Tensor = apply_rotary_emb(x, (rope[0][skipped:], rope[1][skipped:]), sequence_dim=1)
            return rotated
        if self._turns is None or self._cosines is not rope[0]:
            self._cosines = rope[0]
            self._turns = torch.complex(*(part[:, ::2].float().contiguous() for part in rope))[:, None]
        pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self._turns[skipped:]).flatten(3).to(x.dtype)
