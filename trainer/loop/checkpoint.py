"""Checkpoints: the state from which a run continues as if it had never stopped. Written atomically; the oldest are removed.

``<output_dir>/checkpoints/step-00000500/``: ``adapter.safetensors``, ``best.safetensors`` (with evaluations: the adapter of
the best one so far), ``state.pt`` (optimizer, schedule, EMA: tensors and plain values, read with ``weights_only``) and
``checkpoint.json`` with the SHA-256 of each, the options, and hashes of base and data. Randomness and the sampler's position
follow from the step (``trainer.randomness``).
"""

import logging
import os
import pickle
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.checksum import file_sha256
from longcat.errors import ConfigError, StorageError
from longcat.logs import log_event
from longcat.storage.disk import disk_full, is_disk_full

_BEST = "best.safetensors"
_NAME = re.compile(r"step-([0-9]{8})")
_log = logging.getLogger("lithograph.trainer")


class Origin(BaseModel):
    """The inputs that the training until a checkpoint followed from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: dict[str, Any]
    """All options, by ``trainer.loop.continuation.recorded_options``."""
    base_hash: str
    """The base model's hash."""
    dataset_hash: str


class CheckpointManifest(BaseModel):
    """The content of ``checkpoint.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps made."""
    origin: Origin
    losses: tuple[float, ...]
    """Mean losses for the adapter's manifest."""
    files: dict[str, str]
    """SHA-256 by file name."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    manifest: CheckpointManifest
    weights: LoraWeights
    state: dict[str, Any]
    """State by ``optimizer``, ``schedule``, ``recent``, with EMA ``ema``, with evaluations ``report``."""
    best: LoraWeights | None
    """The adapter of the best evaluation so far; None without one."""


def save_checkpoint(
    folder: Path,
    weights: LoraWeights,
    state: dict[str, Any],
    *,
    best: LoraWeights | None,
    step: int,
    origin: Origin,
    losses: tuple[float, ...],
    keep: int,
) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``. Raises ``StorageError``; nothing has changed then."""
    target = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder, ignore_cleanup_errors=True) as scratch:
            partial = Path(scratch, target.name)
            partial.mkdir()
            save_lora(weights, partial / "adapter.safetensors")
            if best is not None:
                save_lora(best, partial / _BEST)
            torch.save(state, partial / "state.pt")
            files = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
            manifest = CheckpointManifest(step=step, origin=origin, losses=losses, files=files)
            (partial / "checkpoint.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                _sync(path)
            if target.exists():  # the same step, of a run that was resumed from an earlier one
                shutil.rmtree(target)
            os.replace(partial, target)
            _sync(folder)
        for path in _existing(folder)[:-keep]:
            shutil.rmtree(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for a full disk
        if is_disk_full(error):
            raise disk_full(target, field="checkpoint") from error
        raise StorageError(
            "checkpoint_not_written",
            "cannot be written: {reason}",
            remedy="check the disk and output_dir",
            field="checkpoint",
            value=str(target),
            reason=str(error),
        ) from error
    return target


def find_manifest(folder: Path, requested: str) -> CheckpointManifest | None:
    """Read the manifest of a checkpoint whose files are as they were written; None if there is none.

    ``find_checkpoint`` reports what is wrong with a checkpoint.
    """
    existing = _existing(folder)
    paths = existing if requested == "latest" else [Path(requested), folder / requested]
    for path in reversed(paths):
        with suppress(OSError, ValidationError):
            manifest = CheckpointManifest.model_validate_json((path / "checkpoint.json").read_bytes())
            if all(file_sha256(path / name) == digest for name, digest in manifest.files.items()):
                return manifest
    return None


def find_checkpoint(folder: Path, requested: str) -> Checkpoint | None:
    """Read a checkpoint: ``latest`` (None if there is none), or a directory by path or name.

    A damaged latest checkpoint is skipped for the one before it. Raises ``ConfigError`` if the requested directory does not
    exist, or if no checkpoint can be read.
    """
    existing = _existing(folder)
    if requested != "latest":
        path = Path(requested) if Path(requested).exists() else folder / requested
        if not path.exists():
            raise _missing(folder, requested, [one.name for one in existing])
        return _read(path)
    for path in reversed(existing):
        try:
            return _read(path)
        except ConfigError as error:
            log_event(_log, "checkpoint_damaged", logging.WARNING, path=str(path), reason=str(error))
    if existing:
        raise ConfigError(
            "checkpoints_all_damaged",
            "none of the {count} checkpoints in {folder} can be read",
            remedy="leave resume_from_checkpoint out to start from the beginning",
            field="resume_from_checkpoint",
            value=requested,
            count=len(existing),
            folder=str(folder),
        )
    return None


def _missing(folder: Path, requested: str, names: list[str]) -> ConfigError:
    if not names:
        return ConfigError(
            "checkpoint_missing_none",
            "no such checkpoint; {folder} holds no checkpoint",
            remedy="leave resume_from_checkpoint out",
            field="resume_from_checkpoint",
            value=requested,
            folder=str(folder),
        )
    return ConfigError(
        "checkpoint_missing",
        "no such checkpoint in {folder}",
        remedy="give one of {names}, or latest",
        field="resume_from_checkpoint",
        value=requested,
        folder=str(folder),
        names=", ".join(names),
    )


def _read(path: Path) -> Checkpoint:
    try:
        manifest = CheckpointManifest.model_validate_json((path / "checkpoint.json").read_bytes())
        for name, digest in manifest.files.items():
            if file_sha256(path / name) != digest:
                raise ConfigError(
                    "checkpoint_damaged",
                    "{name} is damaged",
                    remedy="give an earlier checkpoint",
                    field="resume_from_checkpoint",
                    value=str(path),
                    name=name,
                )
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        best = load_lora(path / _BEST) if _BEST in manifest.files else None
        return Checkpoint(manifest=manifest, weights=load_lora(path / "adapter.safetensors"), state=state, best=best)
    except (OSError, ValidationError, pickle.UnpicklingError) as error:
        raise ConfigError(
            "checkpoint_unreadable",
            "cannot be read: {reason}",
            remedy="give an earlier checkpoint",
            field="resume_from_checkpoint",
            value=str(path),
            reason=str(error),
        ) from error


def _existing(folder: Path) -> list[Path]:
    """Return the checkpoints' directories, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _remove_partial(folder: Path) -> None:
    """Remove the partial checkpoints of writers that were killed."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
