"""LoRA files of other programs, read exactly as those programs apply them, or rejected with the reason.

``longcat.adapter.foreign.keys`` lists the programs and the sources of their formats.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor

from longcat.adapter.foreign.alpha import Alphas
from longcat.adapter.foreign.fused import split_layer
from longcat.adapter.foreign.keys import Source, parse_keys, reject_other_kinds
from longcat.adapter.foreign.magnitudes import check_dora, row_magnitude, take_column_magnitudes
from longcat.adapter.foreign.module_names import module_names
from longcat.adapter.foreign.peft_config import PeftConfig
from longcat.adapter.foreign.unification import unify
from longcat.adapter.foreign.vectors import Targets, scaled, split_vector, take_vectors
from longcat.adapter.modules import Modules, adaptable_modules
from longcat.adapter.verification import changes_nothing, check_layer, check_lora
from longcat.adapter.weights.file import alpha_in, read_file
from longcat.adapter.weights.lora import Layer, LoraLayer, LoraWeights
from longcat.adapter.weights.lycoris import LYCORIS_KEYS, LokrLayer, lycoris_layer
from longcat.adapter.weights.usage import AdapterUsage, usage_in
from longcat.errors import AdapterError, FlavourError
from longcat.model.flavour import Flavour
from longcat.problem import Problem

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """An adapter that another program wrote."""

    weights: LoraWeights
    origin: str
    """official, diffusers, comfyui, kohya, onetrainer or lycoris."""
    has_alpha: bool
    """If False, alpha is the rank, as in the programs that write such files."""
    usage: AdapterUsage
    """Sampling and trigger words, which our own exports carry."""
    warnings: tuple[Problem, ...] = ()
    """Assumptions about the file, because of which the adapter may not have the expected effect."""


def read_foreign(path: Path, targets: Targets, *, max_rank: int = 128) -> Foreign:
    """Read a LoRA file, or a directory with one, for a transformer with these targets.

    All layers get one rank, padded with zeros, and one alpha, with a differing scale multiplied into ``up``; no product
    changes. 16-bit tensors stay 16-bit unless that would round. Raises ``AdapterError``, about ``file``, if the file cannot
    be read, does not fit, or is not a LoRA.
    """
    file = _file(path)
    tensors, header = read_file(file)
    try:
        reject_other_kinds(tensors)
        origin, sources = parse_keys(tensors)
        config = PeftConfig.beside(file) if origin == "official" else PeftConfig.in_header(header)
        parts = module_names(targets)
        _check_modules(sources, parts)
        vectors = take_vectors(sources, parts, targets)
        columns = take_column_magnitudes(sources, parts)
        check_dora(sources, config)
        read = {name: _layer(name, source) for name, source in sources.items()}
        alphas = Alphas(config, header, {layer.dim for layer in read.values()})
        layers: dict[str, tuple[Layer, float]] = {}
        for name, layer in read.items():
            alpha = _alpha(name, layer, sources[name].get("alpha"), alphas)
            for module, part in split_layer(name, layer, parts[name], targets).items():
                if module in layers:
                    raise AdapterError(
                        "adapter_module_twice",
                        "changes {module!r} twice, the second time as {name!r}",
                        remedy="merge the two first",
                        module=module,
                        name=name,
                    )
                check_layer(module, part, targets[module], max_rank=max_rank)
                layers[module] = (part, alpha)
            if (bias := sources[name].get("bias")) is not None:
                vectors |= split_vector(name, scaled(bias, alpha / layer.dim), parts[name], targets)
        weights = replace(
            unify(layers),
            vectors={name: _at_least_16_bit(vectors[name]) for name in sorted(vectors)},
            column_magnitudes={modules: _at_least_16_bit(magnitude) for modules, magnitude in columns.items()},
        )
        check_lora(weights, targets, max_rank=max_rank)
    except AdapterError as error:
        raise error.within(field="file", value=str(file)) from error
    usage, unusable = usage_in(header)
    return Foreign(
        weights=weights, origin=origin, has_alpha=not alphas.is_assumed, usage=usage,
        warnings=(*_warnings(weights, alphas), *([] if unusable is None else [unusable])),
    )  # fmt: skip


def _warnings(weights: LoraWeights, alphas: Alphas) -> Iterator[Problem]:
    yield from alphas.warnings()
    if changes_nothing(weights):
        yield Problem(
            code="adapter_changes_nothing",
            template="all its updates are zero: images with it are those of the base model",
            remedy_template="check that it was trained, and saved after the training",
        )


def flavour_targets(flavour: Flavour) -> Modules:
    """Return a flavour's targets, from its configuration alone, without weights. Raises ``FlavourError``."""
    try:
        config = LongCatImageTransformer2DModel.load_config(flavour.folder, subfolder="transformer")
    except (OSError, ValueError) as error:
        raise FlavourError(
            "flavour_transformer_config",
            "its transformer's config.json cannot be read: {reason}",
            remedy="download the model again",
            field="flavour",
            value=flavour.name,
            reason=str(error),
        ) from error
    with torch.device("meta"):
        return adaptable_modules(LongCatImageTransformer2DModel.from_config(config))


