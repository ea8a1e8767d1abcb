"""The transformer: flow matching on cached latents and cached caption embeddings, 64 px first, then 128 px.

Several single-threaded processes share the work through gloo: on a small model they are faster than one process with as
many threads. The result is an exponential average of the weights, updated every ``AVERAGE_EVERY`` steps.

Shapes: B batch, N image tokens, T rows of the longest caption + 1, L = 32 prompt rows, D width.
"""

import copy
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
import torch.nn.functional as F
from diffusers import AutoencoderKL, LongCatImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from longcat.model.shape import image_tokens
from longcat.sampling import flow, latents
from recipes.embedded import concepts
from recipes.embedded.architecture import BODY_TOKENS, build_scheduler, build_transformer
from recipes.embedded.captions import LANGUAGES, training_backgrounds, training_caption
from recipes.embedded.checkpoint import load_checkpoint, save_checkpoint, save_result
from recipes.embedded.text_encoder import BatchEncoder
from recipes.embedded.vae import background_colours, compose, load_sprites

CAPTIONS_PER_CONCEPT = 32
CAPTION_DROPOUT = 0.1
AVERAGE_EVERY = 4
BETAS = (0.9, 0.98)


@dataclass(frozen=True, kw_only=True)
class TrainingPhase:
    """A phase of training at one size."""

    size_px: int
    batch: int
    """Pictures a process and step."""
    seconds: float
    """Wall time after which the phase ends."""
    learning_rate: float
    end_learning_rate: float
    """Learning rate at the end of the phase, approached linearly."""
    average_decay: float

    def rate(self, done: float) -> float:
        """Return the learning rate once a share of the phase is done."""
        return self.learning_rate + (self.end_learning_rate - self.learning_rate) * done


