"""LoRA files of other programs: read as those programs apply them, or rejected; exports that they can read."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LongCatImageTransformer2DModel
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longcat.adapter.foreign.module_names import module_names
from longcat.adapter.foreign.reading import Foreign, flavour_targets, read_foreign
from longcat.adapter.modules import adaptable_modules, linear_modules
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import FlavourError
from longcat.model.loading import Components

CONFIGS = {
    "the official trainer's": LoraConfig(
        r=4,
        init_lora_weights="gaussian",
        target_modules=["attn.to_q", "attn.to_out.0", "attn.add_k_proj", "ff.net.0.proj", "ff_context.net.2"],
    ),
    "alpha = rank": LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]),
    "rsLoRA": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["to_q", "proj_mlp"]),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=["to_q", "to_k", "proj_mlp"],
        rank_pattern={r"^single_transformer_blocks\.\d+\.attn\.to_q": 6, "attn.to_k": 2},
        alpha_pattern={"transformer_blocks.0.attn.to_q": 5, "proj_mlp": 8},
    ),
    "patterns and rsLoRA": LoraConfig(
        r=2, lora_alpha=3, use_rslora=True, target_modules=["to_q", "to_k"], rank_pattern={"to_k": 5}
    ),
}


def forward(transformer: nn.Module) -> Tensor:
    """Compute in double precision, so that any difference is an error, not rounding."""
    transformer = copy.deepcopy(transformer).double()
    generator = torch.Generator().manual_seed(5)
    side, tokens = 6, 8
    along = torch.arange(side).float()
    text_ids = torch.arange(tokens).unsqueeze(-1).repeat(1, 3).float()
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, side * side, 64, generator=generator).double(),
            encoder_hidden_states=torch.randn(1, tokens, 256, generator=generator).double(),
            timestep=torch.tensor([0.6]),
            img_ids=torch.cartesian_prod(torch.ones(1), along, along),
            txt_ids=text_ids,
            return_dict=False,
        )[0]


def adapted(model: Components, weights: LoraWeights) -> LongCatImageTransformer2DModel:
    """Return the transformer with the update added to its weights."""
    merged = copy.deepcopy(model.transformer)
    for name, update in updates(weights).items():
        merged.get_submodule(name).weight.data += update.float()
    return merged


def updates(weights: LoraWeights) -> dict[str, Tensor]:
    scale = weights.alpha / weights.rank
    return {name: layer.up.double() @ layer.down.double() * scale for name, layer in weights.layers.items()}


def trained(model: nn.Module, *, size: float = 0.03) -> None:
    """Fill B, which starts at zero, with numbers of that standard deviation, as training would."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * size


@pytest.mark.heavy
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("form", ["diffusers", "diffusers with prefix", "official"])
def test_peft_and_its_imported_file_draw_the_same(
    model: Components, targets: dict[str, tuple[int, int]], config: LoraConfig, form: str, tmp_path: Path
) -> None:
    config = copy.deepcopy(config)
    transformer = copy.deepcopy(model.transformer)
    if form == "official":
        tuned = get_peft_model(transformer, config)
        trained(tuned)
        tuned.save_pretrained(tmp_path)
    else:
        tuned = transformer
        tuned.add_adapter(config)
        trained(tuned)
        tuned.save_lora_adapter(tmp_path)
        if form == "diffusers with prefix":  # as saved by a pipeline, and by SimpleTuner
            file = tmp_path / "pytorch_lora_weights.safetensors"
            metadata = {f"transformer.{key}": value for key, value in json.loads(header(file)).items()}
            rewrite(file, {f"transformer.{key}": value for key, value in load_file(file).items()}, json.dumps(metadata))
    foreign = read_foreign(tmp_path, targets)
    assert (foreign.origin, foreign.has_alpha) == (form.split(" ")[0], True)
    expected = forward(tuned)
    torch.testing.assert_close(forward(adapted(model, foreign.weights)), expected, rtol=1e-5, atol=1e-5)
    assert (expected - forward(model.transformer)).abs().max() > 0.01
    if not (config.rank_pattern or config.alpha_pattern):  # nothing to make equal: the tensors are the file's own
        assert foreign.weights.alpha == pytest.approx(config.lora_alpha * (config.r**0.5 if config.use_rslora else 1))
        ups = {f"{name}.lora_B.weight": layer.up for name, layer in foreign.weights.layers.items()}
        stored = load_file(next(tmp_path.glob("*.safetensors")))
        assert all(
            any(torch.equal(stored[key], up) for key in stored if key.endswith(name)) for name, up in ups.items()
        )


