"""Adapters that change modulations, embedders and the output layer.

Results equal those of merged weights and do not depend on other rows; without such an adapter, pictures and memory are
unchanged.
"""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat.adapter.modules import is_blocks_own, linear_modules, lora_targets
from longcat.adapter.weights.dora import plain_weight
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.sampling.conditioning import UNCHANGED
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots, SlotUse
from tests.longcat.adapter.weights.test_dora import NOISE, velocity
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_slots import ATTENTION, draw, filled_slots, random_lora

PROMPT = "一个红苹果"
MODULATIONS, EMBEDDERS = ("norm1.linear", "norm1_context.linear", "norm.linear"), ("x_embedder", "context_embedder")
OUTPUT, TIME = ("norm_out.linear", "transformer.proj_out"), ("linear_1", "linear_2")
KINDS = {"modulations": MODULATIONS, "embedders": EMBEDDERS, "output": OUTPUT, "time": TIME, "everything": ("",)}


def beside(
    model: Components, *, seed: int, only: tuple[str, ...], uses_dora: bool = False, **options: int
) -> LoraWeights:
    """Return an adapter of layers with these endings; that of the output layer is "transformer.proj_out"."""
    names = {f"transformer.{name}": widths for name, widths in linear_modules(model.transformer).items()}
    plain = random_lora(names, seed=seed, only=only, **options)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoraLayer] = {}
    for key, layer in plain.layers.items():
        name = key.removeprefix("transformer.")
        layers[name] = layer
        if uses_dora:
            lengths = plain_weight(model.transformer.get_submodule(name)).norm(dim=1).cpu()
            layers[name] = replace(
                layer, magnitude=lengths * (0.8 + 0.4 * torch.rand(lengths.shape, generator=generator))
            )
    return LoraWeights(alpha=plain.alpha, layers=layers)


def merged_velocity(model: Components, *adapters: tuple[LoraWeights, float]) -> Tensor:
    """Return the velocity of diffusers' transformer with the updates in its weights."""
    merged = copy.deepcopy(model.transformer)
    for weights, scale in adapters:
        for name, layer in weights.layers.items():
            weight = merged.get_submodule(name).weight.data
            weight += scale * weights.alpha / weights.rank * layer.up @ layer.down
            if layer.magnitude is not None:
                weight *= (layer.magnitude / weight.norm(dim=1))[:, None]
    return velocity(merged, encode(model, PROMPT))


def served_velocity(model: Components, slots: AdapterSlots, *uses: SlotUse) -> Tensor:
    forward = Forward(model.transformer, model.device)
    updates = slots.conditioning(uses)
    rope = forward.rope(height_px=128, width_px=128, prompt_rows=32)
    modulation = forward.modulations(torch.tensor([0.4], dtype=model.dtype), updates)[0][None]
    context = forward.context(encode(model, PROMPT), updates)
    return forward(NOISE.to(model.dtype), context, modulation, rope, slots.gather([uses]))


