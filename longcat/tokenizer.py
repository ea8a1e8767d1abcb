"""The tokenizer of a model. No torch: HTTP processes count tokens with it."""

import json
from pathlib import Path

from transformers import Qwen2Tokenizer

from longcat.prompt import Tokenize


def load_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """The tokenizer, with the chat template that prompt rewriting needs.

    LongCat-Image keeps the template with its ``text_processor``, whose class needs torchvision; the template alone does not.
    """
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    processor = folder / "text_processor"
    if tokenizer.chat_template is None and (processor / "chat_template.jinja").exists():
        tokenizer.chat_template = (processor / "chat_template.jinja").read_text(encoding="utf-8")
    if tokenizer.chat_template is None and (processor / "chat_template.json").exists():
        legacy = json.loads((processor / "chat_template.json").read_text(encoding="utf-8"))
        tokenizer.chat_template = legacy["chat_template"]
    return tokenizer


def plain_ids(tokenizer: Qwen2Tokenizer) -> Tokenize:
    """Text to token ids, with no special tokens added."""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return tokenize