def header(file: Path) -> str:
    with safe_open(file, framework="pt") as stream:
        return stream.metadata()["lora_adapter_metadata"]


def rewrite(file: Path, tensors: dict[str, Tensor], metadata: str) -> None:
    save_file(tensors, file, metadata={"format": "pt", "lora_adapter_metadata": metadata})


def layers_of(
    names: dict[str, tuple[int, int]], *, rank: int = 4, down: str = "lora_A", up: str = "lora_B"
) -> dict[str, Tensor]:
    """Return a file's tensors: a down and an up for each name with its (in, out) widths."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (width_in, width_out) in names.items():
        tensors[f"{name}.{down}.weight"] = torch.randn(rank, width_in, generator=generator) * 0.05
        tensors[f"{name}.{up}.weight"] = torch.randn(width_out, rank, generator=generator) * 0.05
    return tensors


Q = "transformer_blocks.0.attn.to_q"
PLAIN = {Q: (256, 256), "single_transformer_blocks.3.proj_out": (1280, 256)}
PREFIXED = {f"transformer.{name}": widths for name, widths in PLAIN.items()}


@pytest.mark.parametrize(
    ("prefix", "down", "up", "dotted", "origin"),
    [
        ("transformer.", "lora_A", "lora_B", True, "diffusers"),
        ("transformer.", "lora_A.default", "lora_B.default", True, "diffusers"),
        ("transformer.", "lora.down", "lora.up", True, "diffusers"),
        ("", "lora_A", "lora_B", True, "diffusers"),
        ("diffusion_model.", "lora_A", "lora_B", True, "comfyui"),
        ("model.diffusion_model.", "lora_down", "lora_up", True, "comfyui"),
        ("lora_unet_", "lora_down", "lora_up", False, "kohya"),
        ("lora_transformer_", "lora_down", "lora_up", False, "onetrainer"),
        ("lycoris_", "lora_down", "lora_up", False, "lycoris"),
    ],
)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_names_and_alphas_are_read_in_every_form(
    targets: dict[str, tuple[int, int]], tmp_path: Path, prefix: str, down: str, up: str, dotted: bool, origin: str,
    alpha: float | None,
) -> None:  # fmt: skip
    named = {prefix + (name if dotted else name.replace(".", "_")): widths for name, widths in PLAIN.items()}
    tensors = layers_of(named, down=down, up=up)
    alphas = {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha) for name in named}
    foreign = imported(tensors | alphas, targets, tmp_path)
    # diffusers itself writes no alpha tensors; files with its names and alpha tensors are for ComfyUI.
    assert foreign.origin == ("comfyui" if alpha and origin == "diffusers" else origin)
    assert foreign.weights.alpha == (alpha or 4)  # else the rank
    assert foreign.has_alpha == (alpha is not None)
    for name, source in zip(PLAIN, named, strict=True):
        assert torch.equal(foreign.weights.layers[name].down, tensors[f"{source}.{down}.weight"])
        assert torch.equal(foreign.weights.layers[name].up, tensors[f"{source}.{up}.weight"])


def imported(tensors: dict[str, Tensor], targets: dict[str, tuple[int, int]], folder: Path) -> Foreign:
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    return read_foreign(folder / "a.safetensors", targets)


FUSED = {
    "double_blocks.1.img_attn.qkv": ((256, 768), [f"transformer_blocks.1.attn.to_{x}" for x in "qkv"]),
    "double_blocks.1.txt_attn.qkv": ((256, 768), [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"]),
    "double_blocks.1.img_attn.proj": ((256, 256), ["transformer_blocks.1.attn.to_out.0"]),
    "double_blocks.1.txt_attn.proj": ((256, 256), ["transformer_blocks.1.attn.to_add_out"]),
    "double_blocks.1.img_mlp.0": ((256, 1024), ["transformer_blocks.1.ff.net.0.proj"]),
    "double_blocks.1.img_mlp.2": ((1024, 256), ["transformer_blocks.1.ff.net.2"]),
    "double_blocks.1.txt_mlp.0": ((256, 1024), ["transformer_blocks.1.ff_context.net.0.proj"]),
    "double_blocks.1.txt_mlp.2": ((1024, 256), ["transformer_blocks.1.ff_context.net.2"]),
    "single_blocks.2.linear1": (
        (256, 1792),
        [*(f"single_transformer_blocks.2.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.2.proj_mlp"],
    ),
    "single_blocks.2.linear2": ((1280, 256), ["single_transformer_blocks.2.proj_out"]),
    "single_blocks.3.linear1_qkv": ((256, 768), [f"single_transformer_blocks.3.attn.to_{x}" for x in "qkv"]),
}


@pytest.mark.parametrize("style", ["comfyui", "kohya"])
def test_fused_layers_of_flux_are_split_exactly(
    targets: dict[str, tuple[int, int]], tmp_path: Path, style: str
) -> None:
    def named(name: str) -> str:
        return f"diffusion_model.{name}" if style == "comfyui" else f"lora_unet_{name.replace('.', '_')}"

    tensors = layers_of({named(name): widths for name, (widths, _) in FUSED.items()}, down="lora_down", up="lora_up")
    alphas = {f"{named(name)}.alpha": torch.tensor(6.0) for name in FUSED}
    foreign = imported(tensors | alphas, targets, tmp_path)
    assert foreign.origin == style
    assert sorted(foreign.weights.layers) == sorted(module for _, modules in FUSED.values() for module in modules)
    ours = updates(foreign.weights)
    for name, (_, modules) in FUSED.items():
        up, down = tensors[f"{named(name)}.lora_up.weight"], tensors[f"{named(name)}.lora_down.weight"]
        assert torch.equal(torch.cat([foreign.weights.layers[module].up for module in modules]), up)
        whole = torch.cat([ours[module] for module in modules])
        torch.testing.assert_close(whole, up.double() @ down.double() * 6 / 4, rtol=0, atol=1e-12)
    save_lora(foreign.weights, tmp_path / "out.safetensors")  # parts share no memory, which the format forbids


def test_layers_of_their_own_scale_and_rank_get_one_alpha_without_changing(
    targets: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    names = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    for alphas, dtypes in (
        ((2, 4, 2), {torch.float16}),  # scales 1, 1, 0.5: a power of two is exact in any float
        ((2, 4, 3), {torch.float16, torch.float32}),  # 0.75 is not
    ):
        tensors = layers_of({names[0]: (256, 256)}, rank=2) | layers_of(dict.fromkeys(names[1:], (256, 256)))
        tensors = {key: value.half() for key, value in tensors.items()}
        keyed = {f"{name}.alpha": torch.tensor(float(alpha)) for name, alpha in zip(names, alphas, strict=True)}
        weights = imported(tensors | keyed, targets, tmp_path).weights
        assert (weights.alpha, weights.rank) == (4.0, 4)
        assert {layer.up.dtype for layer in weights.layers.values()} == dtypes
        assert {layer.down.dtype for layer in weights.layers.values()} == {torch.float16}
        for name, alpha in zip(names, alphas, strict=True):
            up, down = tensors[f"{name}.lora_B.weight"].double(), tensors[f"{name}.lora_A.weight"].double()
            torch.testing.assert_close(updates(weights)[name], up @ down * alpha / len(down), rtol=1e-6, atol=1e-9)


def test_eight_bit_floats_are_read(targets: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    small = {f"transformer.{key}": value.to(torch.float8_e4m3fn) for key, value in layers_of(PLAIN).items()}
    weights = imported(small, targets, tmp_path).weights
    assert weights.layers[Q].up.dtype == torch.bfloat16
    assert torch.equal(weights.layers[Q].up.float(), small[f"transformer.{Q}.lora_B.weight"].float())


def test_no_two_modules_of_the_real_model_share_a_name() -> None:
    with torch.device("meta"):
        targets = linear_modules(LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20))
    assert len(targets) == 10 * (12 + 2) + 20 * (5 + 1) + 6
    names = module_names(targets)
    # For each block its modules, the fused ones and those with other names; each with dots and with underscores.
    blocks = 2 * (10 * (12 + 8 + 2 + 2) + 20 * (5 + 3 + 1 + 1))
    assert len(names) == blocks + 14 + 9  # five of the names beside the blocks, such as img_in, have no dots
    assert {module for parts in names.values() for module in parts} == set(targets)


def test_targets_follow_from_the_configuration_alone(model: Components, tmp_path: Path) -> None:
    assert flavour_targets(model.flavour) == adaptable_modules(model.transformer)
    with pytest.raises(FlavourError, match=r"config\.json cannot be read"):
        flavour_targets(replace(model.flavour, folder=tmp_path))
