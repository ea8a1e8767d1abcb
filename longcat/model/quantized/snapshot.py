"""Snapshots: a component's quantized weights on disk, so that the next start reads them instead of quantizing again.

A snapshot is a folder of safetensors files and, written last, ``snapshot.json`` with their checksums. The folder's name has
a digest of all that the weights follow from: base model, precision, dtype, device and library versions. It is written beside
its place and renamed, so that a reader sees a whole snapshot or none, and of two processes the first to finish wins.

Nothing is unpickled: the formats of quanto and torchao are tensor subclasses over plain tensors. The model's structure is
made and quantized on the meta device, without numbers, and its plain tensors are filled from the files, one by one.
"""

import copy
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from longcat.checksum import checksums
from longcat.model.flavour import EMBEDDED_FOLDER, Flavour
from longcat.model.precision import Offload, Precision
from longcat.model.quantized.quantize import quantize_layer, quantized_layers

log = logging.getLogger("lithograph")

_FORMAT = 1
_MANIFEST = "snapshot.json"
_FILE_BYTES = 256 * 2**20
"""Size of a file from which the next one is begun: what writing holds in main memory."""
_PARTIAL = ".partial-"
_PARTIAL_SECONDS = 86400
"""Age from which an unfinished snapshot is one of a process that ended."""
_LIBRARIES = ("torch", "torchao", "optimum-quanto", "transformers", "diffusers")


def snapshots_of(flavour: Flavour, given: str) -> Path | None:
    """Return the folder of a model's snapshots: as given, with ``auto`` in the model's own, with ``none`` no folder.

    The embedded model is quantized in less time than a snapshot takes.
    """
    if given == "none" or (given == "auto" and flavour.folder == EMBEDDED_FOLDER):
        return None
    return flavour.folder / "quantized" if given == "auto" else Path(given)


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    files: Mapping[str, str]
    """SHA-256 of each file."""
    aliases: Mapping[str, str]
    """Parameters that are another one, by its name."""


