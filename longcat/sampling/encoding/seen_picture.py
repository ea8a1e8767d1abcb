"""Prompts of a model that edits: the text encoder reads them with the picture, through its vision tower.

The prompt's rows begin at ``<|vision_start|>``: the picture's rows are part of what the transformer reads. Positions are
those of transformers 4.57, with which LongCat-Image-Edit was released, as for prompts alone: text counts on, the picture's
tokens have their row and column beside one time, the text after it goes on at the picture's longer side, and pads are at 1.
diffusers' ``LongCatImageEditPipeline`` gives no token types, so that transformers 5 numbers the picture's tokens as if they
were text, and pads onward: its conditioning there is not the one of the model's training.

Shapes: V image tokens, S prefix + body + at most one pad, L = V + 2 + the model's prompt length, J the text encoder's width.
Source: diffusers ``LongCatImageEditPipeline._encode_prompt``; transformers 4.57 ``Qwen2_5_VLModel.get_rope_index``.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from longcat.model.device.threads import one_core
from longcat.sampling.prompt import PromptTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenPicture:
    """A picture as the vision tower hands it to the language model."""

    features_VJ: Tensor
    rows: int
    """Rows of image tokens; V is rows x columns."""
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features_VJ.nbytes


@torch.no_grad()
def see(
    text_encoder: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2VLImageProcessorPil,
    picture: Image.Image,
    *,
    device: torch.device,
) -> SeenPicture:
    """Run the vision tower over a picture in mode RGB, of the size at which the encoder is to see it."""
    seen = processor(images=[picture], return_tensors="pt")
    grid_13 = seen["image_grid_thw"]
    visual = text_encoder.model.visual
    with one_core(device):
        features_VJ: Tensor = visual(
            seen["pixel_values"].to(device, visual.dtype), grid_thw=grid_13.to(device)
        ).pooler_output
    _, rows, columns = (grid_13[0] // torch.tensor([1, processor.merge_size, processor.merge_size])).tolist()
    return SeenPicture(features_VJ=features_VJ, rows=rows, columns=columns)


def picture_positions(*, first: int, rows: int, columns: int, length: int, pads: int) -> Tensor:
    """Return positions (3, 1, S): time, row and column of each token, as transformers 4.57 numbers them.

    ``first``: the index of the first image token; ``length``: S, of which the last ``pads`` are pads.
    """
    positions = torch.arange(length).repeat(3, 1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    end = first + rows * columns
    positions[0, first:end] = first
    positions[1, first:end] = first + row.flatten()
    positions[2, first:end] = first + column.flatten()
    positions[:, end:] += max(rows, columns) - rows * columns
    positions[:, length - pads :] = 1
    return positions[:, None]


@torch.no_grad()
def encode_edit_prompt(
    text_encoder: Qwen2_5_VLForConditionalGeneration,
    tokens: PromptTokens,
    seen: SeenPicture,
    *,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
) -> Tensor:
    """Embed one prompt with its picture: (1, L, J), in the text encoder's dtype, on ``device``.

    As for prompts alone, one pad row is computed and stands for all, and the template's suffix is left out.
    """
    first = tokens.prefix.index(text_encoder.config.image_token_id)
    image_tokens, pads = seen.rows * seen.columns, max_tokens - len(tokens.body)
    ids = [
        *tokens.prefix[:first], *tokens.prefix[first : first + 1] * image_tokens, *tokens.prefix[first + 1 :],
        *tokens.body, *([pad_token_id] if pads else []),
    ]  # fmt: skip
    mask = torch.ones(1, len(ids), dtype=torch.long, device=device)
    if pads:
        mask[:, -1] = 0
    positions = picture_positions(first=first, rows=seen.rows, columns=seen.columns, length=len(ids), pads=min(pads, 1))
    with one_core(device):
        embeds_1SJ = text_encoder.get_input_embeddings()(torch.tensor([ids], device=device))
        embeds_1SJ[0, first : first + image_tokens] = seen.features_VJ.to(embeds_1SJ.dtype)
        output = text_encoder.model(  # without the language head
            inputs_embeds=embeds_1SJ, attention_mask=mask, position_ids=positions.to(device), use_cache=False
        )
    rows: Tensor = output.last_hidden_state[:, first - 1 :]  # from <|vision_start|>
    if pads > 1:
        rows = torch.cat([rows, rows[:, -1:].expand(-1, pads - 1, -1)], dim=1)
    return rows
