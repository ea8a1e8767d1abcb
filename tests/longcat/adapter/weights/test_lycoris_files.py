"""Files with LoKr and LoHa: those that are refused, and those of other programs in and out."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from lycoris import create_lycoris_from_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat.adapter.export import WRITERS
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import adaptable_modules, linear_modules, lora_targets
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lycoris import LohaLayer, LokrLayer
from longcat.errors import AdapterError
from longcat.model.loading import Components
from tests.longcat.adapter.weights.lycoris_networks import TOLERANCE
from tests.longcat.adapter.weights.test_dora import velocity
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_slots import random_lora


def spoiled(file: Path, change: str, tmp_path: Path) -> Path:
    """Return a copy of a LoKr's file with one defect."""
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith(".lokr_w1")).removesuffix(".lokr_w1")
    w1, w2 = tensors[f"{name}.lokr_w1"], tensors[f"{name}.lokr_w2"]
    match change:
        case "missing":
            del tensors[f"{name}.lokr_w2"]
        case "both":
            tensors[f"{name}.lora_down.weight"] = torch.zeros(4, 256)
        case "tucker":
            tensors[f"{name}.lokr_t2"] = torch.zeros(4, 4, 3, 3)
        case "dora":
            tensors[f"{name}.dora_scale"] = torch.ones(256, 1)
        case "wider":
            tensors[f"{name}.lokr_w2"] = torch.cat([w2, w2])
        case "vector":
            tensors[f"{name}.lokr_w1"] = w1[0]
        case "nan":
            tensors[f"{name}.lokr_w2"] = w2 * float("nan")
        case "integers":
            tensors[f"{name}.lokr_w1"] = w1.int()
        case "inner":
            tensors[f"{name}.lokr_w2_a"], tensors[f"{name}.lokr_w2_b"] = w2[:, :3].clone(), w2[:4].clone()
            del tensors[f"{name}.lokr_w2"]
    save_file(tensors, tmp_path / "spoiled.safetensors")
    return tmp_path / "spoiled.safetensors"


@pytest.mark.parametrize("written", ["lokr whole"], indirect=True)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("missing", "neither a whole LoKr nor a whole LoHa"), ("both", "neither a whole LoKr nor a whole LoHa"),
        ("tucker", "LoKr on convolutions"), ("dora", "DoRA"), ("wider", "lokr has shape"), ("vector", "have no product"),
        ("nan", "not finite"), ("integers", "int32, not floating-point"), ("inner", "have no product"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_by_name(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], change: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=problem):
        read_foreign(spoiled(written[0], change, tmp_path), lora_targets(model.transformer))


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "lycoris_"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_matrices_of_a_norm_are_refused_by_name(model: Components, prefix: str, kind: str, tmp_path: Path) -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "lora": {"lora_A.weight": (4, 64), "lora_B.weight": (64, 4)},
        "loha": {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64), "alpha": ()},
        "lokr": {"lokr_w1": (8, 8), "lokr_w2": (8, 8)},
    }
    module = "transformer_blocks.0.attn.norm_q"
    name = f"{prefix}{module.replace('.', '_') if prefix.endswith('_') else module}"
    save_file({f"{name}.{end}": torch.ones(shape) for end, shape in shapes[kind].items()}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=rf"{module} has a {kind}, and is a norm"):
        read_foreign(tmp_path / "a.safetensors", adaptable_modules(model.transformer))


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "lora_unet_", "lycoris_"])
def test_fused_attention_is_split_by_rows(model: Components, prefix: str, tmp_path: Path) -> None:
    name = f"{prefix}double_blocks.0.img_attn.qkv"
    if prefix.endswith("_"):
        name = prefix + "double_blocks_0_img_attn_qkv"
    loha = {
        f"hada_w{i}_{part}": torch.randn(shape) for i in (1, 2) for part, shape in (("a", (768, 4)), ("b", (4, 256)))
    }
    lokr = {"lokr_w1": torch.randn(6, 4), "lokr_w2_a": torch.randn(128, 2), "lokr_w2_b": torch.randn(2, 64)}
    for tensors in (loha, lokr):
        file = tmp_path / "fused.safetensors"
        save_file(
            {f"{name}.{key}": tensor for key, tensor in tensors.items()} | {f"{name}.alpha": torch.tensor(2.0)}, file
        )
        weights = read_foreign(file, linear_modules(model.transformer)).weights
        parts = [weights.layers[f"transformer_blocks.0.attn.{part}"].delta() for part in ("to_q", "to_k", "to_v")]
        whole = (
            LohaLayer(*loha.values(), scale=0.5)
            if tensors is loha
            else LokrLayer((lokr["lokr_w1"],), (lokr["lokr_w2_a"], lokr["lokr_w2_b"]), scale=1.0)
        )
        torch.testing.assert_close(torch.cat(parts), whole.delta())
        save_lora(weights, tmp_path / "saved.safetensors")  # parts of one tensor would not be written
    lokr["lokr_w1"], lokr["lokr_w2_a"] = torch.randn(4, 4), torch.randn(192, 2)
    save_file({f"{name}.{key}": tensor for key, tensor in lokr.items()} | {f"{name}.alpha": torch.tensor(2.0)}, file)
    with pytest.raises(AdapterError, match="does not split"):
        read_foreign(file, linear_modules(model.transformer))


