"""Token ids to prompt embeddings, with explicit position ids.

transformers 5 numbers positions of padded text differently from transformers 4.57, which LongCat-Image was trained with:
in 4.57, a position is the running count of real tokens, and every pad token has position 1. The transformer attends to pad
rows (it takes no mask), so they are part of the conditioning and must be numbered as in training. With that numbering all
pad rows of a prompt are equal: one is computed, and repeated.

Shapes: B batch, L the model's prompt length (512, or the embedded model's 32), D width, S prefix + body + 1.
"""

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from longcat.model.device.threads import one_core
from longcat.sampling.prompt import PromptTokens


def position_ids(attention_mask_BS: Tensor) -> Tensor:
    """Return positions (3, B, S) as transformers 4.57 numbers them: a running count of real tokens; pads at 1.

    Source: transformers 4.57, ``Qwen2_5_VLModel.get_rope_index`` for text alone.
    """
    positions = (attention_mask_BS.long().cumsum(-1) - 1).masked_fill(attention_mask_BS == 0, 1)
    return positions.unsqueeze(0).expand(3, -1, -1)


@torch.no_grad()
def encode_prompt(
    text_encoder: Qwen2_5_VLForConditionalGeneration,
    tokens: PromptTokens,
    *,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
) -> Tensor:
    """Embed one prompt: (1, L, D), ``max_tokens`` rows, in the text encoder's dtype, on ``device``.

    Each prompt is encoded alone, so that its embedding does not depend on other prompts. The template's suffix is left out:
    it follows every row that is kept, and attention is causal.
    """
    pads = max_tokens - len(tokens.body)
    ids = [*tokens.prefix, *tokens.body, *([pad_token_id] if pads else [])]
    mask = torch.ones(1, len(ids), dtype=torch.long, device=device)
    if pads:
        mask[:, -1] = 0
    with one_core(device):
        output = text_encoder.model(  # without the language head
            input_ids=torch.tensor([ids], device=device),
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
        )
    rows: Tensor = output.last_hidden_state[:, len(tokens.prefix) :]
    if pads > 1:
        rows = torch.cat([rows, rows[:, -1:].expand(-1, pads - 1, -1)], dim=1)
    return rows
