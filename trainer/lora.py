"""The adapter while it is trained: PEFT's LoRA layers inside the frozen transformer, and their weights for publishing."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import LongCatImageTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import Tensor, nn

from longcat.errors import ConfigError
from longcat.lora import LoraLayer, LoraWeights, check_lora, load_lora, lora_targets
from trainer.config import TrainConfig
from trainer.randomness import derive
from trainer.targets import endings_of, ends

ADAPTER = "default"


def target_modules(transformer: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that the adapter is to change. Raises ``ConfigError`` for endings that match none."""
    known, endings = lora_targets(transformer), endings_of(wanted)
    for ending in endings:
        if not any(ends(name, ending) for name in known):
            some = ", ".join(sorted({name.split(".", 2)[2] for name in known}))
            raise ConfigError(f"lora_targets: {ending!r} is the ending of no layer; there are {some}")
    return sorted(name for name in known if any(ends(name, ending) for ending in endings))


def inject(transformer: LongCatImageTransformer2DModel, config: TrainConfig) -> list[nn.Parameter]:
    """Put LoRA layers into the transformer; return what is to be trained, in float32, in a fixed order.

    Raises ``ConfigError`` or ``AdapterError`` if ``init_lora`` does not fit.
    """
    targets = lora_targets(transformer)
    modules = target_modules(transformer, config.lora_targets)
    torch.manual_seed(derive(config.seed, "lora"))
    transformer.add_adapter(
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.alpha,
            lora_dropout=config.lora_dropout,
            target_modules=modules,
            init_lora_weights="gaussian" if config.lora_init_type == "gaussian" else True,
            use_rslora=config.use_rslora,
        ),
        adapter_name=ADAPTER,
    )
    parameters = [parameter for _, layer in lora_layers(transformer) for parameter in _pair(layer)]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if config.init_lora is not None:
        start = load_lora(config.init_lora)
        check_lora(start, {name: targets[name] for name in modules}, max_rank=config.lora_rank)
        load_weights(transformer, start, config.init_lora)
    return parameters


def lora_layers(transformer: nn.Module) -> list[tuple[str, PeftLayer]]:
    """Every layer with an adapter, by the name that its base had."""
    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, PeftLayer)]


def weights_of(transformer: nn.Module) -> LoraWeights:
    """The adapter as it is now: copies in float32, in main memory. alpha / rank is the scale, also of rsLoRA."""
    layers = {}
    for name, layer in lora_layers(transformer):
        down, up = (_copy(parameter) for parameter in _pair(layer))
        layers[name] = LoraLayer(down, up)
        alpha = layer.scaling[ADAPTER] * down.shape[0]
    return LoraWeights(alpha=alpha, layers=layers)


@torch.no_grad()
def load_weights(transformer: nn.Module, weights: LoraWeights, source: Path) -> None:
    """Start from these weights. Raises ``ConfigError`` unless rank, scale and layers are the configured ones."""
    layers = dict(lora_layers(transformer))
    if layers.keys() != weights.layers.keys():
        raise ConfigError(
            f"{source}: it changes {len(weights.layers)} layers, and lora_targets name {len(layers)}: use the same"
        )
    for name, layer in layers.items():
        there = weights.layers[name]
        if there.rank != layer.r[ADAPTER] or abs(weights.alpha / there.rank - layer.scaling[ADAPTER]) > 1e-6:
            raise ConfigError(
                f"{source}: it has rank {there.rank} and alpha {weights.alpha:g}; set lora_rank and lora_alpha to them"
            )
        down, up = _pair(layer)
        down.copy_(there.down)
        up.copy_(there.up)


def _pair(layer: PeftLayer) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().float().cpu().clone()
