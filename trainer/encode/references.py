"""Encoding for a model that edits: references to latents, and prompts to embeddings that have seen their reference.

The functions are those that serve (``longcat.sampling.encoding``), so that a training shows the model what a request does.

Shapes: N image tokens, C = 64, T rows up to the first pad row, J the text encoder's width.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from longcat.errors import ConfigError, PromptTooLongError
from longcat.model.loading import load_vae
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.sampling.encoding.files import compact
from longcat.sampling.encoding.reference import half
from longcat.sampling.encoding.seen_picture import encode_edit_prompt, see
from longcat.sampling.encoding.source import encode_picture_latents
from longcat.sampling.prompt import EDIT_TEMPLATE_PREFIX, PromptTokens, tokenize_prompt
from trainer.data.captions.compose import possible_captions
from trainer.data.pictures import read_reference
from trainer.data.sample import PairReference, Sample
from trainer.encode.cache import Cache, fill
from trainer.encode.preparation import Encoders, LazyModel, OnDone, encode_captions, lazy_text_encoder, parts


class PromptInput(NamedTuple):
    """A text that the text encoder reads, and the picture that it sees with it; None for text-to-image."""

    text: str
    reference: PairReference | None


def inputs_of(samples: Sequence[Sample], *, are_dropped: bool = True) -> list[PromptInput]:
    """Return every text that may be drawn as a caption, with its reference.

    ``are_dropped``: captions may be, so that of each reference the empty prompt is needed, too.
    """
    empty = ("",) if are_dropped else ()
    return [PromptInput(text, sample.reference) for sample in samples for text in (*empty, *possible_captions(sample))]


def encode_prompts(
    encoders: Encoders,
    cache: Cache,
    prompts: Iterable[PromptInput],
    on_done: OnDone,
    *,
    share: int = 0,
    shares: int = 1,
) -> int:
    """Cache the embedding of every prompt; return the number that was missing.

    Of several processes, each embeds every ``shares``-th text, or the texts of every ``shares``-th reference. Raises
    ``ConfigError`` for a prompt that is too long: the scan has dropped captions that are.
    """
    texts: list[str] = []
    seen: dict[str, tuple[PairReference, dict[str, None]]] = {}
    for text, reference in prompts:
        if reference is None:
            texts.append(text)
        else:
            seen.setdefault(reference.identity, (reference, {}))[1][text] = None
    made = encode_captions(encoders, cache, texts, on_done, share=share, shares=shares) if texts else 0
    if not seen:
        return made
    pairs = [(reference, tuple(of)) for reference, of in seen.values()][share::shares]
    workers = torch.get_num_threads() if encoders.device.type == "cpu" else 1
    with lazy_text_encoder(encoders) as text_encoder, ThreadPoolExecutor(workers) as pool:
        embed = partial(_embed, encoders, text_encoder, _tokens(encoders, (text for _, of in pairs for text in of)))
        work = [
            (
                tuple(encoders.embedding_key(text, reference) for reference, of in batch for text in of),
                partial(_embed_all, pool, text_encoder, embed, batch),
            )
            for batch in parts(pairs, workers)
        ]
        return made + fill(cache, work, partial(on_done, "embeddings"))


def encode_references(
    encoders: Encoders,
    cache: Cache,
    references: Iterable[PairReference],
    on_done: OnDone,
    *,
    share: int = 0,
    shares: int = 1,
) -> int:
    """Cache the latents of every reference, (N, C); return the number that was missing."""
    by_key = {encoders.reference_key(reference): reference for reference in references}
    with LazyModel(lambda: load_vae(encoders.flavour, encoders.dtype).to(encoders.device)) as vae:
        work = [((key,), partial(_latents, encoders, vae, reference)) for key, reference in by_key.items()]
        return fill(cache, work[share::shares], partial(on_done, "references")) if work else 0


def _tokens(encoders: Encoders, texts: Iterable[str]) -> dict[str, PromptTokens]:
    """Tokenise every text once."""
    tokenize, most = plain_ids(load_tokenizer(encoders.flavour.folder)), encoders.flavour.settings.max_prompt_tokens
    tokens: dict[str, PromptTokens] = {}
    for text in texts:
        if text not in tokens:
            try:
                tokens[text] = tokenize_prompt(text, tokenize, max_tokens=most, prefix=EDIT_TEMPLATE_PREFIX)
            except PromptTooLongError as error:
                raise ConfigError.of(error.within(field="validation_prompts", value=text).problems) from error
    return tokens


@torch.no_grad()
def _embed(
    encoders: Encoders,
    text_encoder: LazyModel,
    tokens: dict[str, PromptTokens],
    pair: tuple[PairReference, tuple[str, ...]],
) -> list[Tensor]:
    """Embed the texts of one reference, (T, J) each: the vision tower runs once."""
    reference, texts = pair
    model, device = text_encoder(), encoders.device
    seen = see(model, encoders.image_processor, half(read_reference(reference)), device=device)
    embeddings = []
    for text in texts:
        embeds_1LJ = encode_edit_prompt(
            model,
            tokens[text],
            seen,
            pad_token_id=encoders.pad_token_id,
            max_tokens=encoders.flavour.settings.max_prompt_tokens,
            device=device,
        )
        first = embeds_1LJ.shape[1] - encoders.flavour.settings.max_prompt_tokens
        embeddings.append(compact(embeds_1LJ, body=first + len(tokens[text].body)).cpu())
    return embeddings


def _embed_all(
    pool: ThreadPoolExecutor,
    text_encoder: LazyModel,
    embed: partial[list[Tensor]],
    batch: Sequence[tuple[PairReference, tuple[str, ...]]],
) -> Iterator[Tensor]:
    text_encoder()  # loaded here once, before several threads need it
    return (embedding for embeddings in pool.map(embed, batch) for embedding in embeddings)


def _latents(encoders: Encoders, vae: LazyModel, reference: PairReference) -> tuple[Tensor]:
    pixels = read_reference(reference).pixel_array
    return (encode_picture_latents(vae(), pixels, device=encoders.device, dtype=encoders.dtype)[0],)