class _DamagedError(Exception):
    """A snapshot that cannot be used, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The place of one component's quantized weights."""

    folder: Path
    """The folder of all snapshots of a model."""
    base_hash: str
    component: str
    precision: Precision
    dtype: torch.dtype
    device: torch.device
    """The device that computes."""

    @property
    def _group(self) -> str:
        """The start of the names of this snapshot and of those of other versions, which it replaces."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.component}-{self.precision}-{dtype}-{device_kind(self.device)}-{self.base_hash[:12]}-"

    @property
    def path(self) -> Path:
        """The snapshot's own folder."""
        parts = [_FORMAT, self._group, self.base_hash, *library_versions()]
        return self.folder / (self._group + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16])

    @property
    def _is_whole(self) -> bool:
        return (self.path / _MANIFEST).exists()

    def exists(self) -> bool:
        """Return True if the weights were kept by an earlier start; log whether those of other versions were."""
        if self._is_whole:
            return True
        if other := next(self.folder.glob(f"{self._group}*"), None):
            log.info("the quantized weights in %s are of other versions; they are made again", other)
        return False

    def read(self, structure: nn.Module, *, offload: Offload) -> bool:
        """Quantize a model on the meta device there, and fill it; return False if the snapshot is damaged, and remove it.

        The weights of quantized layers go to the device, unless they are offloaded; the others to main memory.
        """
        try:
            self._fill(structure, offload)
        except (OSError, ValidationError, SafetensorError, _DamagedError) as error:
            log.warning("the quantized weights in %s are damaged (%s); they are made again", self.path, error)
            shutil.rmtree(self.path, ignore_errors=True)
            return False
        return True

    def write(self, model: nn.Module) -> None:
        """Keep the weights of a quantized model. What cannot be written is logged, and made again at the next start."""
        partial = self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"
        try:
            self._remove_abandoned()
            partial.mkdir(parents=True)
            aliases = _aliases(model)
            files = {name: _write_file(partial / name, part) for name, part in _files(model, aliases)}
            manifest = _Manifest(files=files, aliases=aliases)
            (partial / _MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
            if not self._is_whole:
                shutil.rmtree(self.path, ignore_errors=True)  # the rest of one whose removal was interrupted
                partial.rename(self.path)
            self._remove_other_versions()
        except OSError as error:  # such as a read-only or full disk, or a rename that another process made first
            if not self._is_whole:
                log.warning("the quantized weights are not kept, and made again at the next start: %s", error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fill(self, structure: nn.Module, offload: Offload) -> None:
        manifest = _Manifest.model_validate_json((self.path / _MANIFEST).read_bytes())
        files = {self.path / name: digest for name, digest in manifest.files.items()}
        if wrong := [path.name for path, digest in checksums(files).items() if digest != files[path]]:
            raise _DamagedError(f"{', '.join(wrong)} changed")
        quantized = tuple(f"{name}." for name in quantized_layers(structure))
        self._quantize(structure)
        wanted = {name: dict(_leaves(name, tensor)) for name, tensor in _tensors(structure)}
        owners = {leaf: name for name, leaves in wanted.items() for leaf in leaves}
        missing = set(owners) - {leaf for leaf, name in owners.items() if name in manifest.aliases}
        filled: dict[str, Tensor] = {}
        for path in files:
            with safe_open(path, framework="pt") as stream:
                for leaf in list(stream.keys()):
                    if leaf not in missing:
                        raise _DamagedError(f"{leaf} is not part of the model")
                    tensor = stream.get_tensor(leaf)
                    if tensor.shape != wanted[owners[leaf]][leaf].shape:
                        raise _DamagedError(f"{leaf} has the shape {tuple(tensor.shape)}")
                    on_device = leaf.startswith(quantized) and offload is Offload.NONE
                    filled[leaf] = tensor.to(self.device if on_device else "cpu", copy=True)
                    missing.discard(leaf)
        if missing:
            raise _DamagedError(f"{min(missing)} is missing")
        made = {
            name: _rebuilt(name, tensor, filled) for name, tensor in _tensors(structure) if name not in manifest.aliases
        }
        for name in wanted:
            _set(structure, name, made[manifest.aliases.get(name, name)])  # one parameter under all of its names

    def _quantize(self, structure: nn.Module) -> None:
        """Quantize a structure, whose operators are slow: of torchao's layers, one of each shape, which is copied.

        quanto's tensors cannot be copied without numbers.
        """
        made: dict[tuple[torch.Size, bool], nn.Module] = {}
        for name in quantized_layers(structure):
            layer: Any = structure.get_submodule(name)
            key = layer.weight.shape, layer.bias is not None
            if key in made and not self.precision.value.endswith("-quanto"):
                structure.set_submodule(name, copy.deepcopy(made[key]))
            else:
                quantize_layer(structure, name, self.precision, device=self.device, training=False)
                made[key] = structure.get_submodule(name)

    def _remove_other_versions(self) -> None:
        for other in self.folder.glob(f"{self._group}*"):
            if other != self.path:
                shutil.rmtree(other, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        for path in self.folder.glob(f"{_PARTIAL}*"):
            if time.time() - path.stat().st_mtime > _PARTIAL_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def device_kind(device: torch.device) -> str:
    """Return the kind of a device: GPUs of several kinds may share a folder."""
    return device.type + ("{}.{}".format(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else "")


def library_versions() -> tuple[str | None, ...]:
    """Return the versions of the libraries that results follow from; None for one that is missing."""
    return tuple(map(_version, _LIBRARIES))


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers by name; a parameter that several modules share, under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _aliases(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first[id(tensor)] for name, tensor in _tensors(model) if first.setdefault(id(tensor), name) != name}


def _leaves(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that a tensor consists of."""
    if not _is_subclass(tensor):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in parts:
        yield from _leaves(f"{name}/{part}", getattr(tensor, part))


def _rebuilt(name: str, tensor: Any, filled: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor like one without numbers, of filled plain tensors."""
    made = filled.get(name)
    if made is None:
        parts, context = tensor.__tensor_flatten__()
        inner = {part: _rebuilt(f"{name}/{part}", getattr(tensor, part), filled) for part in parts}
        made = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _is_subclass(tensor: Any) -> bool:
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__")


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, tensor)


def _files(model: nn.Module, aliases: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield names of files and their tensors, on the CPU."""
    part: dict[str, Tensor] = {}
    size = number = 0
    for name, tensor in _tensors(model):
        for leaf, plain in () if name in aliases else _leaves(name, tensor):
            part[leaf] = plain.detach().cpu().contiguous()
            size += plain.nbytes
        if size >= _FILE_BYTES:
            yield f"{number:03d}.safetensors", part
            part, size, number = {}, 0, number + 1
    yield f"{number:03d}.safetensors", part


def _write_file(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a file, and return its SHA-256."""
    content = save(tensors)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
