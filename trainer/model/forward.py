"""The transformer's forward and backward passes, shortened for training; the results are those of diffusers.

The prompt rows of the last block's output are never used, so that it computes queries, feed-forward and projection for
image rows alone, as ``longcat.sampling.forward`` does. Queries and keys are normalized and rotated in one differentiable
operation. The adapter's layers are in ``trainer.model.low_rank``.

Classes of layers are replaced in place (``module.__class__``): a module keeps its identity, parameters and hooks, which a
new module in its place would lose. ``tests/test_seams.py`` holds the private members of diffusers that are read here.

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

from longcat.model.shape import FLOAT16_MAX
from trainer.model.low_rank import LowRankLinear

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, (T, W) each; every value stands twice."""


def slim(transformer: LongCatImageTransformer2DModel) -> None:
    """Leave out computation that a transformer's output does not need. Parameters, names and results stay the same."""
    transformer.set_attn_processor(_Attention())
    for module in transformer.modules():
        if (
            isinstance(module, PeftLinear) and not module.lora_magnitude_vector
        ):  # DoRA is in ``trainer.model.magnitude``
            module.__class__ = LowRankLinear
    transformer.single_transformer_blocks[-1].__class__ = _LastBlock


class _LastBlock(LongCatImageSingleTransformerBlock):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rope,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return prompt (B, L, D) unchanged, and the output for the image (B, N, D)."""
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
        return encoder_hidden_states, out.clip(-FLOAT16_MAX, FLOAT16_MAX) if out.dtype == torch.float16 else out


class _Attention(LongCatImageAttnProcessor):
    """The attention of all blocks: one instance, so that they share the rotations of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self._cosines: Tensor | None = None
        self._rotations: Tensor | None = None

    def __call__(
        self,
        attn: LongCatImageAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rope | None = None,
        skipped: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over (B, T, D). The first ``skipped`` rows have keys and values but no queries."""
        assert image_rotary_emb is not None
        rotations = self._shared_rotations(image_rotary_emb)
        prompt_rows = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]

        def heads(layer: Any, x_BTD: Tensor) -> Tensor:
            x_BTHW: Tensor = layer(x_BTD).unflatten(-1, (attn.heads, -1))
            return x_BTHW

        def rotated(layer: Any, norm: Any, x_BTD: Tensor, first: int) -> Tensor:
            rows = rotations[first : first + x_BTD.shape[1]]
            rotated_BTHW: Tensor = _NormRotate.apply(heads(layer, x_BTD), norm.weight, norm.eps, rows)
            return rotated_BTHW

        query = rotated(attn.to_q, attn.norm_q, hidden_states[:, skipped:], prompt_rows + skipped)
        key = rotated(attn.to_k, attn.norm_k, hidden_states, prompt_rows)
        value = heads(attn.to_v, hidden_states)
        if encoder_hidden_states is not None:
            prompt = encoder_hidden_states
            query = torch.cat([rotated(attn.add_q_proj, attn.norm_added_q, prompt, 0), query], dim=1)
            key = torch.cat([rotated(attn.add_k_proj, attn.norm_added_k, prompt, 0), key], dim=1)
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

    def _shared_rotations(self, rope: Rope) -> Tensor:
        """Return cosine and sine of every pair's angle: (T, 1, W / 2, 2) in float32."""
        if self._rotations is None or self._cosines is not rope[0]:
            self._cosines = rope[0]
            self._rotations = torch.stack([part[:, None, ::2].float() for part in rope], dim=-1)
        return self._rotations


class _NormRotate(torch.autograd.Function):
    """RMS norm of every head and its rotation R, computed in float32.

    For a head x of width W with the norm's weight w: n = x / sqrt(mean(x^2) + eps), y = R(w n). Backward, with
    g = w R^-1(dy): dx = (g - n mean(g n)) / sqrt(mean(x^2) + eps). The norm's weight is frozen. The backward pass keeps x
    and the root; autograd would keep x in float32.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHW: Tensor, weight_W: Tensor, eps: float, rotations: Tensor) -> Tensor:
        x = x_BTHW.float()
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x_BTHW, weight_W, inverse, rotations)
        return _rotate(x * inverse * weight_W.float(), rotations).to(x_BTHW.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x_BTHW, weight_W, inverse, rotations = ctx.saved_tensors
        normed = x_BTHW.float() * inverse
        grad_normed = _rotate(grad.float(), rotations, back=True) * weight_W.float()
        along = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.sub_(normed.mul_(along)).mul_(inverse).to(x_BTHW.dtype), None, None, None


def _rotate(x_BTHW: Tensor, rotations: Tensor, *, back: bool = False) -> Tensor:
    """Rotate pairs of numbers by their token's angles, or back."""
    pairs = x_BTHW.contiguous().view(*x_BTHW.shape[:-1], -1, 2)
    if x_BTHW.device.type == "mps":  # MPS has no complex numbers
        (a, b), (cosine, sine) = pairs.unbind(-1), rotations.unbind(-1)
        sine = -sine if back else sine
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    angles = torch.view_as_complex(rotations)
    rotated = torch.view_as_complex(pairs) * (angles.conj() if back else angles)
    return torch.view_as_real(rotated).flatten(-2)
