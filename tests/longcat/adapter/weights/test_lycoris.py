"""LoKr and LoHa, against the ``lycoris-lora`` package: read from its files, stored, served alone and with other kinds."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import linear_modules, lora_targets
from longcat.adapter.verification import changes_nothing, check_lora
from longcat.adapter.weights.draft import describe_lora
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.adapter.weights.lycoris import LohaLayer, pairs
from longcat.errors import AdapterError
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.sampling import denoise
from longcat.sampling.forward import Forward
from tests.longcat.adapter.weights.conftest import SCALES
from tests.longcat.adapter.weights.lycoris_networks import KINDS, TOLERANCE, create, random_lycoris
from tests.longcat.adapter.weights.test_dora import random_dora
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_layers_beside_blocks import served_velocity
from tests.longcat.sampling.test_slots import draw, filled_slots, random_lora

DIFFERING = ("lokr whole", "lokr low rank", "loha", "mixed", "lokr everywhere", "loha everywhere")
"""Kinds whose slots hold other matrices."""


@pytest.mark.parametrize("rank", [None, 64], ids=["factors", "LoHa as LoRA"])
def test_served_velocities_are_those_of_the_package(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], rank: int | None
) -> None:
    file, expected = written
    foreign = read_foreign(file, linear_modules(model.transformer))
    assert (foreign.origin, foreign.has_alpha, foreign.warnings) == ("lycoris", True, ())
    slots = filled_slots(model, [foreign.weights], rank=rank or foreign.weights.rank)
    plain = served_velocity(model, slots)
    for scale in SCALES:
        assert (expected[scale] - plain).abs().max() > 0.1  # the adapter has an effect
        served = served_velocity(model, slots, (0, scale))
        torch.testing.assert_close(served, expected[scale], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_version_keeps_every_number(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], tmp_path: Path
) -> None:
    weights = read_foreign(written[0], linear_modules(model.transformer)).weights
    save_lora(weights, tmp_path / "a.safetensors")
    again = load_lora(tmp_path / "a.safetensors")
    assert describe_lora(again) == describe_lora(weights)
    assert describe_lora(weights)["kind"] in ("lokr", "loha", "loha+lokr")
    assert describe_lora(weights)["tensors"] == len(load_file(tmp_path / "a.safetensors"))
    for name, layer in weights.layers.items():
        for end, tensor in layer.tensors().items():
            assert torch.equal(again.layers[name].tensors()[end], tensor), (name, end)
    save_lora(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_bitwise_the_same_alone_and_in_a_batch_of_all_kinds(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    adapters = [
        random_lora(lora_targets(model.transformer), seed=1, only=("",)),
        *(random_lycoris(model, kind, seed=seed) for seed, kind in enumerate(DIFFERING)),
        random_dora(model, seed=2, rank=4, only=("",)),
    ]
    slots, forward = filled_slots(model, adapters, rank=64), Forward(model.transformer, model.device)
    every = range(len(adapters))
    uses = [((slot, 1.0),) for slot in every] + [((1, 0.7), (3, -0.5)), ((4, 0.5), (7, 1.0)), (), ((7, 0.4),)]
    together = draw(model, forward, slots, *uses, size=(64, 64), steps=(2,))
    for i, use in enumerate(uses):
        single = denoise.start(
            model, forward, embeds_1LJ=encode(model, "一只猫"), negative_embeds_1LJ=encode(model, ""), height_px=64,
            width_px=64, steps=2, guidance_scale=2.0, cfg_renorm=True, seed=i, adapters=use, slots=slots,
        )  # fmt: skip
        while not single.is_done:
            denoise.advance(forward, [single], slots)
        assert torch.equal(together[i].latents_1NC, single.latents_1NC), i


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_bitwise_the_same_in_any_order_and_on_any_number_of_cores(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    targets, kinds = lora_targets(model.transformer), ("loha", "lokr whole", "loha", "lokr whole")
    adapters = [random_lycoris(model, kind, seed=seed) for seed, kind in enumerate(kinds)]
    adapters += [random_lora(targets, seed=seed, only=("",)) for seed in (1, 2)]
    adapters += [random_dora(model, seed=seed, only=("",)) for seed in (1, 2)]
    slots, forward = filled_slots(model, adapters, rank=16), Forward(model.transformer, model.device)
    uses = [((slot, scale),) for slot in range(len(adapters)) for scale in (1.0, 0.5)]
    rope = forward.rope(height_px=64, width_px=64, prompt_rows=32)
    noise = torch.randn(len(uses), 16, 64, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    context = forward.context(encode(model, "一只猫"))
    modulation = forward.modulations(torch.tensor([0.4], dtype=model.dtype))[0][None]

    def velocities(forward: Forward, rows: Sequence[int]) -> Tensor:
        count, gathered = len(rows), slots.gather([uses[row] for row in rows])
        return forward(noise[rows], context.repeat(count, 1, 1), modulation.repeat(count, 1), rope, gathered)

    expected = torch.cat([velocities(forward, [row]) for row in range(len(uses))])
    sorted_rows = sorted(range(len(uses)), key=lambda row: slots.order(uses[row]))
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # 16 rows in shares that cut runs of one kind and of one adapter
    try:
        forwards = [forward, Forward(model.transformer, model.device)]
    finally:
        torch.set_num_threads(before)
    for computing in forwards:
        for rows in (list(range(len(uses))), sorted_rows, sorted_rows[::-1]):
            assert torch.equal(velocities(computing, rows), expected[rows]), rows


def test_a_slot_keeps_nothing_of_the_adapter_before(model: Components) -> None:
    lora = random_lora(lora_targets(model.transformer), seed=1)
    others = [random_lycoris(model, kind, seed=1) for kind in ("lokr whole", "loha")]
    slots = filled_slots(model, [lora], rank=64)
    alone = served_velocity(model, slots, (0, 1.0))
    for weights in others:
        slots.load(0, weights)
        expected = served_velocity(model, filled_slots(model, [weights], rank=64), (0, 1.0))
        assert torch.equal(served_velocity(model, slots, (0, 1.0)), expected)
    slots.load(0, lora)
    assert torch.equal(served_velocity(model, slots, (0, 1.0)), alone)


def test_a_slot_needs_no_more_memory_for_any_kind(model: Components) -> None:
    loha, lokr = random_lycoris(model, "loha", seed=1), random_lycoris(model, "lokr square", seed=1)
    assert loha.rank == 8  # twice its r: two products
    assert lokr.rank == 1  # of 16 x 16 numbers twice, against 256 + 256 of a LoRA
    slots = filled_slots(model, [loha], rank=8)
    before = slots.buffers.nbytes
    slots.load(0, lokr)
    assert slots.buffers.nbytes == before
    with pytest.raises(AdapterError, match="rank 8 exceeds the limit, 7"):
        filled_slots(model, [loha], rank=7)


def test_pairs_are_the_elementwise_product_of_two_updates() -> None:
    a1, a2, b1, b2 = torch.randn(6, 3), torch.randn(6, 3), torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(pairs(a1, a2, -1) @ pairs(b1, b2, -2), (a1 @ b1) * (a2 @ b2))


def test_products_that_overflow_are_refused(model: Components) -> None:
    loha = random_lycoris(model, "loha", seed=1)
    layers = {
        name: replace(layer, w1_a=layer.w1_a * 3e3, w2_a=layer.w2_a * 3e3)
        for name, layer in loha.layers.items()
        if isinstance(layer, LohaLayer)
    }
    large = LoraWeights(alpha=loha.alpha, layers=layers)
    check_lora(large, lora_targets(model.transformer), max_rank=8)
    with pytest.raises(AdapterError, match="too large for float16"):
        check_lora(large, lora_targets(model.transformer), max_rank=8, dtype=torch.float16)


def test_an_untrained_adapter_is_found_to_change_nothing(model: Components, tmp_path: Path) -> None:
    network = create(copy.deepcopy(model.transformer), **KINDS["loha"])
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "a.safetensors")
    foreign = read_foreign(tmp_path / "a.safetensors", linear_modules(model.transformer))
    assert changes_nothing(foreign.weights)
    assert [warning.code for warning in foreign.warnings] == ["adapter_changes_nothing"]