@pytest.mark.parametrize("uses_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("only", KINDS.values(), ids=KINDS)
def test_velocities_are_those_of_merged_weights(model: Components, only: tuple[str, ...], uses_dora: bool) -> None:
    weights = beside(model, seed=1, only=only, alpha=8, uses_dora=uses_dora)
    assert any(not is_blocks_own(name) for name in weights.layers)
    slots = filled_slots(model, [weights])
    expected = merged_velocity(model, (weights, 0.7))
    assert (expected - served_velocity(model, slots)).abs().max() > 0.02  # the adapter has an effect
    torch.testing.assert_close(served_velocity(model, slots, (0, 0.7)), expected, rtol=1e-5, atol=2e-5)


def test_several_adapters_add_up(model: Components) -> None:
    adapters = [beside(model, seed=1, only=("",), alpha=8), beside(model, seed=2, only=MODULATIONS + OUTPUT, rank=5)]
    adapters.append(random_lora(lora_targets(model.transformer), seed=3))
    slots = filled_slots(model, adapters)
    expected = merged_velocity(model, (adapters[0], 0.5), (adapters[1], -0.8), (adapters[2], 0.6))
    actual = served_velocity(model, slots, (0, 0.5), (1, -0.8), (2, 0.6))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_bitwise_the_same_whatever_its_neighbours_use(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    adapters = [
        beside(model, seed=0, only=("",)),
        random_lora(lora_targets(model.transformer), seed=1),
        beside(model, seed=2, only=MODULATIONS + EMBEDDERS, rank=4, uses_dora=True),
        beside(model, seed=3, only=OUTPUT + TIME, rank=9),
    ]
    slots, forward = filled_slots(model, adapters), Forward(model.transformer, model.device)
    uses: list[tuple[SlotUse, ...]] = [((0, 1.0),), (), ((1, 0.5),), ((2, 1.0), (3, -0.8)), ((3, 0.4),)]
    together = draw(model, forward, slots, *uses, guidance=(2.0, 1.0), steps=(2, 3))
    for i, use in enumerate(uses):
        rest = [() for _ in range(i)]
        alone = draw(
            model, Forward(model.transformer, model.device), slots, *rest, use, guidance=(2.0, 1.0), steps=(2, 3)
        )[i]
        assert torch.equal(together[i].latents_1NC, alone.latents_1NC), i
    plain = filled_slots(model, [adapters[1]])
    for i, use in ((1, ()), (2, ((0, 0.5),))):
        rest = [() for _ in range(i)]
        without = draw(model, forward, plain, *rest, use, guidance=(2.0, 1.0), steps=(2, 3))[i]
        assert torch.equal(together[i].latents_1NC, without.latents_1NC), i


def test_modulations_are_computed_once_for_a_time_and_a_set_of_adapters(model: Components) -> None:
    slots = filled_slots(model, [beside(model, seed=0, only=MODULATIONS), beside(model, seed=1, only=EMBEDDERS)])
    forward = Forward(model.transformer, model.device)

    def modulation(*uses: SlotUse) -> Tensor:
        return forward.modulations(torch.tensor([0.4]), slots.conditioning(uses))[0]

    changed, plain = modulation((0, 1.0)), modulation()
    assert modulation((0, 1.0)) is changed
    assert modulation((1, 1.0)) is plain  # it changes no modulation
    for other in (plain, modulation((0, 0.5))):
        assert not torch.equal(other, changed)
    slots.load(0, beside(model, seed=2, only=MODULATIONS))  # another adapter in the same slot
    assert not torch.equal(modulation((0, 1.0)), changed)


def test_a_slot_keeps_nothing_of_the_adapter_before(model: Components) -> None:
    everything, plain = beside(model, seed=1, only=("",)), random_lora(lora_targets(model.transformer), seed=2)
    used, fresh = filled_slots(model, [everything]), filled_slots(model, [plain])
    used.load(0, plain)
    assert torch.equal(served_velocity(model, used, (0, 1.0)), served_velocity(model, fresh, (0, 1.0)))
    assert used.conditioning(((0, 1.0),)) is UNCHANGED
    empty = filled_slots(model, [])  # has only the slot that is always empty
    assert used.buffers.nbytes > fresh.buffers.nbytes == 2 * empty.buffers.nbytes


def test_a_compiled_forward_has_the_same_layers(model: Components) -> None:
    weights = beside(model, seed=1, only=("",), rank=8)
    whole = filled_slots(model, [weights], rank=16, whole=True)
    expected = served_velocity(model, filled_slots(model, [weights]), (0, 0.7))
    torch.testing.assert_close(served_velocity(model, whole, (0, 0.7)), expected, rtol=1e-5, atol=1e-5)


def test_start_draws_with_the_adapters_that_it_is_given(model: Components, tmp_path: Path) -> None:
    weights = beside(model, seed=1, only=MODULATIONS + OUTPUT, rank=4)
    save_lora(weights, tmp_path / "a.safetensors")
    slots, forward = (
        filled_slots(model, [load_lora(tmp_path / "a.safetensors")]),
        Forward(model.transformer, model.device),
    )
    adapted, plain = (draw(model, forward, slots, use)[0].latents_1NC for use in (((0, 1.0),), ()))
    assert (adapted - plain).abs().max() > 0.01
    merged = copy.deepcopy(model.transformer)
    for name, layer in weights.layers.items():
        merged.get_submodule(name).weight.data += weights.alpha / weights.rank * layer.up @ layer.down
    expected = draw(model, Forward(merged, model.device), slots, ())[0].latents_1NC
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("only", [ATTENTION, ("",)])
def test_adapters_of_blocks_alone_need_no_conditioning(model: Components, only: tuple[str, ...]) -> None:
    slots = filled_slots(model, [random_lora(lora_targets(model.transformer), seed=1, only=only)])
    assert slots.conditioning(((0, 1.0),)) is UNCHANGED
