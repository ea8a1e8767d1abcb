"""Layers of different ranks and alphas, brought to one rank and one alpha without changing a product."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from longcat.adapter.weights.lora import Layer, LoraLayer, LoraWeights
from longcat.adapter.weights.lycoris import scaled_by


def unify(layers: Mapping[str, tuple[Layer, float]]) -> LoraWeights:
    """Bring LoRA layers to one rank, the largest, and one alpha; those of LoKr and LoHa keep a scale each."""
    loras = {module: (layer, alpha) for module, (layer, alpha) in layers.items() if isinstance(layer, LoraLayer)}
    others = {
        module: scaled_by(layer, alpha) for module, (layer, alpha) in layers.items() if not isinstance(layer, LoraLayer)
    }
    if not loras:
        return LoraWeights(alpha=float(max(layer.rank for layer in others.values())), layers=others)
    unified = _unify_loras(loras)
    return LoraWeights(alpha=unified.alpha, layers={**unified.layers, **others})


def _unify_loras(layers: Mapping[str, tuple[LoraLayer, float]]) -> LoraWeights:
    """Bring layers to one rank, the largest, and one alpha, that of the commonest scale."""
    rank = max(layer.rank for layer, _ in layers.values())
    scales = {module: alpha / layer.rank for module, (layer, alpha) in layers.items()}
    scale = Counter(scales.values()).most_common(1)[0][0]
    # An alpha from the file is preferred to a computed one, which may be rounded.
    same = (alpha for module, (layer, alpha) in layers.items() if layer.rank == rank and scales[module] == scale)
    unified = {}
    for module, (layer, _) in layers.items():
        up = layer.up if scales[module] == scale else _times(layer.up, scales[module] / scale)
        missing = rank - layer.rank
        # pad always copies: parts of a fused layer share memory, which safetensors does not write.
        magnitude = None if layer.magnitude is None else layer.magnitude.clone()
        unified[module] = LoraLayer(pad(layer.down, (0, 0, 0, missing)), pad(up, (0, missing)), magnitude)
    return LoraWeights(alpha=next(same, scale * rank), layers=unified)


def _times(tensor: Tensor, factor: float) -> Tensor:
    """Multiply, in the tensor's own type if that is exact, else at least in float32."""
    product = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor
    narrow = product.to(tensor.dtype)
    return narrow if torch.equal(narrow.to(product.dtype), product) else product
