"""The text encoder: trained alone to distinguish concepts and backgrounds, then frozen.

It starts from a closed form: token embeddings are the ridge regression of each concept's visual code (principal
components of its picture) on bags of tokens, and the first layer passes them on. From a random start, accuracy is still at
chance level after the steps in which this start reaches 70%. Training then predicts concept, background and a 32 px
thumbnail from the pad row.

Shapes: B captions, T tokens of the longest caption + 1, D width.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from longcat.model.tokenizer import plain_ids
from longcat.sampling.encoding.text_encoder import position_ids
from longcat.sampling.prompt import TEMPLATE_PREFIX, tokenize_body
from recipes.embedded import concepts
from recipes.embedded.architecture import TEXT_WIDTH, build_text_encoder
from recipes.embedded.captions import BACKGROUNDS, LANGUAGES, training_backgrounds, training_caption
from recipes.embedded.checkpoint import load_checkpoint, save_checkpoint, save_result
from recipes.embedded.concepts import Concept
from recipes.embedded.schedule import rate_share
from recipes.embedded.vae import background_colours, compose, load_sprites

BATCH = 48
PEAK_LEARNING_RATE = 2e-3
VISUAL_CODE, RANDOM_CODE = 160, 76
"""Widths of a concept's code: principal components of its picture, and a random part that tells look-alikes apart."""


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes many captions at once, computing the template's prefix once; differentiable."""

    tokenizer: Qwen2Tokenizer
    text_encoder: Qwen2_5_VLForConditionalGeneration

    def __call__(self, captions: list[str]) -> Tensor:
        """Return embeddings (B, T, D); every row from a caption's length on is its pad row."""
        bodies = [tokenize_body(caption, self._tokenize) for caption in captions]
        lengths = torch.tensor([len(body) for body in bodies])
        width = int(lengths.max()) + 1
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([body + [pad] * (width - len(body)) for body in bodies])
        prefix = torch.tensor([self._tokenize(TEMPLATE_PREFIX)])
        mask = (torch.arange(width) < lengths[:, None]).long()
        mask = torch.cat([torch.ones(len(bodies), prefix.shape[1], dtype=torch.long), mask], dim=1)
        positions = position_ids(mask)
        model = self.text_encoder.model.language_model
        cache = DynamicCache(config=model.config)
        model(
            input_ids=prefix,
            attention_mask=torch.ones_like(prefix),
            position_ids=positions[:, :1, : prefix.shape[1]],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(len(bodies))
        rows = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions[:, :, prefix.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        embedded: Tensor = rows.last_hidden_state
        return embedded

    def _tokenize(self, text: str) -> list[int]:
        return plain_ids(self.tokenizer)(text)


class Heads(torch.nn.Module):
    """The heads that predict concept, background and a 32 px thumbnail from the pad row."""

    def __init__(self, concept_count: int) -> None:
        super().__init__()
        self.concept = torch.nn.Linear(TEXT_WIDTH, concept_count)
        self.background = torch.nn.Linear(TEXT_WIDTH, len(BACKGROUNDS))
        self.thumbnail = torch.nn.Linear(TEXT_WIDTH, 3 * 32 * 32)

    def forward(self, pad_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the predictions from pad rows (B, D), in float32."""
        return self.concept(pad_row).float(), self.background(pad_row).float(), self.thumbnail(pad_row).float()


def train(folder: Path, *, seconds: float) -> None:
    """Train for ``seconds`` of wall time and save the text encoder; resumes from its last checkpoint."""
    torch.manual_seed(1)
    rng = random.Random(0)
    everything, _ = concepts.load(folder)
    thumbnails = _thumbnails(folder)
    colours = background_colours()
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = build_text_encoder(tokenizer)
    initialise(text_encoder, tokenizer, everything, thumbnails)
    text_encoder.model.visual.requires_grad_(False)
    heads = Heads(len(everything))
    encode = BatchEncoder(tokenizer, text_encoder)
    parameters = [p for p in text_encoder.parameters() if p.requires_grad] + list(heads.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    state = {"text_encoder": text_encoder, "heads": heads, "optimizer": optimizer}
    step, elapsed = load_checkpoint(folder / "text_encoder.pt", state)
    begin, last_save = time.monotonic() - elapsed, time.monotonic()
    order: list[int] = []
    right: list[float] = []
    while (elapsed := time.monotonic() - begin) < seconds:
        rate = rate_share(step, warm_up_steps=80, done=elapsed / seconds)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * rate
        if len(order) < BATCH:
            order = rng.sample(range(len(everything)), len(everything))
        chosen = [order.pop() for _ in range(BATCH)]
        captions, backgrounds = _draw(everything, chosen, rng)
        wanted, wanted_background = torch.tensor(chosen), torch.tensor(backgrounds)
        picture = compose(thumbnails[wanted], colours[wanted_background]) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            predicted = heads(encode(captions)[:, -1])
        loss = _loss(predicted, wanted, wanted_background, picture)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        right.append((predicted[0].argmax(1) == wanted).float().mean().item())
        if step % 50 == 0:
            accuracy = sum(right[-50:]) / 50
            print(f"text_encoder step {step} {elapsed:.0f} s loss {loss.item():.3f} concept {accuracy:.3f}", flush=True)
        if time.monotonic() - last_save > 120:
            save_checkpoint(folder / "text_encoder.pt", state, step, elapsed)
            last_save = time.monotonic()
    save_result(folder / "text_encoder", text_encoder.save_pretrained)
    (folder / "text_encoder.pt").unlink(missing_ok=True)


def _loss(predicted: tuple[Tensor, Tensor, Tensor], concept: Tensor, background: Tensor, picture: Tensor) -> Tensor:
    """Return the loss of the heads' predictions; ``concept`` and ``background`` (B), ``picture`` (B, 3, 32, 32) in -1..1."""
    return (
        0.1 * F.cross_entropy(predicted[0], concept)
        + 0.1 * F.cross_entropy(predicted[1], background)
        + F.mse_loss(predicted[2], picture.flatten(1))
    )


def _draw(everything: list[Concept], chosen: list[int], rng: random.Random) -> tuple[list[str], list[int]]:
    """Draw a caption and a background for each concept; 4 in 10 are white, which captions do not name."""
    backgrounds = [0 if rng.random() < 0.4 else rng.choice(training_backgrounds(i)) for i in chosen]
    captions = [
        training_caption(everything[i], i, background, rng.choice(LANGUAGES), rng)
        for i, background in zip(chosen, backgrounds, strict=True)
    ]
    return captions, backgrounds


@torch.no_grad()
def initialise(
    text_encoder: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    everything: list[Concept],
    thumbnails: Tensor,
) -> None:
    """Initialise in closed form: embeddings by ridge regression, the first attention layer near the mean of its values."""
    rng = random.Random(3)
    pictures = compose(thumbnails, torch.ones(len(everything), 3)).flatten(1) * 2 - 1
    pictures = torch.cat([pictures, thumbnails[:, 3].flatten(1)], dim=1)
    left, strength, _ = torch.linalg.svd(pictures - pictures.mean(0), full_matrices=False)
    code = left[:, :VISUAL_CODE] * strength[:VISUAL_CODE] ** 0.4
    code = torch.cat([code / code.std(), torch.randn(len(everything), RANDOM_CODE)], dim=1)
    width = code.shape[1]

    bags: list[Tensor] = []
    targets: list[Tensor] = []

    def add(text: str, concept: int, background: int, weight: float) -> None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        bags.append(torch.bincount(torch.tensor(ids), minlength=len(tokenizer)) * weight**0.5)
        colour = 3.0 * F.one_hot(torch.tensor(background), len(BACKGROUNDS)) * (background > 0)
        targets.append(torch.cat([code[concept], colour]) * weight**0.5)

    for index, concept in enumerate(everything):
        for names in ((concept.name_en, *concept.synonyms_en), (concept.name_zh, *concept.synonyms_zh)):
            for name in names:
                add(name, index, 0, 3.0)
        for language in LANGUAGES:
            for _ in range(6):
                background = rng.choice([0, *training_backgrounds(index)])
                add(training_caption(concept, index, background, language, rng), index, background, 1.0)
    rows, wanted = torch.stack(bags), torch.stack(targets)
    solution = torch.linalg.solve(rows.T @ rows + 0.3 * torch.eye(rows.shape[1]), rows.T @ wanted)

    embedding = torch.randn(len(tokenizer), TEXT_WIDTH) * 0.02
    used = width + len(BACKGROUNDS)
    embedding[:, :used] += solution * 0.08
    constants = TEXT_WIDTH - used
    embedding[:, used:] = torch.tensor([1.0, -1.0]).repeat(constants // 2)
    model = text_encoder.model.language_model
    model.embed_tokens.weight.copy_(embedding)
    attention = model.layers[0].self_attn
    attention.v_proj.weight.copy_(torch.diag((torch.arange(TEXT_WIDTH) < used).float()))
    attention.v_proj.bias.zero_()
    attention.o_proj.weight.copy_(40 * torch.eye(TEXT_WIDTH))
    attention.q_proj.weight.mul_(0.3)
    attention.k_proj.weight.mul_(0.3)


def _thumbnails(folder: Path) -> Tensor:
    """Return thumbnails (N, 4, 32, 32), premultiplied, 0..1."""
    sprites = load_sprites(folder)
    return torch.cat([F.avg_pool2d(part.float() / 255, 4) for part in sprites.split(64)])
