"""The engine on a simulated GPU: the same pictures as on a CPU, and bounds on copies and waits."""

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.precision import Offload, Precision
from longcat.sampling import denoise
from longcat.sampling.encoding.rewrite import rewrite_prompt
from longcat.sampling.forward import Forward
from service.engine.encoding.prompt_encoder import PromptEncoder
from service.engine.encoding.prompt_files import PromptFiles
from tests.longcat.sampling.test_slots import random_lora
from tests.service.engine.harness import EngineHarness, as_adapter
from tests.simulated_gpu.device import Counting, used_bytes

pytestmark = pytest.mark.simulated_gpu

TOLERANCE = 1.0
"""Mean difference of pixels to the CPU's pictures, of 255. Attention and products of several rows round differently."""
REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "without guidance": {"guidance_scale": 1.0, "num_images": 2},
    "longer": {"steps": 6, "seed": 2},
    "wide": {"width": 128, "seed": 3},
}
"""Requests of two sizes and several lengths, so that the number of rows of a forward varies from one to the maximum."""
COPIED_BYTES = 8 * 2**20
"""Bound above the pictures and previews of all requests in float32, and far below the weights."""
WITH_ADAPTERS: Mapping[str, tuple[str, ...]] = {"one": ("a0",), "two": ("a1", "dora"), "dora alone": ("dora",)}


def with_dora(weights: LoraWeights) -> LoraWeights:
    generator = torch.Generator().manual_seed(9)
    layers = {
        name: LoraLayer(layer.down, layer.up, torch.rand(layer.up.shape[0], generator=generator) + 0.5)
        for name, layer in weights.layers.items()
    }
    return LoraWeights(alpha=weights.alpha, layers=layers)


def draw(model: Components, *, background: bool = True) -> dict[str, np.ndarray]:
    """Generate all requests together. Without ``background``, the same ones share a forward each time."""
    harness = EngineHarness(model, max_rows=8, adapter_slots=4, background=background)
    dora = with_dora(random_lora(lora_targets(model.transformer), seed=7, rank=4, only=["to_q", "proj_out"]))
    harness.adapters._there["dora"] = as_adapter("dora", dora, model)
    for name, fields in REQUESTS.items():
        harness.submit(name, **fields)
    for name, adapters in WITH_ADAPTERS.items():
        harness.submit(name, *adapters, previews=1)
    harness.run(len(REQUESTS) + len(WITH_ADAPTERS))
    return {name: np.stack(list(map(pixels, harness.pictures(name)))) for name in harness.outcomes}


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(np.float32)


@cache
def on_cpu(flavour: Flavour, precision: Precision) -> dict[str, np.ndarray]:
    return draw(load(flavour, device="cpu", dtype="bfloat16", precision=precision))


@pytest.mark.parametrize(
    ("precision", "offload"),
    [
        (Precision.NO_CHANGE, Offload.NONE),
        (Precision.INT8_TORCHAO, Offload.GROUP),
        (Precision.INT8_QUANTO, Offload.MODEL),
        (Precision.INT8_QUANTO, Offload.GROUP),
    ],
)
def test_pictures_are_those_of_a_cpu(flavour: Flavour, precision: Precision, offload: Offload) -> None:
    model = load(flavour, device="cuda", dtype="bfloat16", precision=precision, offload=offload)
    actual, expected = draw(model, background=offload is Offload.NONE), on_cpu(flavour, precision)
    assert actual.keys() == expected.keys()
    differences = {name: float(np.abs(actual[name] - expected[name]).mean()) for name in expected}
    assert max(differences.values()) < TOLERANCE, differences


@pytest.fixture(scope="module")
def gpu_model(flavour: Flavour) -> Components:
    return load(flavour, device="cuda", dtype="bfloat16")


@pytest.mark.parametrize("offload", [Offload.MODEL, Offload.GROUP])
def test_offloading_changes_no_picture_and_copies_no_weight_back(
    flavour: Flavour, gpu_model: Components, offload: Offload
) -> None:
    before = used_bytes()
    model = load(flavour, device="cuda", dtype="bfloat16", offload=offload)
    assert used_bytes() - before < 0.3 * weight_bytes(model)
    counting = Counting()
    pictures = draw(model, background=False)
    assert counting.so_far.host_bytes < COPIED_BYTES
    expected = draw(gpu_model, background=False)
    assert all((pictures[name] == expected[name]).all() for name in expected)


def weight_bytes(model: Components) -> int:
    parts = (model.transformer, model.vae, model.text_encoder)
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


@pytest.mark.parametrize("offload", Offload)
def test_prompts_are_rewritten_as_on_a_cpu(model: Components, flavour: Flavour, offload: Offload) -> None:
    texts = {}
    for loaded in (model, load(flavour, device="cuda", dtype="float32", offload=offload)):
        loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'][0]['text'][-20:] }}{% endfor %}"
        texts[loaded.device.type] = rewrite_prompt(
            loaded.text_encoder, loaded.tokenizer, "a cat", max_tokens=4, device=loaded.device
        )
    assert texts["cuda"] == texts["cpu"]


def test_admission_and_steps_wait_for_nothing(gpu_model: Components) -> None:
    forward = Forward(gpu_model.transformer, gpu_model.device)
    width = gpu_model.transformer.config.joint_attention_dim
    embeds = torch.randn(1, 32, width, device="cuda", dtype=torch.bfloat16)

    def start(seed: int) -> denoise.Denoising:
        return denoise.start(
            gpu_model, forward, embeds_1LJ=embeds, negative_embeds_1LJ=embeds, height_px=64, width_px=64, steps=30,
            guidance_scale=2.0, cfg_renorm=True, seed=seed,
        )  # fmt: skip

    counting = Counting()
    first = start(1)
    assert counting.so_far.waits == 0
    assert counting.so_far.to_device <= 3  # noise, times, positions
    counting = Counting()
    second = start(2)
    assert counting.so_far.waits == 0
    assert counting.so_far.to_device <= 1  # noise
    counting = Counting()
    denoise.advance(forward, [first, second])
    assert (counting.so_far.waits, counting.so_far.to_device, counting.so_far.to_host) == (0, 0, 0)


def test_a_new_schedule_reads_the_weights_once(gpu_model: Components) -> None:
    forward = Forward(gpu_model.transformer, gpu_model.device)
    times = torch.linspace(1, 0.1, 30).bfloat16()
    counting = Counting()
    forward.modulations(times[:1])
    for_one = counting.so_far.operations
    forward.modulations(times)
    assert counting.so_far.operations < 2.5 * for_one


@pytest.mark.parametrize("offload", [Offload.MODEL, Offload.GROUP])
def test_a_prompt_on_disk_brings_no_text_encoder_to_the_device(
    flavour: Flavour, tmp_path: Path, offload: Offload
) -> None:
    embeddings, peaks = [], []
    for _ in ("the server that encodes it", "one that starts afterwards"):
        model = load(flavour, device="cuda", dtype="bfloat16", offload=offload)
        encoder = PromptEncoder(model, PromptFiles(model, tmp_path, most_bytes=2**26))
        before, counting = used_bytes(), Counting()
        embeddings.append(encoder.encode("一只猫"))
        peaks.append(counting.so_far.peak_bytes - before)
    assert encoder.cache_counts.disk == 1
    assert torch.equal(*embeddings)
    assert peaks[1] <= 3 * embeddings[1].nbytes < peaks[0]
