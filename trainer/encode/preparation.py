"""Encoding of pictures and captions ahead of training, so that no encoder is in memory while it runs.

Shapes: B batch, H and W px, N image tokens, C = 64, L prompt rows, T rows up to the first pad row, J the text encoder's
width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from longcat.errors import ConfigError, PromptTooLongError
from longcat.model.flavour import Flavour
from longcat.model.loading import load_image_processor, load_text_encoder, load_vae
from longcat.model.precision import Precision
from longcat.model.shape import POSITION_POLICY
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.problem import Problem
from longcat.sampling import latents
from longcat.sampling.encoding.files import compact, key_of
from longcat.sampling.encoding.text_encoder import encode_prompt
from longcat.sampling.prompt import tokenize_prompt
from trainer.data.advice import some
from trainer.data.captions.compose import possible_captions
from trainer.data.pictures import read_mask, read_pixels
from trainer.data.sample import PairReference, Sample
from trainer.encode.cache import Cache, fill

THUMBNAIL_PX = 32
"""Side of a thumbnail: enough to tell pictures apart, too few to tell their details."""
_Item = TypeVar("_Item")
_CAPTIONS_PER_WORKER = 8
"""Captions of one unit of work for each worker: enough to keep all busy, few enough for an even progress."""
_DARK = 13
"""Weight of 255, a twentieth, below which a mask counts as dark."""

OnDone = Callable[[str, int, int, int], None]
"""Called with the kind (``latents``, ``masks``, ``embeddings``), entries done, of all, and cache hits."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """VAE and text encoder of a model, and the settings that affect what is cached. Models are loaded when first used."""

    flavour: Flavour
    device: torch.device
    dtype: torch.dtype
    text_encoder_precision: Precision
    vae_batch: int
    """Pictures encoded at once."""

    def latent_key(self, sample: Sample) -> str:
        """Return the cache key of a picture's latents."""
        crop, size = sample.crop, sample.bucket
        return key_of("latents", sample.digest, size, crop, sample.config.alpha_colour, self._vae_hash, self.dtype, 1)

    def mask_key(self, sample: Sample) -> str | None:
        """Return the cache key of the weights of a picture's latents; None if it has no mask."""
        if (mask := sample.mask) is None:
            return None
        settings = mask.config.conditioning_type, mask.config.alpha_colour
        return key_of("mask", mask.digest, sample.bucket, sample.crop, *settings, 1)

    def reference_key(self, reference: PairReference) -> str:
        """Return the cache key of the latents of a picture that is edited."""
        return key_of("reference", reference.identity, self._vae_hash, self.dtype, 1)

    def embedding_key(self, caption: str, reference: PairReference | None = None) -> str:
        """Return the cache key of a caption's embedding, seen with its reference by a model that edits."""
        settings = self.flavour.settings.max_prompt_tokens, POSITION_POLICY, self.text_encoder_precision, self.dtype
        if reference is None:
            return key_of("embedding", caption, self._text_hash, *settings, 1)
        return key_of("seen embedding", caption, reference.identity, self._sight, self._text_hash, *settings, 1)

    def prompt_length(self, reference: PairReference | None) -> int:
        """Return the rows of a prompt's embedding, those of the picture and its two marks included."""
        most = self.flavour.settings.max_prompt_tokens
        if reference is None:
            return most
        size, processor = reference.bucket, self.image_processor
        patches = int(processor.get_number_of_image_patches(size.height_px // 2, size.width_px // 2))
        return most + 2 + patches // int(processor.merge_size) ** 2

    def thumbnail(self, cache: Cache, sample: Sample) -> Tensor:
        """Return the thumbnail of a picture from the cache, or make it; (THUMBNAIL_PX, THUMBNAIL_PX, 3) in uint8."""
        key = self._thumbnail_key(sample)
        thumbnail = cache.read(key)
        if thumbnail is None:
            thumbnail = torch.from_numpy(thumbnail_of(read_pixels(sample)))
            cache.write(key, thumbnail)
        return thumbnail

    def keep_thumbnail(self, cache: Cache, sample: Sample, pixels_HWC: Tensor) -> None:
        """Cache the thumbnail of a picture whose pixels are at hand."""
        cache.write(self._thumbnail_key(sample), torch.from_numpy(thumbnail_of(pixels_HWC.numpy())))

    def _thumbnail_key(self, sample: Sample) -> str:
        return key_of("thumbnail", sample.digest, sample.bucket, sample.crop, sample.config.alpha_colour, THUMBNAIL_PX)

    @cached_property
    def image_processor(self) -> Qwen2VLImageProcessorPil:
        """The vision tower's image processor, of a model that edits."""
        return load_image_processor(self.flavour)

    @cached_property
    def pad_token_id(self) -> int:
        """The token of pad rows."""
        return int(load_tokenizer(self.flavour.folder).pad_token_id)

    @cached_property
    def _sight(self) -> str:
        return str(self.image_processor.to_json_string())

    @cached_property
    def _vae_hash(self) -> str:
        return self.flavour.component_hash("vae")

    @cached_property
    def _text_hash(self) -> str:
        return self.flavour.component_hash("text_encoder") + self.flavour.component_hash("tokenizer")


def encode_pictures(
    encoders: Encoders, cache: Cache, samples: Sequence[Sample], on_done: OnDone, *, share: int = 0, shares: int = 1
) -> int:
    """Cache the latents of every picture; return the number that was missing. Process every ``shares``-th batch."""
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.bucket, []).append(sample)
    batches = [part for group in groups.values() for part in parts(group, encoders.vae_batch)][share::shares]
    with LazyModel(lambda: load_vae(encoders.flavour, encoders.dtype).to(encoders.device)) as vae:
        work = [
            (tuple(encoders.latent_key(sample) for sample in batch), partial(_encode, vae, batch, encoders, cache))
            for batch in batches
        ]
        return fill(cache, work, partial(on_done, "latents"))


def encode_masks(
    encoders: Encoders, cache: Cache, samples: Sequence[Sample], on_done: OnDone, *, share: int = 0, shares: int = 1
) -> int:
    """Cache the weights of every picture that has a mask; return the number that was missing."""
    masked = {key: sample for sample in samples if (key := encoders.mask_key(sample)) is not None}
    work = [((key,), partial(_weights, sample)) for key, sample in masked.items()][share::shares]
    return fill(cache, work, partial(on_done, "masks")) if masked else 0


def dark_masks(encoders: Encoders, cache: Cache, samples: Sequence[Sample]) -> Problem | None:
    """Return a warning that names pictures whose masks are dark in all of the part that is kept."""
    dark = []
    for sample in samples:
        weights = None if (key := encoders.mask_key(sample)) is None else cache.read(key)
        if weights is not None and weights.max() < _DARK:
            dark.append(f"{sample.dataset}: {sample.key}")
    if not dark:
        return None
    return Problem(
        code="masks_dark",
        template="the masks of {count} pictures are dark in all of the part that is kept, so that hardly anything is "
        "learned from them: {names}",
        remedy_template="white is learned: save masks with 0 and 255 instead of 0 and 1, or leave out the pictures",
        details={"count": len(dark), "names": some(dark)},
    )


def encode_captions(
    encoders: Encoders, cache: Cache, captions: Iterable[str], on_done: OnDone, *, share: int = 0, shares: int = 1
) -> int:
    """Cache the embedding of every caption; return the number that was missing.

    Of several processes, each embeds every ``shares``-th caption. On a CPU each thread embeds captions of its own.
    """
    texts = list(dict.fromkeys(captions))[share::shares]
    tokenizer = load_tokenizer(encoders.flavour.folder)
    most, pad = encoders.flavour.settings.max_prompt_tokens, tokenizer.pad_token_id
    workers = torch.get_num_threads() if encoders.device.type == "cpu" else 1
    with lazy_text_encoder(encoders) as text_encoder, ThreadPoolExecutor(workers) as pool:

        def embed(caption: str) -> Tensor:
            try:
                tokens = tokenize_prompt(caption, plain_ids(tokenizer), max_tokens=most)
            except PromptTooLongError as error:  # the scan has dropped captions that are too long
                raise ConfigError.of(error.within(field="validation_prompts", value=caption).problems) from error
            rows = encode_prompt(text_encoder(), tokens, pad_token_id=pad, max_tokens=most, device=encoders.device)
            return compact(rows, body=len(tokens.body))

        work = [
            (tuple(map(encoders.embedding_key, batch)), partial(_embed, pool, text_encoder, embed, batch))
            for batch in parts(texts, _CAPTIONS_PER_WORKER * workers)
        ]
        return fill(cache, work, partial(on_done, "embeddings"))


def captions_of(samples: Sequence[Sample]) -> list[str]:
    """Return every text that may be drawn as a caption, the empty prompt included, each once."""
    return list(dict.fromkeys(["", *(caption for sample in samples for caption in possible_captions(sample))]))


def thumbnail_of(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return a picture squeezed into a small square, each pixel the mean of those that it stands for."""
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.array(Image.fromarray(pixels_HWC).resize(side, Image.Resampling.BOX))


@torch.no_grad()
def _encode(vae: "LazyModel", batch: Sequence[Sample], encoders: Encoders, cache: Cache) -> Iterator[Tensor]:
    pixels = torch.stack([torch.tensor(read_pixels(sample)) for sample in batch])
    for sample, picture in zip(batch, pixels, strict=True):
        encoders.keep_thumbnail(cache, sample, picture)
    images_BCHW = pixels.permute(0, 3, 1, 2).to(encoders.device).float() / 127.5 - 1
    packed_BNC = latents.pack(latents.encode(vae(), images_BCHW.contiguous(memory_format=torch.channels_last)))
    return iter(packed_BNC.unbind())


def _weights(sample: Sample) -> tuple[Tensor]:
    return (torch.tensor(read_mask(sample)),)


def _embed(
    pool: ThreadPoolExecutor, text_encoder: "LazyModel", embed: Callable[[str], Tensor], batch: Sequence[str]
) -> Iterator[Tensor]:
    text_encoder()  # loaded here once, before several threads need it
    return pool.map(embed, batch)


def lazy_text_encoder(encoders: Encoders) -> "LazyModel":
    """Return the text encoder, which is loaded when it is first called; of a model that edits with its vision tower."""
    return LazyModel(lambda: _load_encoder(encoders))


def _load_encoder(encoders: Encoders) -> Qwen2_5_VLForConditionalGeneration:
    model = load_text_encoder(
        encoders.flavour,
        encoders.dtype,
        precision=encoders.text_encoder_precision,
        device=encoders.device,
        writes=False,
        sees=encoders.flavour.settings.edits,
    )
    return model.to(encoders.device)


class LazyModel:
    """A model that is loaded when first called, and released when the context ends."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._model: Any = None

    def __call__(self) -> Any:
        """Return the model."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None


def parts(items: Sequence[_Item], size: int) -> Iterator[tuple[_Item, ...]]:
    """Yield the items in tuples of ``size``; the last may have fewer."""
    rest = iter(items)
    while part := tuple(islice(rest, size)):
        yield part
