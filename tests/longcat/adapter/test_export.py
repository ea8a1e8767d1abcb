"""Adapters written in the formats of other programs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer as PeftLayer
from safetensors.torch import load_file

from longcat.adapter.export import WRITERS, write_comfyui
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.weights.file import load_lora
from longcat.model.loading import Components
from tests.longcat.adapter.foreign.test_reading import adapted, forward, rewrite
from tests.longcat.adapter.test_artifact import some_lora


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (5, 4 * 2**0.5)])  # the second is not itself after / 5 * 5
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format_", ["diffusers", "comfyui"])
def test_what_is_written_is_read_back_bit_by_bit(
    model: Components, targets: dict[str, tuple[int, int]], tmp_path: Path, format_: str, dtype: torch.dtype, rank: int,
    alpha: float,
) -> None:  # fmt: skip
    first = some_lora(model, rank=rank, alpha=alpha)
    tensors = {f"transformer.{name}.lora_A.weight": layer.down.to(dtype) for name, layer in first.layers.items()}
    tensors |= {f"transformer.{name}.lora_B.weight": layer.up.to(dtype) for name, layer in first.layers.items()}
    rewrite(tmp_path / "in.safetensors", tensors, json.dumps({"transformer.lora_alpha": alpha, "transformer.r": rank}))
    weights = read_foreign(tmp_path / "in.safetensors", targets).weights
    WRITERS[format_](weights, tmp_path / "out.safetensors")
    again = read_foreign(tmp_path / "out.safetensors", targets)
    assert again.origin == format_
    assert again.weights.alpha == weights.alpha == alpha
    for name, layer in weights.layers.items():
        assert torch.equal(again.weights.layers[name].down, layer.down)
        assert torch.equal(again.weights.layers[name].up, layer.up)
        assert layer.up.dtype == again.weights.layers[name].up.dtype == dtype
    if format_ == "diffusers":
        assert load_lora(tmp_path / "out.safetensors").alpha == alpha


@pytest.mark.parametrize("format_", ["diffusers", "comfyui"])
def test_diffusers_reads_what_is_written_with_its_scale(model: Components, tmp_path: Path, format_: str) -> None:
    weights = some_lora(model, rank=4, alpha=6.0)
    WRITERS[format_](weights, tmp_path / "a.safetensors")
    transformer = copy.deepcopy(model.transformer)
    transformer.load_lora_adapter(tmp_path, weight_name="a.safetensors", prefix="transformer")
    layers = [module for module in transformer.modules() if isinstance(module, PeftLayer)]
    assert len(layers) == len(weights.layers)
    assert {scale for layer in layers for scale in layer.scaling.values()} == {1.5}
    torch.testing.assert_close(forward(transformer), forward(adapted(model, weights)), rtol=1e-5, atol=1e-5)


def test_comfyui_gets_the_keys_that_it_maps_for_flux(model: Components, tmp_path: Path) -> None:
    weights = some_lora(model, alpha=8.0)
    write_comfyui(weights, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    ours = {key for key in tensors if key.startswith("transformer.single_transformer_blocks.0.attn.to_q.")}
    assert {key.removeprefix("transformer.single_transformer_blocks.0.attn.to_q.") for key in ours} == {
        "alpha",
        "lora_A.weight",
        "lora_B.weight",
    }
    assert len(tensors) == 3 * len(weights.layers)
    assert {key.split(".", 1)[0] for key in tensors} == {"transformer"}
    assert {tensors[key].item() for key in tensors if key.endswith(".alpha")} == {8.0}
