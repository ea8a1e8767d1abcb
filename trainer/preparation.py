"""Pictures to latents and captions to embeddings, ahead of training, so that no encoder is in memory while it runs.

Shapes: B batch, H and W px, N image tokens, C = 64, L prompt rows, T rows up to the first pad row, J the text encoder's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from longcat import latents
from longcat.errors import ConfigError, PromptTooLongError
from longcat.flavour import Flavour
from longcat.loading import load_text_encoder, load_vae
from longcat.precision import Precision
from longcat.prompt import POSITION_POLICY, tokenize_prompt
from longcat.quantize import quantize_base
from longcat.text_encoder import encode_prompt
from longcat.tokenizer import load_tokenizer, plain_ids
from trainer.cache import Cache, fill, key_of
from trainer.captions import possible_captions
from trainer.inventory import Sample
from trainer.pictures import read_pixels

_Item = TypeVar("_Item")

OnDone = Callable[[str, int, int, int], None]
"""Hears which kind (``latents``, ``embeddings``), entries done, of how many, and how many of them were found."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The model's eyes and ears: what decides the numbers that are cached. Nothing is loaded until it is needed."""

    flavour: Flavour
    device: torch.device
    dtype: torch.dtype
    text_encoder_precision: Precision
    vae_batch: int
    """Pictures encoded at once."""

    def latent_key(self, sample: Sample) -> str:
        """Of a picture's latents."""
        crop, size = sample.crop, sample.bucket
        return key_of("latents", sample.digest, size, crop, sample.config.alpha_colour, self._vae_hash, self.dtype, 1)

    def embedding_key(self, caption: str) -> str:
        """Of a caption's embedding."""
        settings = self.flavour.settings.max_prompt_tokens, POSITION_POLICY, self.text_encoder_precision, self.dtype
        return key_of("embedding", caption, self._text_hash, *settings, 1)

    @cached_property
    def _vae_hash(self) -> str:
        return self.flavour.component_hash("vae")

    @cached_property
    def _text_hash(self) -> str:
        return self.flavour.component_hash("text_encoder") + self.flavour.component_hash("tokenizer")


def encode_pictures(
    encoders: Encoders, cache: Cache, samples: Sequence[Sample], on_done: OnDone, *, share: int = 0, shares: int = 1
) -> int:
    """Cache the latents of every picture; return how many were missing. With ``shares``, only every so-manieth batch."""
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.bucket, []).append(sample)
    batches = [part for group in groups.values() for part in _parts(group, encoders.vae_batch)][share::shares]
    with _Lazy(lambda: load_vae(encoders.flavour, encoders.dtype).to(encoders.device)) as vae:
        work = [
            (tuple(encoders.latent_key(sample) for sample in batch), partial(_encode, vae, batch, encoders.device))
            for batch in batches
        ]
        return fill(cache, work, partial(on_done, "latents"))


def encode_captions(
    encoders: Encoders, cache: Cache, captions: Iterable[str], on_done: OnDone, *, share: int = 0, shares: int = 1
) -> int:
    """Cache the embedding of every caption; return how many were missing. On a CPU each core embeds captions of its own."""
    wanted = list(dict.fromkeys(captions))[share::shares]
    tokenizer = load_tokenizer(encoders.flavour.folder)
    most, pad = encoders.flavour.settings.max_prompt_tokens, tokenizer.pad_token_id
    workers = torch.get_num_threads() if encoders.device.type == "cpu" else 1
    with _Lazy(lambda: _text_encoder(encoders)) as text_encoder, ThreadPoolExecutor(workers) as pool:

        def embed(caption: str) -> Tensor:
            try:
                tokens = tokenize_prompt(caption, plain_ids(tokenizer), max_tokens=most)
            except PromptTooLongError as error:  # captions were counted when the data was looked through
                raise ConfigError(f"validation prompt {caption!r} {error}") from error
            rows = encode_prompt(
                text_encoder(), tokens, pad_token_id=pad, max_tokens=most, device=encoders.device
            )  # fmt: skip
            return rows[0, : len(tokens.body) + 1]

        work = [
            (tuple(map(encoders.embedding_key, batch)), partial(_embed, pool, text_encoder, embed, batch))
            for batch in _parts(wanted, 8 * workers)
        ]
        return fill(cache, work, partial(on_done, "embeddings"))


def captions_of(samples: Sequence[Sample]) -> list[str]:
    """Everything that may be drawn as a caption, the empty prompt included, each once."""
    return list(dict.fromkeys(["", *(caption for sample in samples for caption in possible_captions(sample))]))


def prompt_rows(rows_TJ: Tensor, length: int) -> Tensor:
    """A stored embedding at its full length, (L, J): the last row is a pad row and is repeated."""
    missing = length - rows_TJ.shape[0]
    return rows_TJ if missing == 0 else torch.cat([rows_TJ, rows_TJ[-1:].expand(missing, -1)])


@torch.no_grad()
def _encode(vae: "_Lazy", batch: Sequence[Sample], device: torch.device) -> Iterator[Tensor]:
    pixels = torch.stack([torch.tensor(read_pixels(sample)) for sample in batch])
    images_BCHW = pixels.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
    packed_BNC = latents.pack(latents.encode(vae(), images_BCHW.contiguous(memory_format=torch.channels_last)))
    return iter(packed_BNC.unbind())


def _embed(
    pool: ThreadPoolExecutor, text_encoder: "_Lazy", embed: Callable[[str], Tensor], batch: Sequence[str]
) -> Iterator[Tensor]:
    text_encoder()  # loaded once, before several threads ask for it
    return pool.map(embed, batch)


def _text_encoder(encoders: Encoders) -> Qwen2_5_VLForConditionalGeneration:
    model = load_text_encoder(encoders.flavour, encoders.dtype)
    quantize_base(model, encoders.text_encoder_precision, device=encoders.device, training=False)
    return model.to(encoders.device)


class _Lazy:
    """A model that is loaded when it is first called for, and let go at the end."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._model: Any = None

    def __call__(self) -> Any:
        if self._model is None:
            self._model = self._load()
        return self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None


def _parts(items: Sequence[_Item], size: int) -> Iterator[tuple[_Item, ...]]:
    rest = iter(items)
    while part := tuple(islice(rest, size)):
        yield part
