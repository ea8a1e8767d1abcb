"""What training saves of the transformer's forward and backward passes; the mathematics is diffusers' own.

The last block's prompt rows are read by nobody: it asks, feeds forward and projects for the image's rows alone, as
``longcat.forward`` does when it draws. Queries and keys are normalized and rotated in one differentiable operation. The
adapter's part is in ``trainer.low_rank``.

Shapes: B batch, T rows of prompt and image, D the inner width, H heads of width W.
"""

from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_longcat_image import (
    LongCatImageAttention,
    LongCatImageAttnProcessor,
    LongCatImageSingleTransformerBlock,
)
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor

from trainer.low_rank import LowRankLinear

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, (T, W) each; every number is there twice."""


def slim(transformer: LongCatImageTransformer2DModel) -> None:
    """Make a transformer with an adapter compute only what its output needs. Parameters, names and results stay."""
    transformer.set_attn_processor(_Attention())
    for module in transformer.modules():
        if isinstance(module, PeftLinear) and not module.lora_magnitude_vector:  # DoRA is computed by ``trainer.lora``
            module.__class__ = LowRankLinear
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
        turns = self._shared_turns(image_rotary_emb)
        prompt_rows = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]

        def heads(layer: Any, x_BTD: Tensor) -> Tensor:
            return layer(x_BTD).unflatten(-1, (attn.heads, -1))  # type: ignore[no-any-return]

        def turned(layer: Any, norm: Any, x_BTD: Tensor, first: int) -> Tensor:
            rows = turns[first : first + x_BTD.shape[1]]
            return _NormTurn.apply(heads(layer, x_BTD), norm.weight, norm.eps, rows)  # type: ignore[no-any-return, no-untyped-call]

        query = turned(attn.to_q, attn.norm_q, hidden_states[:, skipped:], prompt_rows + skipped)
        key = turned(attn.to_k, attn.norm_k, hidden_states, prompt_rows)
        value = heads(attn.to_v, hidden_states)
        if encoder_hidden_states is not None:
            prompt = encoder_hidden_states
            query = torch.cat([turned(attn.add_q_proj, attn.norm_added_q, prompt, 0), query], dim=1)
            key = torch.cat([turned(attn.add_k_proj, attn.norm_added_k, prompt, 0), key], dim=1)
            value = torch.cat([heads(attn.add_v_proj, prompt), value], dim=1)
        joined: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = joined.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        image = attn.to_out[1](attn.to_out[0](attended[:, prompt_rows:]))
        return image, attn.to_add_out(attended[:, :prompt_rows])

    def _shared_turns(self, rope: Rope) -> Tensor:
        """Cosine and sine of every pair's angle: (T, 1, head width / 2, 2) in float32."""
        if self._turns is None or self._cosines is not rope[0]:
            self._cosines = rope[0]
            self._turns = torch.stack([part[:, None, ::2].float() for part in rope], dim=-1)
        return self._turns


class _NormTurn(torch.autograd.Function):
    """RMS norm of every head, then its rotation, in float32 inside.

    For a head x of width W with the norm's weight w: n = x / sqrt(mean(x^2) + eps), y = turn(w n). Backwards, with
    g = w turn^-1(dy): dx = (g - n mean(g n)) / sqrt(mean(x^2) + eps). The norm's weight is frozen. Kept are x and the root;
    autograd would keep x in float32.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHW: Tensor, weight_W: Tensor, eps: float, turns: Tensor) -> Tensor:
        x = x_BTHW.float()
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x_BTHW, weight_W, inverse, turns)
        return _turn(x * inverse * weight_W.float(), turns).to(x_BTHW.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x_BTHW, weight_W, inverse, turns = ctx.saved_tensors
        normed = x_BTHW.float() * inverse
        grad_normed = _turn(grad.float(), turns, back=True) * weight_W.float()
        along = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.sub_(normed.mul_(along)).mul_(inverse).to(x_BTHW.dtype), None, None, None


def _turn(x_BTHW: Tensor, turns: Tensor, *, back: bool = False) -> Tensor:
    """Turn pairs of numbers by their token's angles, or back."""
    pairs = x_BTHW.contiguous().view(*x_BTHW.shape[:-1], -1, 2)
    if x_BTHW.device.type == "mps":  # has no complex numbers
        (a, b), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
        sine = -sine if back else sine
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    angles = torch.view_as_complex(turns)
    turned = torch.view_as_complex(pairs) * (angles.conj() if back else angles)
    return torch.view_as_real(turned).flatten(-2)
