"""The adapter in training: PEFT's LoRA layers inside the frozen transformer, and their weights."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import Tensor, nn

from longcat.adapter.modules import linear_modules
from longcat.adapter.verification import check_lora
from longcat.adapter.weights.file import load_lora
from longcat.adapter.weights.lora import Layer, LoraLayer, LoraWeights
from longcat.errors import AdapterError, ConfigError
from trainer.config.simpletuner.lycoris import LycorisConfig
from trainer.config.targets import lora_targets
from trainer.model.forward import slim
from trainer.model.lycoris import LycorisLinear, inject_lycoris, lycoris_layers
from trainer.model.magnitude import Magnitude
from trainer.randomness import derive

ADAPTER = "default"
"""PEFT's name of the one adapter in each layer."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The options of the adapter, under their names in ``TrainConfig``."""

    lora_rank: int
    alpha: float
    lora_dropout: float
    lora_targets: str | tuple[str, ...]
    lora_init_type: str
    use_dora: bool
    use_rslora: bool
    init_lora: Path | None
    seed: int
    lycoris_config: LycorisConfig | None
    """LoKr or LoHa instead of LoRA; the options of LoRA have no effect then."""


def inject(transformer: LongCatImageTransformer2DModel, settings: LoraSettings) -> list[nn.Parameter]:
    """Put the adapter's layers into the transformer; return their parameters, in float32 and in a fixed order.

    Raises ``ConfigError`` or ``AdapterError`` if ``init_lora`` does not fit.
    """
    torch.manual_seed(derive(settings.seed, "lora"))
    if settings.lycoris_config is not None:
        inject_lycoris(transformer, settings.lycoris_config)
    else:
        _inject_lora(transformer, settings)
    slim(transformer)
    parameters = [parameter for _, layer in adapter_layers(transformer) for parameter in _parameters(layer)]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if settings.init_lora is not None:
        _start_from(transformer, settings, settings.init_lora)
    return parameters


def _inject_lora(transformer: LongCatImageTransformer2DModel, settings: LoraSettings) -> None:
    modules = lora_targets(linear_modules(transformer), settings.lora_targets)
    lora_config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="|".join(map(re.escape, modules)),  # PEFT takes a list for endings of names
        init_lora_weights="gaussian" if settings.lora_init_type == "gaussian" else True,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
    with warnings.catch_warnings():
        # PEFT warns for every layer of a torchao base that it cannot merge. Nothing is merged here.
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without", category=UserWarning)
        transformer.add_adapter(lora_config, adapter_name=ADAPTER)
    if settings.use_dora:
        for _, layer in lora_layers(transformer):
            layer.lora_magnitude_vector[ADAPTER] = Magnitude(layer, ADAPTER)
            layer.cast_input_dtype_enabled = False  # the magnitude casts the adapter to the base's type instead


def check_init_lora(path: Path | None) -> None:
    """Check that the file to start from is there and is an adapter, before anything is loaded. Raises ``AdapterError``."""
    if path is not None:
        _read_start(path)


def _read_start(path: Path) -> LoraWeights:
    try:
        return load_lora(path)
    except AdapterError as error:
        raise error.within(field="init_lora", value=str(path)) from error


def _start_from(transformer: nn.Module, settings: LoraSettings, path: Path) -> None:
    source, trained = str(path), dict(adapter_layers(transformer))
    targets = {name: _widths(layer) for name, layer in trained.items()}
    initial = _read_start(path)
    try:
        max_rank = settings.lora_rank if settings.lycoris_config is None else initial.rank
        check_lora(initial, targets, max_rank=max_rank)
    except AdapterError as error:
        raise error.within(field="init_lora", value=source) from error
    load_weights(transformer, initial, field="init_lora", source=source)


def adapter_layers(transformer: nn.Module) -> list[tuple[str, PeftLayer | LycorisLinear]]:
    """Return every layer that is trained, of LoRA or of LoKr and LoHa, with the name of its base layer."""
    return [*lora_layers(transformer), *lycoris_layers(transformer)]


def _parameters(layer: PeftLayer | LycorisLinear) -> list[nn.Parameter]:
    if isinstance(layer, LycorisLinear):
        return [*layer.factors.values()]
    return [parameter for parameter in _parts(layer) if parameter is not None]


def _widths(layer: PeftLayer | LycorisLinear) -> tuple[int, int]:
    base: Any = layer.base_layer
    return base.in_features, base.out_features


def adapter_parts(transformer: nn.Module) -> list[nn.Module]:
    """Return the modules that hold the adapter's parameters."""
    parts: list[nn.Module] = []
    for _, layer in adapter_layers(transformer):
        if isinstance(layer, LycorisLinear):
            parts.append(layer.factors)
        else:
            parts += [layer.lora_A, layer.lora_B, layer.lora_magnitude_vector]
    return parts


