"""The tokenizer of a model. No torch: HTTP processes count tokens with it."""

import json
from pathlib import Path

from transformers import Qwen2Tokenizer

from longcat.errors import FlavourError
from longcat.prompt import Tokenize


def load_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """The tokenizer, with the chat template that prompt rewriting needs.

    LongCat-Image keeps the template with its ``text_processor``, whose class needs torchvision; the template alone does not.
    """
    if not (folder / "tokenizer").is_dir():
        raise FlavourError(
            f"{folder} holds no tokenizer: give a directory as LongCatImagePipeline.save_pretrained writes it"
        )
    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    except Exception as error:  # tokenizers raises no narrower type
        raise FlavourError(f"the tokenizer in {folder} is missing or damaged: {error}") from error
    template, legacy = (folder / "text_processor" / f"chat_template.{ending}" for ending in ("jinja", "json"))
    if template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    elif legacy.exists():
        tokenizer.chat_template = json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def plain_ids(tokenizer: Qwen2Tokenizer) -> Tokenize:
    """Text to token ids, with no special tokens added."""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return tokenize
