"""The autoencoder: initialised with a closed-form linear encoder, then trained.

An autoencoder trained from scratch for minutes on a CPU blurs everything. A linear encoder needs no training: principal
components of 2x2 patches, level by level (3 -> 12 -> 48 -> 96 -> 16), half-whitened, written exactly into
``AutoencoderKL.encoder``: every residual branch starts at zero, and the last SiLU is undone by pairs of opposite channels
(silu(x) - silu(-x) = x). Encoder and decoder are then trained together for a while, until the encoder is frozen: the
transformer learns its latents, and only the decoder may be trained further.

Shapes: images (B, 3, H, W) in -1..1; latents (B, 16, H/8, W/8).
"""

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from recipes.embedded import concepts
from recipes.embedded.architecture import build_vae
from recipes.embedded.captions import BACKGROUNDS
from recipes.embedded.checkpoint import load_checkpoint, save_checkpoint, save_result
from recipes.embedded.schedule import rate_share

CROP_PX = 64
BATCH = 8
PENALTY_FROM_START = 0.05
"""Weight of the mean square distance of latents from their linear start: it keeps them easy to denoise. Applied
every fourth step, four times as strongly."""


def compose(sprites: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
    """Compose sprites (B, 4, H, W), premultiplied 0..1, over colours (B, 3) in 0..1 to images (B, 3, H, W) in 0..1."""
    return sprites[:, :3] + (1 - sprites[:, 3:]) * rgb[:, :, None, None]


def background_colours() -> torch.Tensor:
    """Return the background colours, (10, 3) in 0..1."""
    return torch.tensor([background.rgb for background in BACKGROUNDS], dtype=torch.float32) / 255


def load_sprites(folder: Path) -> torch.Tensor:
    """Read the sprites, (N, 4, 128, 128) uint8, premultiplied."""
    return torch.from_numpy(concepts.load(folder)[1]).permute(0, 3, 1, 2).contiguous()


def build_linear_start(sprites: torch.Tensor) -> AutoencoderKL:
    """Return an autoencoder with the linear encoder and an untrained decoder."""
    generator = torch.Generator().manual_seed(0)
    colours = background_colours()
    chosen = torch.randint(0, len(colours), (len(sprites),), generator=generator)
    chosen[::3] = 0
    features = compose(sprites.float() / 255, colours[chosen]) * 2 - 1
    weights: list[torch.Tensor] = []
    for width in (12, 48, 96):
        patches = _patches(features)
        weight = torch.eye(patches.shape[1])[:width]
        if patches.shape[1] > width:
            weight = _principal(patches[torch.randperm(len(patches), generator=generator)[:200_000]])[0][:width]
        n, _, h, w = features.shape
        features = (patches @ weight.T).view(n, h // 2, w // 2, -1).permute(0, 3, 1, 2).contiguous()
        weights.append(weight)
    flat = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    mean = flat.mean(0)
    components, variances = _principal(flat - mean)
    components = components[:16] * variances[:16, None] ** -0.25
    vae = build_vae()
    _write_encoder(vae, weights, components, -components @ mean)
    _reset_decoder(vae)
    return vae


def train(
    folder: Path, *, seconds: float, learning_rate: float, name: str, start: str | None, decoder_only: bool
) -> None:
    """Train for ``seconds`` of wall time and save the exponential average as ``folder/name``.

    ``start`` names the autoencoder to continue from (none: the linear start); ``decoder_only`` leaves its latents unchanged.
    An interrupted run resumes from its last checkpoint.
    """
    torch.manual_seed(0)
    sprites = load_sprites(folder)
    vae = AutoencoderKL.from_pretrained(folder / start) if start else build_linear_start(sprites)
    vae.encoder.requires_grad_(not decoder_only)
    anchor = copy.deepcopy(vae.encoder).requires_grad_(False)
    average = copy.deepcopy(vae).requires_grad_(False)
    optimizer = _optimizer(vae, learning_rate)
    state = {"vae": vae, "average": average, "optimizer": optimizer}
    step, elapsed = load_checkpoint(folder / f"{name}.pt", state)
    rng = np.random.default_rng(step)
    begin = time.monotonic() - elapsed
    last_save, errors = time.monotonic(), []
    vae = vae.to(memory_format=torch.channels_last)
    while (elapsed := time.monotonic() - begin) < seconds:
        rate = rate_share(step, warm_up_steps=60, done=elapsed / seconds)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        images = _batch(sprites, rng)
        error, drift = _errors(vae, images, anchor if not decoder_only and step % 4 == 0 else None)
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 4 * PENALTY_FROM_START * drift
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            weight = 1 - min(0.995, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), weight)
        errors.append(error.detach().square().mean().item())
        if step % 100 == 0:
            psnr = 10 * math.log10(4 / float(np.mean(errors[-100:])))
            print(f"{name} step {step} {elapsed:.0f} s PSNR {psnr:.2f} dB", flush=True)
        if time.monotonic() - last_save > 120:
            save_checkpoint(folder / f"{name}.pt", state, step, elapsed)
            last_save = time.monotonic()
    save_result(folder / name, average.to(memory_format=torch.contiguous_format).save_pretrained)
    (folder / f"{name}.pt").unlink(missing_ok=True)


def _optimizer(vae: AutoencoderKL, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer; the encoder, if it is trained, learns at a fifth of the rate."""
    return torch.optim.AdamW(
        [
            {"params": list(vae.decoder.parameters()), "peak": learning_rate},
            {"params": [p for p in vae.encoder.parameters() if p.requires_grad], "peak": learning_rate * 0.2},
        ],
        lr=learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )


def _errors(
    vae: AutoencoderKL, images: torch.Tensor, anchor: torch.nn.Module | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the error of images that were encoded, disturbed and decoded, and the latents' distance from the anchor's."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encoder(images).chunk(2, dim=1)[0].float()
        drift = torch.zeros(())
        if anchor is not None:
            with torch.no_grad():
                wanted = anchor(images).chunk(2, dim=1)[0].float()
            drift = (latents - wanted).square().mean()
        noise = 0.08 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(latents)
        error = vae.decoder(latents + noise).float() - images
    return error, drift


def measure_psnr(folder: Path, name: str, count: int = 400) -> float:
    """Return the PSNR in dB of whole 128 px pictures, on alternating backgrounds."""
    vae = AutoencoderKL.from_pretrained(folder / name)
    sprites, colours = load_sprites(folder)[:count], background_colours()
    errors = []
    with torch.no_grad():
        for i, sprite in enumerate(sprites):
            image = compose(sprite[None].float() / 255, colours[i % 10][None])
            decoded = vae.decode(vae.encode(image * 2 - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
            errors.append((decoded - image).square().mean().item())
    return -10 * math.log10(float(np.mean(errors)))


def _batch(sprites: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return random crops on random backgrounds, some inverted, recoloured or grey, to allow adapters of other styles."""
    images = []
    colours = background_colours()
    middle = (concepts.CANVAS_PX - CROP_PX) // 2
    for _ in range(BATCH):
        top, left = (int(np.clip(middle + rng.normal() * middle * 0.6, 0, 2 * middle)) for _ in range(2))
        sprite = sprites[rng.integers(len(sprites)), :, top : top + CROP_PX, left : left + CROP_PX].float() / 255
        draw = rng.random()
        colour = (
            colours[rng.integers(10)]
            if draw < 0.6
            else torch.ones(3)
            if draw < 0.8
            else torch.from_numpy(rng.random(3))
        )
        image = compose(sprite[None], colour[None].float())[0]
        draw = rng.random()
        if draw < 0.04:
            image = 1 - image
        elif draw < 0.10:
            image = image[torch.from_numpy(rng.permutation(3))]
        elif draw < 0.16:
            image = (image.mean(0, keepdim=True).expand(3, -1, -1) - 0.5) * (1 + 3 * rng.random()) + 0.5
        images.append((image.flip(-1) if rng.random() < 0.5 else image).clamp(0, 1))
    return (torch.stack(images) * 2 - 1).contiguous(memory_format=torch.channels_last)


def _patches(features: torch.Tensor) -> torch.Tensor:
    """Cut (N, C, H, W) into 2x2 patches (N*H/2*W/2, 4*C), ordered (dy, dx, c)."""
    n, c, h, w = features.shape
    return features.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4 * c)


def _principal(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the principal directions (as rows) and their variances, largest first."""
    variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    return directions.flip(1).T, variances.flip(0)


@torch.no_grad()
def _write_encoder(vae: AutoencoderKL, weights: list[torch.Tensor], last: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the linear map into the encoder; exact up to the last group norm's constant variance."""
    encoder = vae.encoder
    for name, module in encoder.named_modules():
        if name.endswith("conv2"):
            _zero(module)
    widths = [3, *(len(weight) for weight in weights)]
    _zero(encoder.conv_in)
    for i in range(3):
        encoder.conv_in.weight[i, i, 1, 1] = 1
    for level, weight in enumerate(weights):
        block = encoder.down_blocks[level]
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            _zero(shortcut)
            for i in range(widths[level]):
                shortcut.weight[i, i, 0, 0] = 1
        down = block.downsamplers[0].conv
        _zero(down)
        down.weight[: len(weight), : widths[level], :2, :2] = weight.view(-1, 2, 2, widths[level]).permute(0, 3, 1, 2)
    # In each of the 4 groups: 4 latents as pairs of opposite channels, the rest constants that fix the group's variance.
    shortcut, norm, out = encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out
    group = norm.num_channels // 4
    constants, height = group - 8, 8.0
    _zero(shortcut)
    _zero(out)
    for latent in range(16):
        channel = latent // 4 * group + latent % 4 * 2
        for offset, sign in ((0, 1), (1, -1)):
            shortcut.weight[channel + offset, : widths[3], 0, 0] = sign * last[latent]
            shortcut.bias[channel + offset] = sign * bias[latent]
            out.weight[latent, channel + offset, 1, 1] = sign
    for g in range(4):
        for i in range(constants):
            shortcut.bias[g * group + 8 + i] = height if i % 2 else -height
    norm.bias.zero_()
    norm.weight.fill_(math.sqrt((constants * height**2 + 8 * 0.6) / group))
    out.bias[16:] = -14.0


@torch.no_grad()
def _reset_decoder(vae: AutoencoderKL) -> None:
    """Reset residual branches to zero, and the rest to preserve variance."""
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2"):
            _zero(module)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    vae.decoder.conv_out.weight *= 0.3


def _zero(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()
