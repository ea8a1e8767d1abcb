"""Adapters that also change biases and heads' norms, as written by ComfyUI's trainer, from the file to the picture."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat.adapter.export import WRITERS, write_comfyui
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import Modules, adaptable_modules, lora_targets
from longcat.adapter.weights.draft import describe_lora
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots, SlotUse
from tests.longcat.adapter.foreign.test_reading import layers_of, trained
from tests.longcat.adapter.weights.test_dora import velocity
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_layers_beside_blocks import PROMPT, beside, served_velocity
from tests.longcat.sampling.test_slots import draw, filled_slots, random_lora


def with_vectors(model: Components, *, seed: int, rank: int = 4) -> LoraWeights:
    """Return an adapter as ComfyUI's trainer makes it: LoRA on all linear layers, and a change of every vector."""
    generator = torch.Generator().manual_seed(seed)
    vectors = {
        name: torch.randn(widths[-1], generator=generator) * (0.1 if len(widths) == 1 else 0.02)
        for name, widths in adaptable_modules(model.transformer).items()
    }
    return replace(beside(model, seed=seed, only=("",), rank=rank, alpha=2), vectors=vectors)


def merged_velocity(model: Components, *adapters: tuple[LoraWeights, float]) -> Tensor:
    merged = copy.deepcopy(model.transformer)
    for weights, scale in adapters:
        for name, layer in weights.layers.items():
            merged.get_submodule(name).weight.data += scale * weights.alpha / weights.rank * layer.up @ layer.down
        for name, vector in weights.vectors.items():
            module = merged.get_submodule(name)
            (module.weight if isinstance(module, torch.nn.RMSNorm) else module.bias).data += scale * vector
    return velocity(merged, encode(model, PROMPT))


