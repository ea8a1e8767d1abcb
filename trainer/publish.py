"""A trained adapter to storage, where the service finds it; kept in ``output_dir`` first, so that nothing is lost."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from longcat.adapter import Draft, Manifest, Training, list_versions, publish, read_manifest, set_latest
from longcat.errors import AdapterError, StorageError
from longcat.flavour import Flavour
from longcat.lora import LoraWeights, draft_of, save_lora
from longcat.storage import Storage, open_storage
from trainer.atomic import write_atomically
from trainer.config import TrainConfig

_log = logging.getLogger("lithograph.trainer")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter and how it came about."""

    weights: LoraWeights
    flavour: Flavour
    steps: int
    losses: tuple[float, ...]
    dataset_hash: str
    trigger_words: tuple[str, ...]
    pictures: Sequence[Path]
    may_be_latest: bool
    """Whether validation passed."""


def keep(config: TrainConfig, trained: Trained) -> Path:
    """Write the adapter into ``output_dir``, readable by diffusers and ``lithograph adapters import``; its path."""
    path = config.output_dir / "adapter.safetensors"
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_lora(trained.weights, partial)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}; check the disk") from error
    return path


def publish_adapter(config: TrainConfig, trained: Trained, weights: Path) -> Manifest:
    """Publish what ``keep`` wrote and move ``latest`` if validation passed. Once: a repeated call finds what is there.

    Raises ``StorageError`` when retries did not help; the adapter is still in ``output_dir``.
    """
    assert config.publish_to is not None
    assert config.adapter_name is not None
    done = config.output_dir / "published.json"
    identity = {
        "storage": config.publish_to,
        "name": config.adapter_name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    before = json.loads(done.read_bytes()) if done.exists() else {}
    if before.get("identity") == identity:
        manifest = Manifest.model_validate(before["manifest"])
    else:
        manifest = _publish(config, trained, weights, identity["sha256"])
        said = {"identity": identity, "manifest": manifest.model_dump(mode="json")}
        write_atomically(done, json.dumps(said, indent=1).encode())
    if trained.may_be_latest:
        _set_latest(_storage(config), manifest)
    return manifest


_retry = retry(
    retry=retry_if_exception_type(StorageError),
    stop=stop_after_attempt(4),
    wait=wait_exponential(multiplier=2, max=30),
    before_sleep=before_sleep_log(_log, logging.WARNING),
    reraise=True,
)


@_retry
def _publish(config: TrainConfig, trained: Trained, weights: Path, sha256: str) -> Manifest:
    assert config.adapter_name is not None
    storage, name = _storage(config), config.adapter_name
    newest = max((version for _, version in list_versions(storage, f"{name}/")), default=None)
    if newest is not None:
        # A try before this one may have been killed, or its answer lost, when everything was there.
        with suppress(AdapterError):  # one that cannot be read is not this one
            if (there := read_manifest(storage, name, newest)).weights.sha256 == sha256:
                return there
    extras = {f"validation/{path.name}": path for path in trained.pictures}
    return publish(storage, name, _draft(config, trained, tuple(extras)), weights, extras=extras)


@_retry
def _set_latest(storage: Storage, manifest: Manifest) -> None:
    set_latest(storage, manifest.name, manifest.version, only_forward=True)


def _storage(config: TrainConfig) -> Storage:
    assert config.publish_to is not None
    return open_storage(config.publish_to, endpoint_url=config.publish_endpoint_url)


def _draft(config: TrainConfig, trained: Trained, pictures: tuple[str, ...]) -> Draft:
    said = public_config(config)
    return draft_of(
        trained.weights,
        trained.flavour,
        origin="trained",
        trigger_words=trained.trigger_words,
        training=Training(
            precision=config.base_model_precision,
            config=said,
            config_hash=hash_of(said),
            dataset_hash=trained.dataset_hash,
            steps=trained.steps,
            losses=trained.losses,
            code_version=version("lithograph"),
        ),
        validation_images=pictures,
    )


def public_config(config: TrainConfig) -> dict[str, Any]:
    """What was chosen, without what is the same as the default."""
    return config.model_dump(mode="json", exclude_defaults=True)


def hash_of(said: Mapping[str, Any]) -> str:
    """SHA-256 of options, whatever their order."""
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
