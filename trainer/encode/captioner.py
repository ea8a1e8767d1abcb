"""Captions by the vision-language model that LongCat-Image carries as its text encoder, Qwen2.5-VL."""

import threading

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from longcat.errors import ConfigError, DataError
from longcat.model.device.choice import parse_device, parse_dtype
from longcat.model.flavour import Flavour
from longcat.model.loading import load_text_encoder
from longcat.model.tokenizer import load_tokenizer

_LONGEST_SIDE_PX = 1024
"""Larger pictures are shrunk, as those that are sent to an endpoint."""


class LocalCaptioner:
    """The text encoder of a flavour with its vision tower and its language head, on one device; thread-safe."""

    def __init__(self, flavour: Flavour, *, device: str = "auto", max_tokens: int = 300) -> None:
        """Load the model. Raises ``ConfigError`` for a flavour whose text encoder writes no text."""
        if not flavour.settings.rewrites_prompts:
            raise ConfigError(
                "captioner_writes_no_text",
                "the text encoder of {flavour} encodes prompts and cannot describe pictures",
                remedy="use final or dev, whose text encoder is Qwen2.5-VL, or --endpoint",
                field="--flavour",
                value=flavour.name,
                flavour=flavour.name,
            )
        self._device = parse_device(device)
        model = load_text_encoder(flavour, parse_dtype("auto", self._device), sees=True)
        self._model = model.to(self._device)
        self._tokenizer = load_tokenizer(flavour.folder)
        vision = model.config.vision_config
        self._merge = vision.spatial_merge_size
        self._processor = Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size, merge_size=self._merge, temporal_patch_size=vision.temporal_patch_size
        )
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    @torch.no_grad()
    def describe(self, picture: Image.Image, instruction: str) -> str:
        """Return the model's text about a picture, greedily decoded. Raises ``DataError`` if it was cut short."""
        smaller = picture.convert("RGB")
        smaller.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
        seen = self._processor(images=[smaller], return_tensors="pt")
        tokens = int(seen["image_grid_thw"].prod()) // self._merge**2
        ids = self._prompt_ids(instruction, tokens).to(self._device)
        with self._lock:
            generated = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == self._model.config.image_token_id).int(),
                pixel_values=seen["pixel_values"].to(self._device, self._model.dtype),
                image_grid_thw=seen["image_grid_thw"].to(self._device),
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
                max_new_tokens=self._max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        written = generated[0, ids.shape[1] :]
        if len(written) == self._max_tokens and written[-1] != self._tokenizer.eos_token_id:
            raise DataError("caption_reply_cut_off", "the caption was cut short", remedy="raise --max-tokens")
        return str(self._tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _prompt_ids(self, instruction: str, tokens: int) -> torch.Tensor:
        """Return the ids of a question about one picture of that many tokens, (1, T)."""
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}]
        text = self._tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        mark = self._tokenizer.convert_ids_to_tokens(self._model.config.image_token_id)
        ids: torch.Tensor = self._tokenizer(str(text).replace(mark, mark * tokens, 1), return_tensors="pt")["input_ids"]
        return ids
