"""Checkpoints: everything that a run needs to go on as if it had never stopped. Whole or not there; the oldest are removed.

``<output_dir>/checkpoints/step-00000500/``: ``adapter.safetensors``, ``state.pt`` (optimizer, schedule, EMA: tensors and
plain values, read with ``weights_only``) and ``checkpoint.json`` with the SHA-256 of both, and what the run was started
with. Randomness and the sampler's position follow from the step (``trainer.randomness``).
"""

import hashlib
import logging
import os
import pickle
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.errors import ConfigError, StorageError
from longcat.logs import tell
from longcat.lora import LoraWeights, load_lora, save_lora

_NAME = re.compile(r"^step-(\d{8})$")
_log = logging.getLogger("lithograph.trainer")


class Said(BaseModel):
    """``checkpoint.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps made."""
    decisive: str
    """Hash of the options that decide what comes next; resuming under others would be another run."""
    dataset_hash: str
    losses: tuple[float, ...]
    """Averages that the manifest lists."""
    files: dict[str, str]
    """SHA-256 by name."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One that was read and verified."""

    said: Said
    weights: LoraWeights
    state: dict[str, Any]
    """By ``optimizer``, ``schedule`` and perhaps ``ema``."""


def save_checkpoint(
    folder: Path,
    weights: LoraWeights,
    state: dict[str, Any],
    *,
    step: int,
    decisive: str,
    dataset_hash: str,
    losses: tuple[float, ...],
    keep: int,
) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``. Raises ``StorageError``; nothing has changed then."""
    target = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder, ignore_cleanup_errors=True) as scratch:
            partial = Path(scratch, target.name)
            partial.mkdir()
            save_lora(weights, partial / "adapter.safetensors")
            torch.save(state, partial / "state.pt")
            files = {name: _sha256(partial / name) for name in ("adapter.safetensors", "state.pt")}
            said = Said(step=step, decisive=decisive, dataset_hash=dataset_hash, losses=losses, files=files)
            (partial / "checkpoint.json").write_text(said.model_dump_json(indent=1), encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                _to_disk(path)
            if target.exists():  # the same step of a run that was resumed from before it
                shutil.rmtree(target)
            os.replace(partial, target)
            _to_disk(folder)
        for path in _there(folder)[:-keep]:
            shutil.rmtree(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for a full disk
        raise StorageError(f"checkpoint {target} cannot be written: {error}; check the disk and output_dir") from error
    return target


def find_checkpoint(folder: Path, wanted: str) -> Checkpoint | None:
    """``latest`` (None if there is none), or a directory. A damaged latest one is passed over for the one before.

    Raises ``ConfigError`` if the directory named is none, or nothing that is there can be read.
    """
    there = _there(folder)
    if wanted != "latest":
        path = Path(wanted) if Path(wanted).exists() else folder / wanted
        if not path.exists():
            names = ", ".join(one.name for one in there) or "no checkpoint"
            raise ConfigError(f"resume_from_checkpoint {wanted!r}: {path} is not there; {folder} holds {names}")
        return _read(path)
    for path in reversed(there):
        try:
            return _read(path)
        except ConfigError as error:
            tell(_log, "checkpoint_damaged", logging.WARNING, path=str(path), reason=str(error))
    if there:
        raise ConfigError(f"resume_from_checkpoint 'latest': none of {len(there)} checkpoints in {folder} can be read")
    return None


def _read(path: Path) -> Checkpoint:
    try:
        said = Said.model_validate_json((path / "checkpoint.json").read_bytes())
        for name, digest in said.files.items():
            if _sha256(path / name) != digest:
                raise ConfigError(f"resume_from_checkpoint: {path / name} is damaged; name an earlier one")
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        return Checkpoint(said=said, weights=load_lora(path / "adapter.safetensors"), state=state)
    except (OSError, ValidationError, pickle.UnpicklingError) as error:
        raise ConfigError(f"resume_from_checkpoint: {path} is no checkpoint that can be read: {error}") from error


def _there(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.match(path.name))


def _sweep(folder: Path) -> None:
    """What a writer that was killed left."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
