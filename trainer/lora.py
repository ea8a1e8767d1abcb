"""The adapter while it is trained: PEFT's LoRA layers inside the frozen transformer, and their weights for publishing.

PEFT computes the norms of DoRA from a matrix of the weight's size, made anew in every forward, and in the compute type,
where they lose digits that the service has. ``Magnitude`` takes its place in PEFT's layers: the same numbers from vectors
(``longcat.dora``), as the service computes them.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import Tensor, nn

from longcat.dora import RowNorms, plain_weight, row_norms
from longcat.errors import ConfigError
from longcat.lora import LoraLayer, LoraWeights, check_lora, load_lora, lora_targets
from trainer.config import TrainConfig
from trainer.forward import slim
from trainer.randomness import derive
from trainer.targets import endings_of, ends

ADAPTER = "default"


class Magnitude(nn.Module):
    """The DoRA of one layer; stands for PEFT's ``DoraLinearLayer``, whose place and signature it has."""

    base_norms: Tensor
    """||W||^2 of the frozen weight, (out,) in float32."""

    def __init__(self, layer: PeftLayer) -> None:
        """Starts where rows are as long as they are."""
        super().__init__()
        base, lora_A = layer.get_base_layer(), layer.lora_A[ADAPTER]
        self.register_buffer("base_norms", plain_weight(base).square().sum(1), persistent=False)
        norms = self._norms(base, lora_A, layer.lora_B[ADAPTER])
        self.weight = nn.Parameter(norms.at(layer.scaling[ADAPTER]))

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: Any,
        lora_B: Any,
        scaling: float,
        base_layer: Any,
        base_result: Tensor | None = None,
        adapter_name: str = ADAPTER,  # noqa: ARG002
    ) -> Tensor:
        """What is to be added to the layer's result. ``base_result`` is None if ``x`` was dropped out, and made from it."""
        gain = self.weight / self._norms(base_layer, lora_A, lora_B).at(scaling)
        if base_result is None:
            base_result = base_layer(x)
        bias: Tensor = base_layer.bias
        updated: Tensor = (gain - 1) * (base_result - bias) + gain * lora_B(lora_A(x)) * scaling
        return updated

    @torch.no_grad()
    def _norms(self, base_layer: Any, lora_A: Any, lora_B: Any) -> RowNorms:
        """W A^T by the layer itself: a quantized weight is never whole in memory."""
        down: Tensor = lora_A.weight
        up: Tensor = lora_B.weight
        bias: Tensor = base_layer.bias  # every layer of this transformer has one
        projected = base_layer(down.to(bias.dtype)) - bias
        with torch.autocast(down.device.type, enabled=False):
            return row_norms(self.base_norms, projected.float().T, down.float(), up.float())


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
    wanted = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=modules,
        init_lora_weights="gaussian" if config.lora_init_type == "gaussian" else True,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )
    with warnings.catch_warnings():
        # Of a torchao base, for every layer. Nothing is merged here.
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without", category=UserWarning)
        transformer.add_adapter(wanted, adapter_name=ADAPTER)
    if config.use_dora:
        for _, layer in lora_layers(transformer):
            layer.lora_magnitude_vector[ADAPTER] = Magnitude(layer)
    slim(transformer)
    parameters = [
        parameter for _, layer in lora_layers(transformer) for parameter in _parts(layer) if parameter is not None
    ]
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
        down, up, magnitude = _parts(layer)
        layers[name] = LoraLayer(_copy(down), _copy(up), None if magnitude is None else _copy(magnitude))
        alpha = layer.scaling[ADAPTER] * layer.r[ADAPTER]
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
        if (there.magnitude is not None) != bool(layer.lora_magnitude_vector):
            raise ConfigError(
                f"{source}: it {'uses' if there.magnitude is not None else 'does not use'} DoRA; set use_dora to "
                f"{str(there.magnitude is not None).lower()}"
            )
        for parameter, value in zip(_parts(layer), (there.down, there.up, there.magnitude), strict=True):
            if parameter is not None and value is not None:
                parameter.copy_(value)


def _parts(layer: PeftLayer) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
    """A, B and, with DoRA, the magnitude."""
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight if layer.lora_magnitude_vector else None
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, magnitude


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().float().cpu().clone()
