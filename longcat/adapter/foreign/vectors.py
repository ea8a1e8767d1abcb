"""The changes of vectors in other programs' files: biases and heads' norms.

ComfyUI's trainer (``comfy_extras/nodes_train.py``) writes ``.diff_b`` for every bias and ``.diff`` for every norm, LyCORIS
``.b_norm`` and ``.w_norm``; both are added as they are. PEFT's ``lora_bias`` writes ``lora_B.bias``, scaled as B is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from longcat.adapter.foreign.keys import Source, no_weights, unsupported_kind
from longcat.adapter.foreign.module_names import HALVES_SWAPPED
from longcat.adapter.modules import is_norm
from longcat.adapter.weights.checks import check_shape

Targets = Mapping[str, tuple[int, ...]]


def take_vectors(
    sources: dict[str, Source], parts: Mapping[str, tuple[str, ...]], targets: Targets
) -> dict[str, Tensor]:
    """Take the vectors that are added as they are out of a file's layers, by module.

    Raises ``AdapterError`` for a change of a whole weight.
    """
    vectors: dict[str, Tensor] = {}
    for name, source in [*sources.items()]:
        modules = parts[name]
        for end in ("diff", "diff_b"):
            vector = source.pop(end, None)
            if vector is None:
                continue
            if is_norm(modules[0]) != (end == "diff"):
                raise unsupported_kind("full weights", f"{name}.{end}")
            for module, part in split_vector(name, vector, modules, targets).items():
                vectors[module] = vectors[module] + part if module in vectors else part
        if not source:
            del sources[name]
    if not sources:
        raise no_weights()
    return vectors


def split_vector(name: str, vector: Tensor, modules: tuple[str, ...], targets: Targets) -> dict[str, Tensor]:
    """Split the vector of a fused layer into those of its modules. Raises ``AdapterError`` if the widths differ."""
    widths = [targets[module][-1] for module in modules]
    check_shape(name, "diff" if is_norm(modules[0]) else "diff_b", tuple(vector.shape), (sum(widths),))
    if name in HALVES_SWAPPED:
        vector = vector.roll(widths[0] // 2)
    return {module: part.clone() for module, part in zip(modules, vector.split(widths), strict=True)}


def scaled(bias: Tensor, scale: float) -> Tensor:
    """Return PEFT's bias with its scale, in float32 unless the scale is 1."""
    return bias if scale == 1 else bias.to(torch.promote_types(bias.dtype, torch.float32)) * scale
