"""Files of ComfyUI, kohya, OneTrainer and diffusers that change layers beside the blocks' own, or vectors."""

import copy
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from lithograph.adapters import adapters
from longcat.adapter.export import WRITERS, write_comfyui
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import linear_modules
from longcat.model.loading import Components
from tests.longcat.adapter.foreign.comfyui_keys import comfyui_keys
from tests.longcat.adapter.foreign.test_reading import forward, imported, layers_of, updates
from tests.longcat.adapter.test_interop import comfyui_updates
from tests.longcat.sampling.test_layers_beside_blocks import beside

BESIDE = {
    "double_blocks.1.img_mod.lin": ("transformer_blocks.1.norm1.linear", (256, 1536)),
    "double_blocks.1.txt_mod.lin": ("transformer_blocks.1.norm1_context.linear", (256, 1536)),
    "single_blocks.3.modulation.lin": ("single_transformer_blocks.3.norm.linear", (256, 768)),
    "img_in": ("x_embedder", (64, 256)),
    "txt_in": ("context_embedder", (256, 256)),
    "time_in.in_layer": ("time_embed.timestep_embedder.linear_1", (256, 256)),
    "time_in.out_layer": ("time_embed.timestep_embedder.linear_2", (256, 256)),
    "final_layer.linear": ("proj_out", (256, 64)),
    "final_layer.adaLN_modulation.1": ("norm_out.linear", (256, 512)),
}
"""Black Forest Labs' names, the module, and its widths."""


