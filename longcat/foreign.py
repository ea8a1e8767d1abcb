"""LoRA files of other programs: what is read is exactly what they would apply, or refused by name.

``longcat.foreign_keys`` lists the programs, and where their formats were read.
"""

import difflib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor
from torch.nn.functional import pad

from longcat.errors import AdapterError, FlavourError
from longcat.flavour import Flavour
from longcat.foreign_keys import Source, parse_keys, refuse_other_kinds
from longcat.lora import LoraLayer, LoraWeights, check_layer, check_lora, lora_targets, read_file
from longcat.module_names import module_names
from longcat.peft_config import PeftConfig

Targets = Mapping[str, tuple[int, int]]
"""Modules that an adapter may change, with their (in, out) widths."""
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """An adapter as some program wrote it."""

    weights: LoraWeights
    origin: str
    """official, diffusers, comfyui, kohya, onetrainer or lycoris."""
    says_alpha: bool
    """If not, alpha is taken to be the rank, as these programs do themselves."""


def read_foreign(path: Path, targets: Targets, *, max_rank: int = 128) -> Foreign:
    """Read a LoRA file, or a directory with one, for a transformer with these targets.

    All layers get one rank (zeros make up for it) and one alpha (``up`` takes a differing scale in), which changes no
    product. 16-bit tensors stay 16-bit unless that would round. Raises ``AdapterError`` for what cannot be read, does not
    fit, or is more than a LoRA.
    """
    file = _file(path)
    tensors, header = read_file(file)
    try:
        refuse_other_kinds(tensors)
        origin, sources = parse_keys(tensors)
        config = PeftConfig.beside(file) if origin == "official" else PeftConfig.in_header(header)
        parts = module_names(targets)
        _refuse_unknown(sources, parts)
        _check_dora(sources, config)
        layers: dict[str, tuple[LoraLayer, float]] = {}
        for name, source in sources.items():
            layer = _layer(name, source)
            alpha = _alpha(name, layer.rank, source.get("alpha"), config)
            for module, part in _split(name, layer, parts[name], targets).items():
                if module in layers:
                    raise AdapterError(f"changes {module!r} twice, the second time as {name!r}: merge them first")
                check_layer(module, part, targets[module], max_rank=max_rank)
                layers[module] = (part, alpha)
        weights = _unify(layers)
        check_lora(weights, targets, max_rank=max_rank)
    except AdapterError as error:
        raise AdapterError(f"{file} {error}") from error
    says_alpha = config is not None or any("alpha" in source for source in sources.values())
    return Foreign(weights=weights, origin=origin, says_alpha=says_alpha)


def flavour_targets(flavour: Flavour) -> dict[str, tuple[int, int]]:
    """A flavour's targets from its configuration alone: no weights are read. Raises ``FlavourError``."""
    try:
        config = LongCatImageTransformer2DModel.load_config(flavour.folder, subfolder="transformer")
    except (OSError, ValueError) as error:
        raise FlavourError(
            f"flavour {flavour.name!r}: its transformer's config.json cannot be read: {error}"
        ) from error
    with torch.device("meta"):
        return lora_targets(LongCatImageTransformer2DModel.from_config(config))


def _file(path: Path) -> Path:
    """The file itself, or the one that a directory is about."""
    if not path.is_dir():
        _refuse_pickles([path])
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if not found:
        _refuse_pickles(sorted(path.iterdir()))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AdapterError(
            f"{path} should hold {' or '.join(_FOLDER_FILES)}; of other safetensors files it has {names}: name the file"
        )
    return found[0]


def _refuse_pickles(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix.lower() in _PICKLES:
            raise AdapterError(
                f"{path} is a pickle by its name, and reading one can run anything; save it as safetensors"
            )


def _refuse_unknown(sources: Mapping[str, Source], parts: Mapping[str, tuple[str, ...]]) -> None:
    unknown = [name for name in sources if name not in parts]
    if len(unknown) == len(sources):
        raise AdapterError(
            f"changes nothing that this model lets adapters change: its {len(unknown)} layers are as {unknown[0]!r}; it is "
            "made for another model, or written in a form that is not known here"
        )
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], parts, n=1)
        hint = f" (nearest: {nearest[0]!r})" if nearest else ""
        raise AdapterError(
            f"changes {len(unknown)} modules that this model has not or keeps fixed, as {unknown[0]!r}{hint}; train it "
            "without them, or import it for the model that it was made for"
        )


