"""Prompts to token ids: the template, quoted text by character, the length limit. No torch: HTTP processes import this.

LongCat-Image tokenises text inside quotation marks one character at a time, quotes included, so that the picture can
spell it. diffusers' ``split_quotation`` replaces contractions with placeholders, in an order that depends on
``PYTHONHASHSEED``, and corrupts prompts with two of them. Here, the apostrophe of a contraction is not a quotation mark.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from longcat.errors import PromptTooLongError

TEMPLATE_PREFIX = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
EDIT_TEMPLATE_PREFIX = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input image(s). Then, "
    "based on the user's editing instructions, clearly and precisely determine how to modify the given image(s), ensuring "
    "that only the specified parts are altered and all other aspects remain consistent with the original(s).<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
)
"""The prefix of a model that edits: one image token stands for all tokens of the picture."""
TEMPLATE_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"

_MOST_CHARACTERS_PER_TOKEN = 512
"""No token stands for more: the longest of Qwen2's vocabulary has 128 characters, and its tokenizer first composes up to
four characters into one (NFC)."""

Tokenize = Callable[[str], list[int]]
"""Text to token ids, with no special tokens added."""

# An apostrophe between two letters belongs to a word (it's, rock'n'roll) and opens or closes nothing.
_SINGLE_QUOTE = r"(?:(?<![A-Za-z])'|'(?![A-Za-z]))"
_INSIDE_SINGLE = r"(?:[^']|(?<=[A-Za-z])'(?=[A-Za-z]))*?"
_QUOTED = re.compile(rf"{_SINGLE_QUOTE}{_INSIDE_SINGLE}{_SINGLE_QUOTE}|\"[^\"]*?\"|‘[^‘’]*?’|“[^“”]*?”", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """The token ids of one prompt between the template's prefix and suffix."""

    prefix: tuple[int, ...]
    body: tuple[int, ...]
    suffix: tuple[int, ...]


def split_quoted(prompt: str) -> list[tuple[str, bool]]:
    """Split into ``(text, is_quoted)`` parts whose concatenation is the prompt. Quoted parts keep their quotes."""
    parts: list[tuple[str, bool]] = []
    end = 0
    for match in _QUOTED.finditer(prompt):
        if match.start() > end:
            parts.append((prompt[end : match.start()], False))
        parts.append((match.group(), True))
        end = match.end()
    if end < len(prompt):
        parts.append((prompt[end:], False))
    return parts


def tokenize_body(prompt: str, tokenize: Tokenize) -> list[int]:
    """Token ids of the prompt alone; quoted parts are tokenised one character at a time."""
    ids: list[int] = []
    for text, is_quoted in split_quoted(prompt):
        for piece in text if is_quoted else (text,):
            ids.extend(tokenize(piece))
    return ids


def least_tokens(prompt: str, *, max_tokens: int) -> int:
    """Return a number of tokens that ``tokenize_body`` reaches, from the characters of a prompt: without a tokenizer.

    A quoted character is a token at least. Once the bound exceeds ``max_tokens``, no tighter one is computed.
    """
    least = -(-len(prompt) // _MOST_CHARACTERS_PER_TOKEN)
    if least > max_tokens:
        return least
    quoted = sum(len(text) for text, is_quoted in split_quoted(prompt) if is_quoted)
    return quoted + -(-(len(prompt) - quoted) // _MOST_CHARACTERS_PER_TOKEN)


def tokenize_prompt(prompt: str, tokenize: Tokenize, *, max_tokens: int, prefix: str = TEMPLATE_PREFIX) -> PromptTokens:
    """Tokenise a prompt with its template, of which ``prefix`` is the part before the prompt.

    Raises ``PromptTooLongError`` beyond ``max_tokens``: to truncate silently would drop part of the request. A prompt that
    has too many characters is not tokenised: the time that a request can take does not grow with its length.
    """
    if (least := least_tokens(prompt, max_tokens=max_tokens)) > max_tokens:
        raise PromptTooLongError(tokens=least, max_tokens=max_tokens, is_counted=False)
    body = tokenize_body(prompt, tokenize)
    if len(body) > max_tokens:
        raise PromptTooLongError(tokens=len(body), max_tokens=max_tokens)
    return PromptTokens(prefix=tuple(tokenize(prefix)), body=tuple(body), suffix=tuple(tokenize(TEMPLATE_SUFFIX)))