def swapped(rows: Tensor) -> Tensor:
    return torch.cat([rows[len(rows) // 2 :], rows[: len(rows) // 2]])


@pytest.fixture
def targets(model: Components) -> dict[str, tuple[int, int]]:
    return linear_modules(model.transformer)


@pytest.mark.parametrize(
    ("prefix", "dotted", "flux"),
    [
        ("diffusion_model.", True, True),
        ("lora_unet_", False, True),
        ("transformer.", True, False),
        ("lora_transformer_", False, False),
        ("lycoris_", False, False),
    ],
)
def test_layers_beside_the_blocks_are_read_in_every_form(
    targets: dict[str, tuple[int, int]], tmp_path: Path, prefix: str, dotted: bool, flux: bool
) -> None:
    names = {module: prefix + (theirs if flux else module) for theirs, (module, _) in BESIDE.items()}
    names = {
        module: name if dotted else prefix + name[len(prefix) :].replace(".", "_") for module, name in names.items()
    }
    tensors = layers_of({names[module]: widths for module, widths in BESIDE.values()}, down="lora_down", up="lora_up")
    weights = imported(tensors, targets, tmp_path).weights
    assert sorted(weights.layers) == sorted(names)
    for module, name in names.items():
        up = tensors[f"{name}.lora_up.weight"]
        # Shift and scale of the output are in another order in the model that has Black Forest Labs' names.
        assert torch.equal(weights.layers[module].up, swapped(up) if flux and module == "norm_out.linear" else up)
        assert torch.equal(weights.layers[module].down, tensors[f"{name}.lora_down.weight"])


@pytest.mark.heavy
def test_an_extracted_adapter_of_every_layer_draws_as_the_model_that_it_was_extracted_from(
    model: Components, targets: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    # As ComfyUI's node writes it: no alpha, all layers under its own names, those of attention fused.
    weights = beside(model, seed=1, only=("",), rank=4, alpha=4)
    tensors: dict[str, Tensor] = {}
    fused: dict[str, list[tuple[int, str]]] = {}
    for key, (own, first, _) in comfyui_keys(double=2, single=4, beside=True):
        module = key.removeprefix("transformer.").replace("time_text_embed", "time_embed")
        fused.setdefault(own.removesuffix(".weight"), []).append((first, module))
    for own, parts in fused.items():
        layers = [weights.layers[module] for _, module in sorted(parts)]
        up = torch.block_diag(*(layer.up for layer in layers))
        tensors[f"{own}.lora_up.weight"] = swapped(up) if "adaLN" in own else up
        tensors[f"{own}.lora_down.weight"] = torch.cat([layer.down for layer in layers])
    back = imported(tensors, targets, tmp_path)
    assert (back.origin, back.has_alpha, len(back.weights.layers)) == ("comfyui", False, len(targets))
    for name, update in updates(weights).items():
        torch.testing.assert_close(updates(back.weights)[name], update, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("format_", [name for name in WRITERS if name != "lycoris"])  # which holds LoKr and LoHa alone
def test_layers_beside_the_blocks_are_given_back(
    model: Components, targets: dict[str, tuple[int, int]], tmp_path: Path, format_: str
) -> None:
    weights = beside(model, seed=1, only=("",), rank=4, alpha=6)
    WRITERS[format_](weights, tmp_path / "a.safetensors")
    again = read_foreign(tmp_path / "a.safetensors", targets).weights
    assert again.alpha == 6
    assert again.layers.keys() == weights.layers.keys()
    assert all(torch.equal(again.layers[name].up, layer.up) for name, layer in weights.layers.items())


def test_diffusers_draws_with_all_layers_of_an_export(model: Components, tmp_path: Path) -> None:
    weights = beside(model, seed=1, only=("",), rank=4, alpha=6)
    WRITERS["diffusers"](weights, tmp_path / "a.safetensors")
    theirs, merged = copy.deepcopy(model.transformer), copy.deepcopy(model.transformer)
    theirs.load_lora_adapter(tmp_path, weight_name="a.safetensors", prefix="transformer")
    for name, update in updates(weights).items():
        merged.get_submodule(name).weight.data += update.float()
    torch.testing.assert_close(forward(theirs), forward(merged), rtol=1e-5, atol=1e-5)


def test_a_comfyui_export_of_all_layers_maps_onto_the_keys_that_comfyui_reads(
    model: Components, tmp_path: Path
) -> None:
    weights = beside(model, seed=1, only=("",), rank=4, alpha=6)
    write_comfyui(weights, tmp_path / "a.safetensors")
    theirs = comfyui_updates(
        load_file(tmp_path / "a.safetensors"), hidden=256, blocks={"double": 2, "single": 4}, beside=True
    )
    update = updates(weights)
    for own, module in (
        ("time_in.in_layer", "time_embed.timestep_embedder.linear_1"),
        ("double_blocks.1.txt_mod.lin", "transformer_blocks.1.norm1_context.linear"),
        ("img_in", "x_embedder"),
        ("final_layer.linear", "proj_out"),
    ):
        torch.testing.assert_close(theirs[f"diffusion_model.{own}.weight"], update[module])
    assert len(theirs) == 2 * 8 + 2 * 2 + 4 * 3 + 6


def test_the_command_publishes_them(model: Components, tmp_path: Path) -> None:
    tensors = layers_of({f"diffusion_model.{name}": widths for name, (_, widths) in BESIDE.items()})
    save_file(tensors, tmp_path / "a.safetensors")
    storage = (tmp_path / "storage").as_uri()
    result = CliRunner().invoke(
        adapters, ["import", str(tmp_path / "a.safetensors"), "--name", "beside", "--storage", storage]
    )
    assert result.exit_code == 0, result.output
    assert "beside@1: comfyui format, 9 modules, rank 4, alpha 4" in result.output


def test_dora_over_the_output_axis_is_that_of_peft(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    names = {"diffusion_model.double_blocks.1.img_attn.qkv": (256, 768), "diffusion_model.img_in": (64, 256)}
    scales = {name: torch.rand(width, 1) + 0.5 for name, (_, width) in names.items()}
    tensors = layers_of(names) | {f"{name}.dora_scale": scale for name, scale in scales.items()}
    layers = imported(tensors, targets, tmp_path).weights.layers
    assert torch.equal(layers["x_embedder"].magnitude, scales["diffusion_model.img_in"].flatten())
    parts = [layers[f"transformer_blocks.1.attn.to_{x}"].magnitude for x in "qkv"]
    assert torch.equal(torch.cat(parts), scales["diffusion_model.double_blocks.1.img_attn.qkv"].flatten())
