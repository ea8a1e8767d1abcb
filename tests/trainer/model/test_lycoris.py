"""LoKr and LoHa in training, against the ``lycoris-lora`` package: the same layers, sizes, forwards and steps."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LongCatImageTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from torch import nn

from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import linear_modules, lora_targets
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError, ConfigError
from longcat.model.loading import Components
from tests.longcat.adapter.weights.test_dora import velocity
from tests.longcat.sampling.test_denoise import encode
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.config.simpletuner.lycoris_layer import factorization
from trainer.model.base import without_adapter
from trainer.model.lora import LoraSettings, adapter_layers, inject, load_weights, weights_of
from trainer.model.lycoris import slot_rank

BLOCKS = ["LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"]
CONFIGS: dict[str, dict[str, Any]] = {
    # SimpleTuner's own example for this family: the whole transformer, with its modulations and embedders.
    "simpletuner": {
        "bypass_mode": True, "algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_dim": 10000, "linear_alpha": 1,
        "factor": 16, "apply_preset": {
            "target_module": ["LongCatImageTransformer2DModel"],
            "module_algo_map": {"LongCatImageTransformer2DModel": {"factor": 16}},
        },
    },
    "documented": {
        "algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 10, "apply_preset": {
            "target_module": ["Attention", "FeedForward"],
            "module_algo_map": {"Attention": {"factor": 10}, "FeedForward": {"factor": 4}},
        },
    },
    "low rank": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 8, "apply_preset": {"target_module": BLOCKS}},
    "both low": {
        "algo": "lokr", "linear_dim": 3, "linear_alpha": 6, "decompose_both": True,
        "unbalanced_factorization": True, "apply_preset": {"target_module": ["LongCatImageAttention"]},
    },
    "loha": {"algo": "loha", "linear_dim": 4, "linear_alpha": 2, "apply_preset": {"target_module": BLOCKS}},
    "high rank": {"algo": "loha", "linear_dim": 40, "apply_preset": {"target_module": ["LongCatImageAttention"]}},
    "mixed": {
        "algo": "lokr", "linear_dim": 10000, "factor": 16, "apply_preset": {
            "target_module": ["LongCatImageSingleTransformerBlock", "FeedForward"],
            "module_algo_map": {
                "LongCatImageAttention": {"algo": "loha", "dim": 3, "alpha": 6}, "FeedForward": {"factor": 4, "dim": 8},
            },
            "exclude_name": [r".*\.ff_context", r".*blocks\.1\.proj_mlp"],
        },
    },
    "by names": {
        "algo": "loha", "linear_dim": 2, "apply_preset": {
            "target_module": [], "target_name": [r"transformer_blocks\.0\.attn\.to_[qk]$"],
            "name_algo_map": {r"single_transformer_blocks\.\d+\.proj_out": {"algo": "lokr", "factor": 4}},
        },
    },
    "by patterns": {
        "algo": "lokr", "factor": 8,
        "apply_preset": {"target_module": [], "target_name": ["*.to_q", "*ff.net.2"], "use_fnmatch": True},
    },
}  # fmt: skip
EMPTY = {
    "target_module": [], "target_name": [], "module_algo_map": {}, "name_algo_map": {}, "exclude_name": [],
    "use_fnmatch": False,
}  # fmt: skip


def settings(lycoris: dict[str, Any], **changes: object) -> LoraSettings:
    options = {"model_flavour": "embedded", "lora_type": "lycoris", "lycoris_config": lycoris}
    return select(TrainConfig.model_validate({**options, **changes}), LoraSettings)


def package(transformer: nn.Module, config: dict[str, Any]) -> LycorisNetwork:
    """Return the real package's network, made as by SimpleTuner."""
    options = {name: value for name, value in config.items() if name not in ("apply_preset", "multiplier")}
    LycorisNetwork.apply_preset({**EMPTY, **config["apply_preset"]})
    network = create_lycoris(transformer, config.get("multiplier", 1.0), **options)
    network.apply_to()
    return network


def by_layer(network: LycorisNetwork, transformer: nn.Module) -> dict[str, nn.Module]:
    """Return a network's modules by the names of the layers around which they are."""
    names = {"lycoris_" + name.replace(".", "_"): name for name in linear_modules(transformer)}
    return {names[lora.lora_name]: lora for lora in network.loras}


@pytest.fixture
def transformer(model: Components) -> LongCatImageTransformer2DModel:
    return copy.deepcopy(model.transformer)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_and_sizes_are_those_of_the_package(
    model: Components, transformer: LongCatImageTransformer2DModel, name: str
) -> None:
    parameters = inject(transformer, settings(CONFIGS[name]))
    reference = copy.deepcopy(model.transformer)
    expected = by_layer(package(reference, CONFIGS[name]), reference)
    weights = weights_of(transformer)
    assert weights.layers.keys() == expected.keys()
    for module, layer in weights.layers.items():
        shapes = {end: tuple(tensor.shape) for end, tensor in layer.tensors().items() if end != "alpha"}
        theirs = {end: tuple(tensor.shape) for end, tensor in expected[module].named_parameters()}
        assert shapes == theirs, module
        assert layer.scale == pytest.approx(expected[module].scale), module
        assert not layer.delta().any()  # it starts from the base
    assert {p for p in transformer.parameters() if p.requires_grad} == set(parameters)
    lycoris = settings(CONFIGS[name]).lycoris_config
    assert lycoris is not None
    assert weights.rank == slot_rank(model.transformer, lycoris)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["simpletuner", "low rank", "both low", "loha", "high rank", "mixed"])