def _check_dora(sources: Mapping[str, Source], config: PeftConfig | None) -> None:
    """Magnitudes and configuration have to say the same: without magnitudes, DoRA would be something else."""
    having = [name for name, source in sources.items() if "magnitude" in source]
    if having and config is not None and not config.use_dora:
        raise AdapterError(f"holds magnitudes of DoRA, as of {having[0]!r}, and its configuration says use_dora false")
    if config is not None and config.use_dora and len(having) < len(sources):
        raise AdapterError(
            f"says use_dora, and {len(sources) - len(having)} of its {len(sources)} layers have no lora_magnitude_vector: "
            "it was cut; save it again"
        )


def _layer(name: str, source: Source) -> LoraLayer:
    missing = [slot for slot in ("down", "up") if slot not in source]
    if missing:
        there = ", ".join(source)
        raise AdapterError(f"holds {there} of {name!r} without {' and '.join(missing)}: it was cut; save it again")
    for slot in ("down", "up"):
        shape = tuple(source[slot].shape)
        if len(shape) != 2:
            kind = "a convolution, and LongCat-Image has none to adapt" if len(shape) > 2 else "no matrix"
            raise AdapterError(f"holds {slot} of {name!r} with shape {shape}, which is {kind}")
    magnitude = source.get("magnitude")
    return LoraLayer(
        _at_least_16_bit(source["down"]),
        _at_least_16_bit(source["up"]),
        None if magnitude is None else _at_least_16_bit(magnitude),
    )


def _alpha(name: str, rank: int, tensor: Tensor | None, config: PeftConfig | None) -> float:
    """By what the update is scaled, times the rank: from tensor or configuration, which must agree, else the rank."""
    said = None
    if tensor is not None:
        said = float(tensor) if tensor.numel() == 1 else math.nan  # (1,) is as good as ()
        if not 0 < said < math.inf:
            raise AdapterError(f"says alpha {tensor.flatten().tolist()[:3]} of {name!r}, which is no positive number")
    if config is None:
        return float(rank) if said is None else said
    if config.rank_of(name) not in (None, rank):
        raise AdapterError(
            f"says rank {config.rank_of(name)} of {name!r}, which has {rank}: its configuration is not its own"
        )
    plain, scaled = config.alpha_of(name), config.scaled_alpha_of(name, rank)
    # Programs that know no rsLoRA write the plain one. Tensors are narrower than JSON's numbers.
    if tensor is not None and said not in {float(torch.tensor(alpha).to(tensor.dtype)) for alpha in (plain, scaled)}:
        raise AdapterError(f"says two alphas of {name!r}: {said:g} in a tensor, {scaled:g} in its configuration")
    return scaled


def _split(name: str, layer: LoraLayer, modules: tuple[str, ...], targets: Targets) -> dict[str, LoraLayer]:
    """A fused layer's parts: rows of B, all with the same A. Exact."""
    if len(modules) == 1:
        return {modules[0]: layer}
    widths = [targets[module][1] for module in modules]
    if layer.up.shape[0] != sum(widths):
        raise AdapterError(f"{name} has a B of shape {tuple(layer.up.shape)}; this model needs {sum(widths)} rows")
    ups = torch.split(layer.up, widths)
    magnitudes = [None] * len(widths) if layer.magnitude is None else torch.split(layer.magnitude, widths)
    return {
        module: LoraLayer(layer.down, up, magnitude)
        for module, up, magnitude in zip(modules, ups, magnitudes, strict=True)
    }


def _unify(layers: Mapping[str, tuple[LoraLayer, float]]) -> LoraWeights:
    """One rank and one alpha for layers with their own alphas: the largest rank, and the commonest scale."""
    rank = max(layer.rank for layer, _ in layers.values())
    scales = {module: alpha / layer.rank for module, (layer, alpha) in layers.items()}
    scale = Counter(scales.values()).most_common(1)[0][0]
    # An alpha that somebody wrote, before one that was computed and may be rounded.
    same = (alpha for module, (layer, alpha) in layers.items() if layer.rank == rank and scales[module] == scale)
    unified = {}
    for module, (layer, _) in layers.items():
        up = layer.up if scales[module] == scale else _times(layer.up, scales[module] / scale)
        missing = rank - layer.rank
        # pad copies, also by nothing: parts of a fused layer share memory, which safetensors refuses to write.
        magnitude = None if layer.magnitude is None else layer.magnitude.clone()
        unified[module] = LoraLayer(pad(layer.down, (0, 0, 0, missing)), pad(up, (0, missing)), magnitude)
    return LoraWeights(alpha=next(same, scale * rank), layers=unified)


def _times(tensor: Tensor, factor: float) -> Tensor:
    """In the tensor's own type if that is exact, else at least in float32."""
    product = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor
    narrow = product.to(tensor.dtype)
    return narrow if torch.equal(narrow.to(product.dtype), product) else product


def _at_least_16_bit(tensor: Tensor) -> Tensor:
    """8-bit floats as bfloat16, which holds all of them; torch computes nothing in 8 bits."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