def prepare_latents(folder: Path, vae_name: str) -> None:
    """Encode every concept on every background at 64 and 128 px; store normalised, packed latents and their statistics."""
    vae = AutoencoderKL.from_pretrained(folder / vae_name)
    sprites, colours = load_sprites(folder), background_colours()
    raw: dict[int, list[Tensor]] = {64: [], 128: []}
    with torch.inference_mode():
        for sprite in sprites:
            for size, rows in raw.items():
                small = F.avg_pool2d(sprite[None].float() / 255, 128 // size).expand(len(colours), -1, -1, -1)
                rows.append(vae.encode(compose(small, colours) * 2 - 1).latent_dist.mean)
    shift, scale = torch.stack(raw[128]).mean().item(), 1 / torch.stack(raw[128]).std().item()
    packed = {
        f"latents_{size}": torch.stack([latents.pack((z - shift) * scale) for z in rows]).half()
        for size, rows in raw.items()
    }
    save_result(folder / "latents.pt", lambda path: torch.save({"shift": shift, "scale": scale, **packed}, path))


def train(rank: int, processes: int, folder: Path, phases: list[TrainingPhase], port: int) -> None:
    """Run one process of the training, of ``processes`` with ranks from 0. Resumes from the last checkpoint."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    torch.manual_seed(0)
    transformer = build_transformer()
    average = copy.deepcopy(transformer).requires_grad_(False)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.compile()
    parameters = list(transformer.parameters())
    optimizer = _optimizer(parameters)
    state = {"transformer": transformer, "average": average, "optimizer": optimizer}
    checkpoint = folder / "transformer.pt"
    step, elapsed = load_checkpoint(checkpoint, state)
    torch.manual_seed(1000 * step + rank)
    captions = CaptionPool.build(folder, seed=900 + rank)
    cached = torch.load(folder / "latents.pt", weights_only=True)
    rng = random.Random(1000 * step + rank)
    order = _Order(len(captions.first_row), rank, processes, seed=step)
    begin, last_save, losses = time.monotonic() - elapsed, time.monotonic(), []
    for index, phase in enumerate(phases):
        starts = sum(p.seconds for p in phases[:index])
        loss_of = _PhaseLoss(phase.size_px, cached)
        while elapsed < starts + phase.seconds:
            rate = phase.rate((elapsed - starts) / phase.seconds)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 100)
            rows = [captions.draw(i, rng) for i in order.take(phase.batch)]
            dropped = [rng.random() < CAPTION_DROPOUT for _ in rows]
            loss = loss_of(transformer, captions, rows, dropped)
            loss.backward()
            elapsed = _average_gradients(parameters, time.monotonic() - begin)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % AVERAGE_EVERY == 0:
                _update_average(average, parameters, min(phase.average_decay, (step + 1) / (step + 10)))
            losses.append(loss.item())
            if rank == 0 and step % 50 == 0:
                recent = sum(losses[-50:]) / len(losses[-50:])
                print(f"{phase.size_px} px step {step} {elapsed:.0f} s rate {rate:.1e} loss {recent:.4f}", flush=True)
            if rank == 0 and time.monotonic() - last_save > 180:
                save_checkpoint(checkpoint, state, step, elapsed)
                last_save = time.monotonic()
    if rank == 0:
        save_checkpoint(checkpoint, state, step, elapsed)
        save_result(folder / "transformer", average.save_pretrained)
    torch.distributed.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class CaptionPool:
    """Captions of every concept, embedded once. Row r belongs to concept[r] on background[r]."""

    rows: Tensor
    """(R, T, D) in bfloat16; from a caption's length on, every row is its pad row."""
    concept: list[int]
    background: list[int]
    first_row: list[int]
    """First row of each concept, which has ``CAPTIONS_PER_CONCEPT`` rows."""
    empty: Tensor
    """The null prompt, (L, D)."""

    @classmethod
    def build(cls, folder: Path, seed: int) -> "CaptionPool":
        """Draw and embed the captions; 4 in 10 name no background and mean white."""
        rng = random.Random(seed)
        everything, _ = concepts.load(folder)
        encode = BatchEncoder(
            Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
            Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        )
        drawn: list[tuple[int, int, str]] = []
        for index, concept in enumerate(everything):
            for i in range(CAPTIONS_PER_CONCEPT):
                background = 0 if i < 0.4 * CAPTIONS_PER_CONCEPT else rng.choice(training_backgrounds(index))
                text = training_caption(concept, index, background, LANGUAGES[i % 2], rng)
                drawn.append((index, background, text))
        with torch.inference_mode():
            parts = [encode([text for _, _, text in drawn[i : i + 64]]) for i in range(0, len(drawn), 64)]
            empty = encode([""])[0, -1].expand(BODY_TOKENS, -1)
        width = max(part.shape[1] for part in parts)
        return cls(
            rows=torch.cat([_extend(part, width) for part in parts]).bfloat16(),
            concept=[concept for concept, _, _ in drawn],
            background=[background for _, background, _ in drawn],
            first_row=[i * CAPTIONS_PER_CONCEPT for i in range(len(everything))],
            empty=empty.clone(),
        )

    def draw(self, concept: int, rng: random.Random) -> int:
        """Return a random row of this concept."""
        return self.first_row[concept] + rng.randrange(CAPTIONS_PER_CONCEPT)

    def embeddings(self, rows: list[int], dropped: list[bool]) -> Tensor:
        """Return embeddings (B, L, D) in float32; the null prompt where a caption is dropped."""
        embedded = _extend(self.rows[rows].float(), BODY_TOKENS)
        embedded[torch.tensor(dropped)] = self.empty
        return embedded


class _PhaseLoss:
    """The flow matching loss at the size of a phase."""

    def __init__(self, size_px: int, cached: dict[str, Tensor]) -> None:
        self._clean = cached[f"latents_{size_px}"]
        self._image_ids = latents.image_ids(height_px=size_px, width_px=size_px, max_tokens=BODY_TOKENS)
        self._text_ids = latents.text_ids(BODY_TOKENS)
        self._mu = flow.shift_mu(image_tokens(width_px=size_px, height_px=size_px), build_scheduler().config)

    def __call__(
        self, transformer: LongCatImageTransformer2DModel, captions: CaptionPool, rows: list[int], dropped: list[bool]
    ) -> Tensor:
        """Return the loss of the pictures of these captions, at random noise levels."""
        clean = torch.stack([self._clean[captions.concept[r], captions.background[r]] for r in rows]).float()
        noise, sigma = torch.randn_like(clean), flow.training_sigmas(len(rows), mu=self._mu)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = transformer(
                hidden_states=flow.add_noise(clean, noise, sigma),
                encoder_hidden_states=captions.embeddings(rows, dropped),
                timestep=sigma,
                txt_ids=self._text_ids,
                img_ids=self._image_ids,
                return_dict=False,
            )[0]
        return F.mse_loss(predicted.float(), flow.velocity(clean, noise))


class _Order:
    """An iterator over all concepts in a new order each epoch, with a share for each process."""

    def __init__(self, count: int, rank: int, processes: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._count, self._rank, self._processes = count, rank, processes
        self._waiting: list[int] = []

    def take(self, batch: int) -> list[int]:
        while len(self._waiting) < batch:
            self._waiting += self._rng.sample(range(self._count), self._count)[self._rank :: self._processes]
        taken, self._waiting = self._waiting[:batch], self._waiting[batch:]
        return taken


def _optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer; vectors have no weight decay."""
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=BETAS,
        fused=True,
    )


@torch.no_grad()
def _update_average(average: torch.nn.Module, parameters: list[torch.nn.Parameter], decay: float) -> None:
    """Move the average towards the weights, as ``AVERAGE_EVERY`` steps with this decay do."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in parameters], 1 - decay**AVERAGE_EVERY)


def _extend(rows_BTD: Tensor, length: int) -> Tensor:
    """Repeat the last row (a pad row) until there are ``length``."""
    missing = length - rows_BTD.shape[1]
    return torch.cat([rows_BTD, rows_BTD[:, -1:].expand(-1, missing, -1)], dim=1)


def _average_gradients(parameters: list[torch.nn.Parameter], elapsed: float) -> float:
    """Average gradients over the processes in bfloat16; return the mean of ``elapsed``, so that all stop together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients]).bfloat16()
    clock = torch.tensor([elapsed])
    torch.distributed.all_reduce(flat)
    torch.distributed.all_reduce(clock)
    processes = torch.distributed.get_world_size()
    parts = (flat.float() / processes).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return clock.item() / processes