def lora_layers(transformer: nn.Module) -> list[tuple[str, PeftLayer]]:
    """Return every layer that has a LoRA, with the name of its base layer."""
    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, PeftLayer)]


def weights_of(transformer: nn.Module) -> LoraWeights:
    """Copy the adapter's weights to main memory, in float32. alpha / rank is the scale, with rsLoRA too."""
    if lycoris := {name: layer.layer() for name, layer in lycoris_layers(transformer)}:
        return LoraWeights(alpha=float(max(layer.rank for layer in lycoris.values())), layers=lycoris)
    layers = {}
    for name, layer in lora_layers(transformer):
        down, up, magnitude = _parts(layer)
        layers[name] = LoraLayer(_copy(down), _copy(up), None if magnitude is None else _copy(magnitude))
        alpha = layer.scaling[ADAPTER] * layer.r[ADAPTER]
    return LoraWeights(alpha=alpha, layers=layers)


@torch.no_grad()
def load_weights(transformer: nn.Module, weights: LoraWeights, *, field: str, source: str) -> None:
    """Load weights into the adapter. ``field`` is the option that named ``source``.

    Raises ``ConfigError`` unless layers, rank, scale and DoRA are the configured ones.
    """
    layers = dict(adapter_layers(transformer))
    if weights.column_magnitudes:
        raise ConfigError(
            "adapter_columns_trained",
            "uses DoRA over the input axis, which cannot be trained on",
            remedy="give an adapter without it",
            field=field,
            value=source,
        )
    if layers.keys() != weights.layers.keys():
        raise ConfigError(
            "adapter_layers_differ",
            "changes {count} layers, and lora_targets selects {expected}",
            remedy="set lora_targets to the same layers",
            field=field,
            value=source,
            count=len(weights.layers),
            expected=len(layers),
        )
    for name, layer in layers.items():
        if isinstance(layer, LycorisLinear):
            _check_factors(name, layer, weights.layers[name], field=field, source=source)
        else:
            _check_shape(layer, weights.layers[name], weights.alpha, field=field, source=source)
    for name, layer in layers.items():  # the tensors of a file and the parameters have one order; alpha comes last
        for parameter, value in zip(_parameters(layer), weights.layers[name].tensors().values(), strict=False):
            parameter.copy_(value)


def _check_factors(name: str, layer: LycorisLinear, weights: Layer, *, field: str, source: str) -> None:
    tensors = weights.tensors()
    found = {end: tuple(tensor.shape) for end, tensor in tensors.items() if end != "alpha"}
    expected = {end: tuple(factor.shape) for end, factor in layer.factors.items()}
    scale = 1.0 if isinstance(weights, LoraLayer) else weights.scale
    if found != expected or abs(scale - layer.scale) > 1e-6 * abs(layer.scale):
        raise ConfigError(
            "adapter_factors_differ",
            "{module} has {found} at scale {scale:g}, and lycoris_config gives {expected} at scale {expected_scale:g}",
            remedy="set lycoris_config to that of its training",
            field=field,
            value=source,
            module=name,
            found=", ".join(f"{end} {shape}" for end, shape in found.items()),
            scale=scale,
            expected=", ".join(f"{end} {shape}" for end, shape in expected.items()),
            expected_scale=layer.scale,
        )


def _check_shape(layer: PeftLayer, weights: Layer, alpha: float, *, field: str, source: str) -> None:
    if weights.kind != "lora":
        raise ConfigError(
            "adapter_kind_differs",
            "is of the kind {kind}",
            remedy="train with the lora_type and lycoris_config of its training",
            field=field,
            value=source,
            kind=weights.kind,
        )
    if weights.rank != layer.r[ADAPTER] or abs(alpha / weights.rank - layer.scaling[ADAPTER]) > 1e-6:
        raise ConfigError(
            "adapter_scale_differs",
            "has rank {rank} and alpha {alpha:g}",
            remedy="set lora_rank to {rank} and lora_alpha to {alpha:g}",
            field=field,
            value=source,
            rank=weights.rank,
            alpha=alpha,
        )
    if weights.magnitude is not None and not layer.lora_magnitude_vector:
        raise ConfigError(
            "adapter_uses_dora", "uses DoRA", remedy="set use_dora to true", field=field, value=source
        )  # fmt: skip
    if weights.magnitude is None and layer.lora_magnitude_vector:
        raise ConfigError(
            "adapter_without_dora", "does not use DoRA", remedy="set use_dora to false", field=field, value=source
        )


def _parts(layer: PeftLayer) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
    """Return A, B and, with DoRA, the magnitude."""
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight if layer.lora_magnitude_vector else None
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, magnitude


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().float().cpu().clone()