def _file(path: Path) -> Path:
    """Return the file itself, or a directory's adapter file."""
    if not path.is_dir():
        _reject_pickles([path])
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if not found:
        _reject_pickles(sorted(path.iterdir()))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AdapterError(
            "adapter_file_ambiguous",
            "the directory holds neither {expected}; its other safetensors files: {found}",
            remedy="name the file",
            field="file",
            value=str(path),
            expected=" nor ".join(_FOLDER_FILES),
            found=names,
        )
    return found[0]


def _reject_pickles(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix.lower() in _PICKLES:
            raise AdapterError(
                "adapter_pickled",
                "a pickle by its name, and reading a pickle can run any code",
                remedy="save it as safetensors",
                field="file",
                value=str(path),
            )


def _check_modules(sources: Mapping[str, Source], parts: Mapping[str, tuple[str, ...]]) -> None:
    unknown = [name for name in sources if name not in parts]
    if len(unknown) == len(sources):
        raise AdapterError(
            "adapter_of_another_model",
            "none of its {count} layers, such as {module!r}, exists in this model: it was made for another model or written "
            "in an unknown format",
            remedy="import it for the model that it was made for",
            count=len(unknown),
            module=unknown[0],
        )
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], parts, n=1)
        raise AdapterError(
            "adapter_foreign_modules_unknown",
            "{count} of its layers do not exist in this model or cannot be adapted, such as {module!r} (nearest: {nearest})",
            remedy="train it without them, or import it for the model that it was made for",
            count=len(unknown),
            module=unknown[0],
            nearest=nearest[0] if nearest else "-",
        )


def _alpha(name: str, layer: Layer, tensor: Tensor | None, alphas: Alphas) -> float:
    """Return a layer's alpha. LyCORIS has a tensor for each layer, and no configuration that would be another's."""
    if isinstance(layer, LokrLayer) and layer.is_whole:
        return 1.0
    if tensor is not None and not isinstance(layer, LoraLayer):
        return alpha_in(name, tensor)
    return alphas.of(name, layer.dim, tensor)


def _layer(name: str, source: Source) -> Layer:
    magnitude = row_magnitude(name, source)
    if source.keys() & LYCORIS_KEYS:
        return lycoris_layer(name, {key: _at_least_16_bit(tensor) for key, tensor in source.items()})
    missing = [slot for slot in ("down", "up") if slot not in source]
    if missing:
        raise AdapterError(
            "adapter_layer_incomplete",
            "holds {present} of {module!r} without {missing}",
            remedy="save the adapter again",
            present=", ".join(source),
            module=name,
            missing=", ".join(missing),
        )
    for slot in ("down", "up"):
        shape = tuple(source[slot].shape)
        if len(shape) != 2:
            raise AdapterError(
                "adapter_layer_not_matrix",
                "holds {part} of {module!r} with shape {shape}, which is not a matrix",
                remedy="train it on linear layers only",
                part=slot,
                module=name,
                shape=str(shape),
            )
    return LoraLayer(
        _at_least_16_bit(source["down"]),
        _at_least_16_bit(source["up"]),
        None if magnitude is None else _at_least_16_bit(magnitude),
    )


def _at_least_16_bit(tensor: Tensor) -> Tensor:
    """Convert 8-bit floats to bfloat16, which represents all of them: torch does not compute in 8 bits."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
