"""The work beside the steps: decoding, encoding a prompt, and the first picture of a new schedule."""

from functools import partial

import torch

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import PeakMemory, seconds_of
from benchmarks.gpu_check.subjects.inputs import Inputs
from longcat.model.flavour import EMBEDDED_FOLDER
from longcat.model.shape import LATENT_CHANNELS, LATENT_PX
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.sampling import latents
from longcat.sampling.encoding.text_encoder import encode_prompt
from longcat.sampling.forward import Forward
from longcat.sampling.prompt import tokenize_prompt

_STEPS = 30


def run(kit: Kit) -> None:
    """Measure each."""
    for side_px in kit.sides_px:
        for tiled in (False, True):
            way = "in tiles" if tiled else "as a whole"
            kit.checks.run(f"decode {side_px} px {way}", partial(_decode, kit, side_px, tiled))
    kit.checks.run("encode a prompt", partial(_encode, kit))
    kit.checks.run(f"modulations of a new schedule of {_STEPS} steps", partial(_schedule, kit))


@torch.no_grad()
def _decode(kit: Kit, side_px: int, tiled: bool, check: Check) -> None:
    vae, side = kit.model.vae(), side_px // LATENT_PX
    noise = torch.randn(1, LATENT_CHANNELS, side, side, device=kit.device, dtype=kit.model.dtype)
    memory = PeakMemory(kit.device)
    seconds = seconds_of(lambda: latents.decode(vae, noise, tiled=tiled), kit.device, rounds=kit.rounds)
    check.note(ms=seconds * 1000, **memory.figures())
    check.require(bool(latents.decode(vae, noise, tiled=tiled).isfinite().all()), "the picture is not finite")


def _encode(kit: Kit, check: Check) -> None:
    text_encoder = kit.model.text_encoder()
    tokenizer = load_tokenizer(EMBEDDED_FOLDER if kit.model.is_random else kit.model.flavour.folder)
    tokens = tokenize_prompt("一个红苹果", plain_ids(tokenizer), max_tokens=kit.model.prompt_tokens)
    encode = partial(
        encode_prompt, text_encoder, tokens, pad_token_id=tokenizer.pad_token_id, max_tokens=kit.model.prompt_tokens,
        device=kit.device,
    )  # fmt: skip
    memory = PeakMemory(kit.device)
    check.note(ms=1000 * seconds_of(encode, kit.device, rounds=kit.rounds), **memory.figures())
    check.require(bool(encode().isfinite().all()), "the embedding is not finite")


def _schedule(kit: Kit, check: Check) -> None:
    transformer = kit.model.transformer()
    times = (torch.arange(1, _STEPS + 1) / _STEPS).to(kit.model.dtype)
    seconds = seconds_of(lambda: Forward(transformer, kit.device).modulations(times), kit.device, rounds=kit.rounds)
    inputs = Inputs.make(kit.model, rows=2, side_px=kit.model.side_px)
    step = seconds_of(inputs.ours(Forward(transformer, kit.device)), kit.device, rounds=kit.rounds)
    check.note(ms=seconds * 1000, of_a_step=seconds / step)
