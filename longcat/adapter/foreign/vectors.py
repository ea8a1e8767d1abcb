"""The changes of vectors in other programs' files: biases and heads' norms.

ComfyUI's trainer (``comfy_extras/nodes_train.py``) writes ``.diff_b`` for every bias and ``.diff`` for every norm, LyCORIS
``.b_norm`` and ``.w_norm``; both are added as they are. PEFT's ``lora_bias`` writes ``lora_B.bias``, scaled as B is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from longcat.adapter.foreign.keys import Source
from longcat.adapter.foreign.module_names import HALVES_SWAPPED
from longcat.adapter.modules import is_norm
from longcat.errors import AdapterError

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
                raise AdapterError(
                    "adapter_kind_unsupported",
                    "is of the kind {kind} ({key!r}); only LoRA, LoKr and LoHa on the transformer's linear layers fit",
                    remedy="train it as such, or merge it into the model with its own program and extract a LoRA",
                    kind="full weights",
                    key=f"{name}.{end}",
                )
            for module, part in split_vector(name, vector, modules, targets).items():
                vectors[module] = vectors[module] + part if module in vectors else part
        if not source:
            del sources[name]
    if not sources:
        raise AdapterError("adapter_empty", "holds no LoRA weights", remedy="save the adapter again")
    return vectors


def split_vector(name: str, vector: Tensor, modules: tuple[str, ...], targets: Targets) -> dict[str, Tensor]:
    """Split the vector of a fused layer into those of its modules. Raises ``AdapterError`` if the widths differ."""
    widths = [targets[module][-1] for module in modules]
    if tuple(vector.shape) != (sum(widths),):
        raise AdapterError(
            "adapter_shape",
            "{module} {kind} has shape {shape}; this model needs {expected}",
            remedy="use it with the model that it was made for",
            module=name,
            kind="diff" if is_norm(modules[0]) else "diff_b",
            shape=str(tuple(vector.shape)),
            expected=str((sum(widths),)),
        )
    if name in HALVES_SWAPPED:
        vector = vector.roll(widths[0] // 2)
    return {module: part.clone() for module, part in zip(modules, vector.split(widths), strict=True)}


def scaled(bias: Tensor, scale: float) -> Tensor:
    """Return PEFT's bias with its scale, in float32 unless the scale is 1."""
    return bias if scale == 1 else bias.to(torch.promote_types(bias.dtype, torch.float32)) * scale
