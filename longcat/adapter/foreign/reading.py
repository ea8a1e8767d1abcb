"""LoRA files of other programs, read exactly as those programs apply them, or rejected with the reason.

``longcat.adapter.foreign.keys`` lists the programs and the sources of their formats.
"""

import difflib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor
from torch.nn.functional import pad

from longcat.adapter.foreign.alpha import Alphas
from longcat.adapter.foreign.keys import Source, parse_keys, reject_other_kinds
from longcat.adapter.foreign.module_names import HALVES_SWAPPED, module_names
from longcat.adapter.foreign.peft_config import PeftConfig
from longcat.adapter.foreign.vectors import Targets, scaled, split_vector, take_vectors
from longcat.adapter.lora import Layer, LoraLayer, LoraWeights, alpha_in, read_file
from longcat.adapter.lycoris import LYCORIS_KEYS, LohaLayer, LokrLayer, LycorisLayer, lycoris_layer, scaled_by
from longcat.adapter.modules import Modules, adaptable_modules
from longcat.adapter.verification import changes_nothing, check_layer, check_lora
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
    warnings: tuple[Problem, ...] = ()
    """What was assumed, and why the adapter may not have the expected effect."""


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
        _check_dora(sources, config)
        read = {name: _layer(name, source) for name, source in sources.items()}
        alphas = Alphas(config, header, {layer.dim for layer in read.values()})
        layers: dict[str, tuple[Layer, float]] = {}
        for name, layer in read.items():
            alpha = _alpha(name, layer, sources[name].get("alpha"), alphas)
            for module, part in _split(name, layer, parts[name], targets).items():
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
        weights = replace(_unify(layers), vectors={name: _at_least_16_bit(vectors[name]) for name in sorted(vectors)})
        check_lora(weights, targets, max_rank=max_rank)
    except AdapterError as error:
        raise error.within(field="file", value=str(file)) from error
    return Foreign(
        weights=weights, origin=origin, has_alpha=not alphas.is_assumed, warnings=tuple(_warnings(weights, alphas))
    )


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


def _check_dora(sources: Mapping[str, Source], config: PeftConfig | None) -> None:
    """Check that all layers have magnitudes if the configuration says ``use_dora``, and none otherwise."""
    having = [name for name, source in sources.items() if "magnitude" in source]
    if having and config is not None and not config.use_dora:
        raise AdapterError(
            "adapter_dora_unannounced",
            "holds DoRA's magnitudes, such as that of {module!r}, although its configuration has use_dora false",
            remedy="save the adapter again",
            module=having[0],
        )
    if config is not None and config.use_dora and len(having) < len(sources):
        raise AdapterError(
            "adapter_dora_incomplete",
            "has use_dora in its configuration, and {missing} of its {count} layers have no lora_magnitude_vector",
            remedy="save the adapter again",
            missing=len(sources) - len(having),
            count=len(sources),
        )


def _row_magnitude(name: str, source: Source) -> Tensor | None:
    """Return DoRA's magnitudes of rows, as PEFT has them: LyCORIS and OneTrainer write those as (out, 1).

    (1, in) are norms of columns, which are another computation; other shapes do not tell the axis.
    """
    scale = source.get("dora_scale")
    if scale is None:
        return source.get("magnitude")
    rows = source["up"].shape[0] if "up" in source else None
    if tuple(scale.shape) != (rows, 1):
        raise AdapterError(
            "adapter_dora_scale",
            "uses DoRA over the input axis or an unknown one: {key!r} has shape {shape}, and only ({rows}, 1) can be served",
            remedy="train it with DoRA over the output axis, or with PEFT's use_dora",
            key=f"{name}.dora_scale",
            shape=str(tuple(scale.shape)),
            rows=rows or "-",
        )
    return scale.flatten()


def _alpha(name: str, layer: Layer, tensor: Tensor | None, alphas: Alphas) -> float:
    """Return a layer's alpha. LyCORIS has a tensor for each layer, and no configuration that would be another's."""
    if isinstance(layer, LokrLayer) and layer.is_whole:
        return 1.0
    if tensor is not None and not isinstance(layer, LoraLayer):
        return alpha_in(name, tensor)
    return alphas.of(name, layer.dim, tensor)


def _layer(name: str, source: Source) -> Layer:
    magnitude = _row_magnitude(name, source)
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


def _split(name: str, layer: Layer, modules: tuple[str, ...], targets: Targets) -> dict[str, Layer]:
    """Split a fused layer into its modules: rows of B, all with the same A. Exact."""
    if len(modules) == 1:
        return {modules[0]: _halves_swapped(name, layer) if name in HALVES_SWAPPED else layer}
    widths = [targets[module][1] for module in modules]
    if not isinstance(layer, LoraLayer):
        return _split_lycoris(name, layer, modules, widths)
    if layer.up.shape[0] != sum(widths):
        raise AdapterError(
            "adapter_fused_rows",
            "{module} has a B of shape {shape}; this model needs {rows} rows",
            remedy="import it for the model that it was made for",
            module=name,
            shape=str(tuple(layer.up.shape)),
            rows=sum(widths),
        )
    ups = torch.split(layer.up, widths)
    magnitudes = [None] * len(widths) if layer.magnitude is None else torch.split(layer.magnitude, widths)
    return {
        module: LoraLayer(layer.down, up, magnitude)
        for module, up, magnitude in zip(modules, ups, magnitudes, strict=True)
    }


def _split_lycoris(name: str, layer: LycorisLayer, modules: tuple[str, ...], widths: Sequence[int]) -> dict[str, Layer]:
    """Split the output rows of a fused LoKr or LoHa."""
    parts: dict[str, Layer] = {}
    for module, end, width in zip(modules, itertools.accumulate(widths), widths, strict=True):
        part = layer.rows(end - width, width) if layer.shape[0] == sum(widths) else None
        if part is None:
            raise _unsplit(name, layer, widths)
        parts[module] = part
    return parts


def _halves_swapped(name: str, layer: Layer) -> Layer:
    """Exchange the halves of the output rows."""

    def swapped(rows: Tensor) -> Tensor:
        return torch.cat([*rows.chunk(2)][::-1])

    if isinstance(layer, LoraLayer):
        magnitude = None if layer.magnitude is None else swapped(layer.magnitude)
        return replace(layer, up=swapped(layer.up), magnitude=magnitude)
    if isinstance(layer, LohaLayer):
        return replace(layer, w1_a=swapped(layer.w1_a), w2_a=swapped(layer.w2_a))
    if layer.w1[0].shape[0] % 2:
        half = layer.shape[0] // 2
        raise _unsplit(name, layer, [half, half])
    return replace(layer, w1=(swapped(layer.w1[0]), *layer.w1[1:]))


def _unsplit(name: str, layer: LycorisLayer, widths: Sequence[int]) -> AdapterError:
    return AdapterError(
        "adapter_fused_product",
        "changes {module} by a {kind} of shape {shape}, which does not split into the rows {rows} of its modules",
        remedy="train it on the modules one by one, or with a factor that divides them",
        module=name,
        kind=layer.kind,
        shape=str(layer.shape),
        rows=", ".join(map(str, widths)),
    )


def _unify(layers: Mapping[str, tuple[Layer, float]]) -> LoraWeights:
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


def _at_least_16_bit(tensor: Tensor) -> Tensor:
    """Convert 8-bit floats to bfloat16, which represents all of them: torch does not compute in 8 bits."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
