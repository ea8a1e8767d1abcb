"""The tokenizer of a model. No torch: HTTP processes count tokens with it."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import Qwen2Tokenizer

from longcat.errors import FlavourError


def load_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """Load the tokenizer, with the chat template that prompt rewriting needs. Raises ``FlavourError``.

    The template is read from ``text_processor``, where LongCat-Image keeps it, because that component's class needs
    torchvision.
    """
    if not (folder / "tokenizer").is_dir():
        raise FlavourError(
            "flavour_without_tokenizer",
            "{folder} holds no tokenizer",
            remedy="give a directory that LongCatImagePipeline.save_pretrained wrote",
            field="flavour",
            folder=str(folder),
        )
    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    except Exception as error:  # tokenizers raises no narrower type
        raise FlavourError(
            "flavour_tokenizer_damaged",
            "the tokenizer in {folder} is incomplete or damaged: {reason}",
            remedy="download the model again",
            field="flavour",
            folder=str(folder),
            reason=str(error),
        ) from error
    template, legacy = (folder / "text_processor" / f"chat_template.{ending}" for ending in ("jinja", "json"))
    if template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    elif legacy.exists():
        tokenizer.chat_template = json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def plain_ids(tokenizer: Qwen2Tokenizer) -> Callable[[str], list[int]]:
    """Return a function from text to token ids that adds no special tokens."""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return tokenize
