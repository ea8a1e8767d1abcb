"""Memory of a simulated GPU: adapters without copies, decoding, and the parts of the text encoder."""

import gc
from collections.abc import Callable

import pytest
import torch

from longcat.adapter.modules import lora_targets
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.memory.autoencoder import read_autoencoder
from longcat.model.memory.weights import read_text_encoder, read_transformer
from longcat.model.precision import Precision
from longcat.sampling import denoise, latents
from longcat.sampling.encoding.rewrite import rewrite_prompt
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots
from tests.longcat.sampling.test_slots import random_lora
from tests.service.engine.harness import EngineHarness
from tests.simulated_gpu.device import Counting, used_bytes

pytestmark = pytest.mark.simulated_gpu

RANK = 16
BF16 = 2


@pytest.fixture(scope="module")
def gpu_model(flavour: Flavour) -> Components:
    return load(flavour, device="cuda", dtype="bfloat16")


def peak_of(work: Callable[[], object]) -> int:
    """Return the most memory in use while ``work`` runs, beyond what was in use before."""
    before, counting = used_bytes(), Counting()
    work()
    return counting.so_far.peak_bytes - before


def test_rows_use_adapters_without_copies_of_them(gpu_model: Components) -> None:
    targets = lora_targets(gpu_model.transformer)
    before = used_bytes()
    slots = AdapterSlots(gpu_model.transformer, count=4, rank=RANK, device=gpu_model.device, dtype=torch.bfloat16)
    assert used_bytes() - before == pytest.approx(
        5 * RANK * sum(map(sum, targets.values())) * BF16, rel=0.01
    )  # four and the empty one
    for slot in range(4):
        slots.load(slot, random_lora(targets, seed=slot, rank=RANK, only=("",)))
    in_use, counting = used_bytes(), Counting()
    updates = slots.gather([((slot, scale),) for slot in range(4) for scale in (1.0, 0.5)])
    assert updates
    assert used_bytes() - in_use <= 8 * (torch.int64.itemsize + BF16)  # the slot and the scale of each row
    assert (counting.so_far.operations, counting.so_far.to_device) == (0, 2)


def test_one_picture_is_decoded_at_a_time(gpu_model: Components) -> None:
    def draw(pictures: int) -> None:
        harness = EngineHarness(gpu_model, max_rows=2)
        harness.submit("a", num_images=pictures, width=256, height=256, steps=1, guidance_scale=1.0)
        harness.run(1)
        assert len(harness.pictures("a")) == pictures

    draw(1)  # fills caches
    assert peak_of(lambda: draw(4)) < 1.3 * peak_of(lambda: draw(1))


def test_large_pictures_are_decoded_in_tiles(gpu_model: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "WHOLE_DECODE_PIXELS", 256 * 256)
    forward = Forward(gpu_model.transformer, gpu_model.device)
    embeds = torch.zeros(1, 32, gpu_model.transformer.config.joint_attention_dim, device="cuda", dtype=torch.bfloat16)

    def decode(height_px: int) -> int:
        picture = denoise.start(
            gpu_model, forward, embeds_1LJ=embeds, negative_embeds_1LJ=None, height_px=height_px, width_px=256, steps=1,
            guidance_scale=1.0, cfg_renorm=False, seed=1,
        )  # fmt: skip
        return peak_of(lambda: denoise.decode(gpu_model.vae, picture))

    assert decode(256 + 64) < 0.7 * decode(256)


def test_only_what_encodes_prompts_is_on_the_device(flavour: Flavour) -> None:
    gc.collect()  # of the tests before
    before = used_bytes()
    model = load(flavour, device="cuda", dtype="bfloat16")
    folder = flavour.folder
    transformer = read_transformer(folder)
    planned = (
        read_text_encoder(folder).weight_bytes(Precision.NO_CHANGE, BF16)
        + read_autoencoder(folder).weight_bytes(BF16)
        + transformer.top_bytes(BF16)
        + sum(transformer.block_bytes(Precision.NO_CHANGE, BF16))
    )
    assert used_bytes() - before == pytest.approx(planned, rel=0.01)
    model.tokenizer.chat_template = "{{ messages[0]['content'][0]['text'][-20:] }}"
    in_use = used_bytes()
    for _ in range(2):
        rewrite_prompt(model.text_encoder, model.tokenizer, "a cat", max_tokens=4, device=model.device)
        assert used_bytes() - in_use < 1024
