"""Verification of weights: against the manifest of their version, and against the transformer that is to use them.

Errors are about the adapter itself and name no input; callers add theirs (``LithographError.within``).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from longcat.adapter.manifest import Manifest
from longcat.adapter.modules import is_norm
from longcat.adapter.weights.checks import check_floating_point, check_shape
from longcat.adapter.weights.draft import describe_lora
from longcat.adapter.weights.file import load_lora, vector_end
from longcat.adapter.weights.lora import Layer, LoraLayer, LoraWeights, served
from longcat.adapter.weights.lycoris import LohaLayer
from longcat.errors import AdapterError
from longcat.problem import show


def load_version(path: Path, manifest: Manifest) -> LoraWeights:
    """Load the file of a version. Raises ``AdapterError`` if it is damaged or is not what its manifest describes."""
    weights = load_lora(path)
    check_manifest(weights, manifest)
    return weights


def check_manifest(weights: LoraWeights, manifest: Manifest) -> None:
    """Check that weights are those that a manifest describes. Raises ``AdapterError``."""
    for name, found in describe_lora(weights).items():
        stated = getattr(manifest, name)
        if isinstance(stated, tuple):
            stated = tuple(sorted(stated))
        if stated != found:
            raise AdapterError(
                "adapter_contradicts_manifest",
                "its manifest gives {name} {stated}, and its weights have {found}",
                remedy="publish it again",
                name=name,
                stated=show(stated),
                found=show(found),
            )


def check_lora(
    weights: LoraWeights, targets: Mapping[str, tuple[int, ...]], *, max_rank: int, dtype: torch.dtype = torch.float32
) -> None:
    """Check that an adapter fits a transformer that computes in ``dtype``, before any of it is used.

    Raises ``AdapterError``.
    """
    norms = {module for module in targets if is_norm(module)}
    unknown = sorted((weights.layers.keys() - (targets.keys() - norms)) | (weights.vectors.keys() - targets.keys()))
    if unknown:
        raise AdapterError(
            "adapter_modules_unknown",
            "{count} of its modules do not exist in this model or cannot be adapted, such as {module!r}",
            remedy="use it with the model that it was made for",
            count=len(unknown),
            module=unknown[0],
        )
    for module, vector in weights.vectors.items():
        _check_tensor(module, vector_end(module), vector, targets[module][-1:], dtype=dtype)
    _check_columns(weights, targets)
    ranks = {layer.rank for layer in weights.layers.values() if isinstance(layer, LoraLayer)}
    if len(ranks) > 1:
        raise AdapterError(
            "adapter_ranks_differ",
            "its layers have ranks {ranks} under one alpha, so that their scale is not known",
            remedy="import it from the file that its program wrote",
            ranks=", ".join(map(str, sorted(ranks))),
        )
    for module, layer in weights.layers.items():
        check_layer(module, layer, targets[module], max_rank=max_rank)
        products = layer.peaks() if isinstance(layer, LohaLayer) else ()
        if not all(matrix.to(dtype).isfinite().all() for matrix in (*served(layer, weights.alpha), *products)):
            raise AdapterError(
                "adapter_overflows",
                "{module} holds numbers that are too large for {dtype}, with alpha {alpha:g}",
                remedy="train it again with a lower learning rate, or serve it with --dtype float32",
                module=module,
                dtype=str(dtype).removeprefix("torch."),
                alpha=weights.alpha,
            )


def _check_columns(weights: LoraWeights, targets: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the magnitudes of columns belong to LoRA layers of one width, each layer to one."""
    seen: set[str] = set()
    for modules, magnitude in weights.column_magnitudes.items():
        for module in modules:
            layer = weights.layers.get(module)
            if not isinstance(layer, LoraLayer) or layer.magnitude is not None or module in seen:
                raise AdapterError(
                    "adapter_columns_alone",
                    "holds magnitudes of the columns of {module!r}, which has no LoRA for them alone",
                    remedy="import it from the file that its program wrote",
                    module=module,
                )
            seen.add(module)
            _check_tensor(module, "dora_scale", magnitude, targets[module][:1])


def changes_nothing(weights: LoraWeights) -> bool:
    """Return True if every update is zero. A DoRA also changes the rows' norms, whose effect its update does not show."""
    changes = (*(layer.delta() for layer in weights.layers.values()), *weights.vectors.values())
    return not weights.uses_dora and not any(change.any() for change in changes)


def check_rank(rank: int, max_rank: int) -> None:
    """Raise ``AdapterError`` for a rank over the limit."""
    if rank > max_rank:
        raise AdapterError(
            "adapter_rank_too_high",
            "rank {rank} exceeds the limit, {max_rank}",
            remedy="raise the limit: --adapter-rank of the server, --max-rank of an import, lora_rank of a training",
            rank=rank,
            max_rank=max_rank,
        )


def check_layer(module: str, layer: Layer, widths: tuple[int, ...], *, max_rank: int) -> None:
    """Check that a layer fits the (in, out) widths of its module. Raises ``AdapterError``."""
    if is_norm(module):
        raise AdapterError(
            "adapter_matrix_on_norm",
            "{module} has a {kind}, and is a norm, whose weight is a vector",
            remedy="train it on linear layers only; a change of a norm is a vector, .diff",
            module=module,
            kind=layer.kind,
        )
    width_in, width_out = widths
    check_rank(layer.rank, max_rank)
    if layer.rank == 0:
        raise AdapterError(
            "adapter_rank_zero", "{module} has rank 0, which changes nothing", remedy="leave it out", module=module
        )
    if not isinstance(layer, LoraLayer):
        check_shape(module, layer.kind, layer.shape, (width_out, width_in))
    for kind, tensor in layer.tensors().items():
        expected = {"lora_A.weight": (layer.rank, width_in), "lora_B.weight": (width_out, layer.rank)}
        shape = expected.get(kind, (width_out,)) if isinstance(layer, LoraLayer) else None
        _check_tensor(module, kind.removesuffix(".weight"), tensor, shape)


def _check_tensor(
    module: str, kind: str, tensor: Tensor, shape: tuple[int, ...] | None, *, dtype: torch.dtype = torch.float32
) -> None:
    """Check that a tensor is of a shape, if one is given, and holds numbers that are finite in ``dtype``."""
    if shape is not None:
        check_shape(module, kind, tuple(tensor.shape), shape)
    check_floating_point(module, kind, tensor)
    if not torch.isfinite(tensor.float().to(dtype)).all():  # in float32: slots hold no larger number than that
        raise AdapterError(
            "adapter_not_finite",
            "{module} {kind} holds numbers that are not finite",
            remedy="train it again with a lower learning rate",
            module=module,
            kind=kind,
        )
