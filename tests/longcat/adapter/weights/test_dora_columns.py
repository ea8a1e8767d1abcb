"""DoRA over the input axis, as OneTrainer and LyCORIS write it: read, kept and served as merged weights are."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lycoris import create_lycoris
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat.adapter.export import WRITERS
from longcat.adapter.foreign.module_names import module_names
from longcat.adapter.foreign.reading import Foreign, read_foreign
from longcat.adapter.modules import adaptable_modules, linear_modules
from longcat.adapter.verification import check_lora
from longcat.adapter.weights.draft import describe_lora
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.errors import AdapterError
from longcat.model.loading import Components
from longcat.sampling.forward import Forward
from tests.longcat.adapter.foreign.test_reading import layers_of
from tests.longcat.adapter.weights.lycoris_networks import PRESET, random_lycoris, randomized
from tests.longcat.adapter.weights.test_dora import random_dora, velocity
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_layers_beside_blocks import PROMPT, served_velocity
from tests.longcat.sampling.test_slots import draw, filled_slots

WIDTHS = {
    "double_blocks.1.img_attn.qkv": (256, 768), "single_blocks.2.linear1": (256, 1792),
    "double_blocks.0.txt_mlp.2": (1024, 256), "double_blocks.0.img_mod.lin": (256, 1536),
    "txt_in": (256, 256), "img_in": (64, 256), "time_in.in_layer": (256, 256),
}  # fmt: skip
"""Layers of OneTrainer's files, some of them fused, some beside the blocks' own."""


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """A file as OneTrainer writes it for ComfyUI."""
    names = {f"diffusion_model.{name}": widths for name, widths in WIDTHS.items()}
    generator = torch.Generator().manual_seed(1)
    scales = {
        f"{name}.dora_scale": 1.5 + torch.rand(1, width, generator=generator) for name, (width, _) in names.items()
    }
    alphas = {f"{name}.alpha": torch.tensor(2.0) for name in names}
    return layers_of(names) | scales | alphas


def read(model: Components, tensors: dict[str, Tensor], tmp_path: Path) -> Foreign:
    save_file(tensors, tmp_path / "a.safetensors")
    return read_foreign(tmp_path / "a.safetensors", adaptable_modules(model.transformer))


def merged_velocity(model: Components, tensors: dict[str, Tensor], scale: float) -> Tensor:
    """The velocity of diffusers' transformer with weights decomposed as OneTrainer's module computes them."""
    merged, parts = copy.deepcopy(model.transformer), module_names(linear_modules(model.transformer))
    for name in WIDTHS:
        key = f"diffusion_model.{name}"
        layers = [merged.get_submodule(module) for module in parts[name]]
        weight = torch.cat([layer.weight.data for layer in layers])
        down, up = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
        weight = weight + scale * tensors[f"{key}.alpha"] / down.shape[0] * up @ down
        weight = tensors[f"{key}.dora_scale"] * (weight / weight.norm(dim=0, keepdim=True))
        for layer, part in zip(layers, weight.split([layer.weight.shape[0] for layer in layers]), strict=True):
            layer.weight.data = part.clone()
    return velocity(merged, encode(model, PROMPT))


def test_velocities_are_those_of_merged_weights(model: Components, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    foreign = read(model, tensors, tmp_path)
    assert (foreign.origin, foreign.has_alpha, foreign.warnings) == ("comfyui", True, ())
    save_lora(foreign.weights, tmp_path / "b.safetensors")
    weights = load_lora(tmp_path / "b.safetensors")
    assert describe_lora(weights) == describe_lora(foreign.weights)
    assert describe_lora(weights)["use_dora"]
    assert describe_lora(weights)["tensors"] == len(load_file(tmp_path / "b.safetensors"))
    slots, plain = filled_slots(model, [weights]), velocity(model.transformer, encode(model, PROMPT))
    for scale in (1.0, 0.5):
        expected = merged_velocity(model, tensors, scale)
        assert (expected - plain).abs().max() > 0.05
        actual = served_velocity(model, slots, (0, scale))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


def test_velocities_are_those_of_lycoris(model: Components, tmp_path: Path) -> None:
    transformer = copy.deepcopy(model.transformer)
    network_class = type(create_lycoris(transformer, 1.0, algo="lora", linear_dim=4, linear_alpha=2))
    network_class.apply_preset({**PRESET, "module_algo_map": {}})
    options = {"algo": "lora", "linear_dim": 4, "linear_alpha": 2, "dora_wd": True, "wd_on_output": False}
    network = create_lycoris(transformer, 1.0, **options)
    network.apply_to()
    randomized(network, seed=1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(0.05).add_(1) if name.endswith("dora_scale") else parameter.mul_(0.05)
    found = read(model, {key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path)
    assert len(found.weights.column_magnitudes) == len(found.weights.layers)
    actual = served_velocity(model, filled_slots(model, [found.weights]), (0, 1.0))
    torch.testing.assert_close(actual, velocity(transformer, encode(model, PROMPT)), rtol=1e-5, atol=1e-5)


def test_a_picture_is_bitwise_the_same_beside_other_kinds(
    model: Components, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    adapters = [
        read(model, tensors, tmp_path).weights, random_dora(model, seed=2, rank=4, only=("",)),
        random_lycoris(model, "loha", seed=3),
    ]  # fmt: skip
    slots, forward = filled_slots(model, adapters, rank=16), Forward(model.transformer, model.device)
    uses = [((0, 0.7),), (), ((1, 1.0),), ((0, 1.0), (2, 0.5))]
    together = draw(model, forward, slots, *uses, size=(64, 64), steps=(2,))
    for i, use in enumerate(uses):
        alone = draw(model, forward, slots, *[()] * i, use, size=(64, 64), steps=(2,))[i]
        assert torch.equal(together[i].latents_1NC, alone.latents_1NC), i


def test_column_magnitudes_that_cannot_be_written_or_read_are_refused_by_name(
    model: Components, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = read(model, tensors, tmp_path).weights
    for format_ in ("diffusers", "comfyui"):
        with pytest.raises(AdapterError, match="DoRA over the input axis"):
            WRITERS[format_](weights, tmp_path / "out.safetensors")
    key = "diffusion_model.img_in.dora_scale"
    for scale in (tensors[key].flatten(), tensors[key].T.clone(), tensors[key][:, :-1].clone()):
        with pytest.raises(AdapterError, match=r"unknown axis: 'img_in\.dora_scale'.* \(256, 1\).* \(1, 64\)"):
            read(model, {**tensors, key: scale}, tmp_path)
    with pytest.raises(AdapterError, match="not finite"):
        read(model, {**tensors, key: tensors[key] * float("nan")}, tmp_path)
    layers = {name: layer for name, layer in weights.layers.items() if name != "x_embedder"}
    with pytest.raises(AdapterError, match="which has no LoRA"):
        check_lora(replace(weights, layers=layers), adaptable_modules(model.transformer), max_rank=16)