def test_a_file_as_simpletuner_writes_it(model: Components, tmp_path: Path) -> None:
    """LyCORIS writes bfloat16, the alpha 10000 rounded to 9984, and SimpleTuner its configuration in the header."""
    name = "lycoris_transformer_blocks_0_ff_net_0_proj"
    w1, w2 = torch.randn(4, 4).bfloat16(), torch.randn(256, 64).bfloat16()
    tensors = {f"{name}.lokr_w1": w1, f"{name}.lokr_w2": w2, f"{name}.alpha": torch.tensor(1e4).bfloat16()}
    config = '{"algo": "lokr", "factor": 4, "apply_preset": {"target_module": ["Attention", "FeedForward"]}}'
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lycoris_config": config})
    foreign = read_foreign(tmp_path / "a.safetensors", linear_modules(model.transformer))
    layer = foreign.weights.layers["transformer_blocks.0.ff.net.0.proj"]
    assert (foreign.origin, foreign.has_alpha, layer.kind) == ("lycoris", True, "lokr")
    torch.testing.assert_close(layer.delta(), torch.kron(w1.float(), w2.float()))


@pytest.mark.heavy
@pytest.mark.parametrize("format_", ["comfyui", "lycoris"])
def test_an_export_is_read_back_and_by_the_package(
    model: Components,
    written: tuple[Path, Mapping[float, Tensor]],
    format_: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    weights = read_foreign(written[0], linear_modules(model.transformer)).weights
    out = tmp_path / "out.safetensors"
    WRITERS[format_](weights, out)
    again = read_foreign(out, linear_modules(model.transformer)).weights
    for name, layer in weights.layers.items():
        assert torch.equal(again.layers[name].delta(), layer.delta()), name
    if format_ == "lycoris" and "unbalanced" not in request.node.name:  # whose files the package itself cannot read
        transformer = copy.deepcopy(model.transformer)
        with torch.no_grad():
            network, _ = create_lycoris_from_weights(1.0, str(out), transformer)
        network.apply_to()
        read = velocity(transformer, encode(model, "一个红苹果"))
        torch.testing.assert_close(read, written[1][1.0], rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(AdapterError, match="diffusers does not read"):
        WRITERS["diffusers"](weights, out)
    with pytest.raises(AdapterError, match="another kind"):
        WRITERS["lycoris"](random_lora(lora_targets(model.transformer), seed=1), out)


def test_a_version_file_is_imported_as_it_was(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], tmp_path: Path
) -> None:
    weights = read_foreign(written[0], linear_modules(model.transformer)).weights
    save_lora(weights, tmp_path / "a.safetensors")
    again = read_foreign(tmp_path / "a.safetensors", linear_modules(model.transformer)).weights
    assert all(torch.equal(again.layers[name].delta(), layer.delta()) for name, layer in weights.layers.items())