def test_steps_and_their_export_are_those_of_the_package(
    model: Components, transformer: LongCatImageTransformer2DModel, name: str, tmp_path: Path
) -> None:
    inject(transformer, settings(CONFIGS[name]))
    reference = copy.deepcopy(model.transformer).requires_grad_(False)
    network = package(reference, CONFIGS[name])
    theirs = by_layer(network, reference)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for module, layer in adapter_layers(transformer):
            for end, factor in layer.factors.items():
                factor.copy_(torch.randn(factor.shape, generator=generator) * (0.02 if "w2" in end else 0.5))
                dict(theirs[module].named_parameters())[end].copy_(factor)
    embeds, target = encode(model, "一个红苹果"), torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(1))
    ours_parameters = [p for p in transformer.parameters() if p.requires_grad]
    their_parameters = [p for lora in theirs.values() for p in lora.parameters()]
    for root, parameters in ((transformer, ours_parameters), (reference, their_parameters)):
        optimizer = torch.optim.SGD(parameters, lr=1e-2)
        for _ in range(3):
            loss = (velocity(root, embeds, grad=True) - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    weights = weights_of(transformer)
    for module, layer in weights.layers.items():
        expected = {end: tensor for end, tensor in theirs[module].state_dict().items() if end != "alpha"}
        for end, tensor in expected.items():
            torch.testing.assert_close(layer.tensors()[end], tensor, rtol=1e-5, atol=1e-5, msg=f"{module} {end}")
    torch.testing.assert_close(velocity(transformer, embeds), velocity(reference, embeds), rtol=1e-5, atol=1e-5)
    save_lora(weights, tmp_path / "a.safetensors")
    again = load_lora(tmp_path / "a.safetensors")
    assert all(torch.equal(again.layers[module].delta(), layer.delta()) for module, layer in weights.layers.items())


def test_the_base_alone_computes_while_the_adapter_is_off(
    model: Components, transformer: LongCatImageTransformer2DModel
) -> None:
    parameters = inject(transformer, settings(CONFIGS["loha"]))
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3)
    embeds = encode(model, "一只猫")
    base = velocity(model.transformer, embeds)
    assert (velocity(transformer, embeds) - base).abs().max() > 0.01
    with without_adapter(transformer):
        torch.testing.assert_close(velocity(transformer, embeds), base, rtol=1e-5, atol=1e-5)
    assert (velocity(transformer, embeds) - base).abs().max() > 0.01


def randomized(transformer: LongCatImageTransformer2DModel, config: dict[str, Any]) -> LoraWeights:
    for parameter in inject(transformer, settings(config)):
        torch.nn.init.normal_(parameter)
    return weights_of(transformer)


def test_a_training_starts_from_a_file_of_the_same_configuration_alone(model: Components, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    weights = randomized(copy.deepcopy(model.transformer), CONFIGS["low rank"])
    save_lora(weights, file)
    again = copy.deepcopy(model.transformer)
    inject(again, settings(CONFIGS["low rank"], init_lora=file))
    for module, layer in weights_of(again).layers.items():
        for end, tensor in layer.tensors().items():
            assert torch.equal(tensor, weights.layers[module].tensors()[end])
    with pytest.raises(ConfigError, match=r"lycoris_config gives lokr_w1 .* at scale 2"):
        inject(copy.deepcopy(model.transformer), settings({**CONFIGS["low rank"], "linear_alpha": 8}, init_lora=file))
    with pytest.raises(AdapterError, match="modules do not exist"):
        inject(copy.deepcopy(model.transformer), settings(CONFIGS["by patterns"], init_lora=file))
    lora = TrainConfig.model_validate({"model_flavour": "embedded", "lora_targets": "all-linear", "init_lora": file})
    with pytest.raises((ConfigError, AdapterError)):
        inject(copy.deepcopy(model.transformer), select(lora, LoraSettings))
    other = copy.deepcopy(model.transformer)
    inject(other, settings(CONFIGS["loha"]))
    with pytest.raises(ConfigError, match="has lokr_w1"):
        load_weights(other, weights, field="resume_from_checkpoint", source="latest")


def test_a_loha_of_a_higher_rank_than_its_layers_is_refused(transformer: LongCatImageTransformer2DModel) -> None:
    with pytest.raises(ConfigError) as caught:
        inject(transformer, settings({"algo": "loha", "linear_dim": 2**31 - 1}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.value) == (
        "lycoris_dim_too_large", "lycoris_config.linear_dim", 2**31 - 1,
    )  # fmt: skip
    assert problem.remedy


def test_a_configuration_that_selects_nothing_is_refused(transformer: LongCatImageTransformer2DModel) -> None:
    with pytest.raises(ConfigError, match=r"Attention selects no layer .* LongCatImageAttention"):
        inject(transformer, settings({"algo": "lokr", "apply_preset": {"target_module": ["Attention"]}}))


def test_the_packages_file_is_read_into_the_same_layers(
    model: Components, transformer: LongCatImageTransformer2DModel, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    network = package(copy.deepcopy(model.transformer), CONFIGS["both low"])
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    foreign = read_foreign(tmp_path / "a.safetensors", lora_targets(model.transformer))
    inject(transformer, settings(CONFIGS["both low"]))
    load_weights(transformer, foreign.weights, field="init_lora", source="a.safetensors")


@pytest.mark.parametrize("factor", [-1, 0, 1, 2, 3, 5, 7, 10, 16, 33, 1000])
@pytest.mark.parametrize("width", [1, 12, 127, 250, 256, 360, 1024, 3072, 12288])
def test_widths_are_factorized_as_in_the_package(width: int, factor: int) -> None:
    from lycoris.functional import factorization as theirs

    assert factorization(width, factor) == theirs(width, factor)