def test_velocities_are_those_of_merged_vectors(model: Components) -> None:
    adapters = [
        with_vectors(model, seed=1),
        with_vectors(model, seed=2),
        random_lora(lora_targets(model.transformer), seed=3),
    ]
    slots = filled_slots(model, adapters)
    for uses in ([(0, 1.0)], [(0, 0.7), (1, -0.4), (2, 0.5)]):
        expected = merged_velocity(model, *((adapters[slot], scale) for slot, scale in uses))
        torch.testing.assert_close(served_velocity(model, slots, *uses), expected, rtol=1e-5, atol=2e-5)
    without = replace(adapters[0], vectors={})
    assert (merged_velocity(model, (adapters[0], 1.0)) - merged_velocity(model, (without, 1.0))).abs().max() > 0.05


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_bitwise_the_same_whatever_its_neighbours_use(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    adapters = [with_vectors(model, seed=1), with_vectors(model, seed=2, rank=7)]
    adapters.append(random_lora(lora_targets(model.transformer), seed=3))
    slots, forward = filled_slots(model, adapters), Forward(model.transformer, model.device)
    uses: list[tuple[SlotUse, ...]] = [((0, 1.0),), (), ((2, 0.5),), ((1, 1.0), (0, -0.3)), ((1, 0.4),)]
    together = draw(model, forward, slots, *uses, guidance=(2.0, 1.0), steps=(2,))
    for i, use in enumerate(uses):
        rest = [() for _ in range(i)]
        alone = draw(
            model, Forward(model.transformer, model.device), slots, *rest, use, guidance=(2.0, 1.0), steps=(2,)
        )
        assert torch.equal(together[i].latents_1NC, alone[i].latents_1NC), i
    slots.load(0, adapters[2])  # no trace of the earlier vectors
    plain = filled_slots(model, [adapters[2]])
    assert torch.equal(served_velocity(model, slots, (0, 1.0)), served_velocity(model, plain, (0, 1.0)))


@pytest.fixture
def targets(model: Components) -> Modules:
    return adaptable_modules(model.transformer)


def test_a_file_of_comfyuis_trainer_is_read(targets: Modules, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = {
        "double_blocks.0.img_attn.qkv": (256, 768), "single_blocks.1.linear1": (256, 1792),
        "double_blocks.1.txt_mod.lin": (256, 1536), "final_layer.adaLN_modulation.1": (256, 512),
    }  # fmt: skip
    tensors = layers_of(
        {f"diffusion_model.{name}": shape for name, shape in widths.items()}, down="lora_down", up="lora_up"
    )
    biases = {name: torch.randn(width, generator=generator) for name, (_, width) in widths.items()}
    tensors |= {f"diffusion_model.{name}.diff_b": bias for name, bias in biases.items()}
    norms = {
        "double_blocks.0.img_attn.norm.query_norm": "transformer_blocks.0.attn.norm_q",
        "double_blocks.1.txt_attn.norm.key_norm": "transformer_blocks.1.attn.norm_added_k",
        "single_blocks.3.norm.key_norm": "single_transformer_blocks.3.attn.norm_k",
        "single_blocks.2.norm.query_norm.scale": "single_transformer_blocks.2.attn.norm_q",  # an older ComfyUI's name
    }
    changes = {module: torch.randn(64, generator=generator) for module in norms.values()}
    tensors |= {f"diffusion_model.{name}.diff": changes[module] for name, module in norms.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    vectors = read_foreign(tmp_path / "a.safetensors", targets).weights.vectors
    block, single = "transformer_blocks.0.attn.to_", "single_transformer_blocks.1."
    expected = changes | dict(
        zip([f"{block}{x}" for x in "qkv"], biases["double_blocks.0.img_attn.qkv"].split(256), strict=True)
    )
    parts = biases["single_blocks.1.linear1"].split([256, 256, 256, 1024])
    expected |= dict(zip([*(f"{single}attn.to_{x}" for x in "qkv"), f"{single}proj_mlp"], parts, strict=True))
    expected["transformer_blocks.1.norm1_context.linear"] = biases["double_blocks.1.txt_mod.lin"]
    expected["norm_out.linear"] = biases["final_layer.adaLN_modulation.1"].roll(256)  # shift and scale are exchanged
    assert vectors.keys() == expected.keys()
    assert all(torch.equal(vector, expected[name]) for name, vector in vectors.items())


@pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.* have invalid shape"
)  # PEFT takes its own biases for incomplete matrices
def test_pefts_lora_bias_is_served_as_peft_draws_it(model: Components, targets: Modules, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=6, lora_bias=True, target_modules=["to_q", "proj_mlp", "norm1.linear"])
    tuned = get_peft_model(copy.deepcopy(model.transformer), config)
    trained(tuned)
    tuned.save_pretrained(tmp_path)
    weights = read_foreign(tmp_path, targets).weights
    assert weights.vectors.keys() == weights.layers.keys()
    expected = velocity(tuned, encode(model, PROMPT))
    actual = served_velocity(model, filled_slots(model, [weights]), (0, 1.0))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


def test_vectors_are_stored_and_given_back_to_comfyui(model: Components, targets: Modules, tmp_path: Path) -> None:
    weights = with_vectors(model, seed=1)
    save_lora(weights, tmp_path / "stored.safetensors")
    write_comfyui(weights, tmp_path / "comfyui.safetensors")
    stored, again = load_lora(tmp_path / "stored.safetensors"), read_foreign(tmp_path / "comfyui.safetensors", targets)
    assert describe_lora(stored) == describe_lora(again.weights) == describe_lora(weights)
    for read in (stored, again.weights):
        assert read.vectors.keys() == weights.vectors.keys()
        assert all(torch.equal(vector, weights.vectors[name]) for name, vector in read.vectors.items())
    # ComfyUI finds the bias of a fused layer, and a norm, only by its own names.
    keys = {key for key in load_file(tmp_path / "comfyui.safetensors") if ".diff" in key}
    assert all(key.startswith("diffusion_model.") for key in keys)
    assert "diffusion_model.double_blocks.0.txt_attn.qkv.diff_b" in keys
    assert "diffusion_model.single_blocks.0.norm.query_norm.diff" in keys
    with pytest.raises(AdapterError, match="diffusers has no keys; export it in the format comfyui"):
        WRITERS["diffusers"](weights, tmp_path / "b.safetensors")


def test_part_of_a_fused_bias_is_given_back_with_zeros(model: Components, targets: Modules, tmp_path: Path) -> None:
    bias = torch.randn(256, generator=torch.Generator().manual_seed(0))
    weights = random_lora(lora_targets(model.transformer), seed=1)
    weights = replace(weights, vectors={"single_transformer_blocks.0.attn.to_k": bias})
    write_comfyui(weights, tmp_path / "a.safetensors")
    whole = load_file(tmp_path / "a.safetensors")["diffusion_model.single_blocks.0.linear1.diff_b"]
    assert torch.equal(whole, torch.cat([torch.zeros(256), bias, torch.zeros(256 + 1024)]))


def test_compiled_forwards_refuse_them_by_name(model: Components) -> None:
    slots = AdapterSlots(model.transformer, count=1, rank=16, device=model.device, dtype=model.dtype, whole=True)
    with pytest.raises(AdapterError, match=r"changes biases or norms.*without --compile"):
        slots.check(with_vectors(model, seed=1))
