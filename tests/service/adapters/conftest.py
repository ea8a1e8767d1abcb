"""Fixtures: a registry as in the service, and adapters to publish."""

from collections.abc import Callable
from pathlib import Path

import pytest

from longcat.adapter.manifest import BaseIdentity, Manifest
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.weights.draft import draft_of
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.model.loading import Components
from longcat.sampling.slots import AdapterSlots
from longcat.storage.interface import Storage
from service.adapters.cache import AdapterCache, Checks
from service.adapters.registry import Registry
from service.wire.messages import AdapterState, AdapterStatus
from tests.longcat.sampling.test_slots import random_lora

RANK = 16


def put(
    storage: Storage, model: Components, folder: Path, name: str, weights: LoraWeights, *, base: str | None = None
) -> Manifest:
    """Publish weights as a new version and make it the latest."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    save_lora(weights, file)
    draft = draft_of(weights, model.flavour, origin="trained")
    if base is not None:
        draft = draft.model_copy(update={"base": BaseIdentity(flavour="embedded", revision=None, hash=base)})
    manifest = publish(storage, name, draft, file)
    set_latest(storage, name, manifest.version)
    return manifest


class Service:
    """A registry, and the adapters that it pinned."""

    def __init__(
        self, storage: Storage, model: Components, folder: Path, *, cache_bytes: int = 2**30, prefetch: bool = False
    ) -> None:
        self.pinned: list[str] = []
        self.folder = folder
        self.slots = AdapterSlots(model.transformer, count=4, rank=RANK, device=model.device, dtype=model.dtype)
        cache = AdapterCache(
            storage,
            base_hash=model.flavour.hash,
            checks=Checks(manifest=self.slots.check_manifest, weights=self.slots.check),
            staged=self.slots.staged,
            folder=folder,
            memory_bytes=cache_bytes,
            disk_bytes=cache_bytes,
        )
        self.registry = Registry(
            storage,
            cache=cache,
            most_pinned=1,
            on_pins=lambda adapters: setattr(self, "pinned", [a.manifest.reference for a in adapters]),
            prefetch=prefetch,
        )

    def status(self, name: str) -> AdapterStatus:
        return next(s for s in self.registry.status() if s.name == name)

    def state(self, name: str) -> tuple[AdapterState, int | None, int | None]:
        status = self.status(name)
        return status.state, status.desired_version, status.version

    @property
    def downloads(self) -> int:
        """Return the number of files in the disk cache."""
        return len(list(self.folder.glob("*.safetensors")))


@pytest.fixture
def service(storage: Storage, model: Components, tmp_path: Path) -> Service:
    return Service(storage, model, tmp_path / "downloads")


@pytest.fixture
def some_lora(model: Components) -> Callable[..., LoraWeights]:
    targets = lora_targets(model.transformer)
    return lambda seed, **options: random_lora(targets, seed=seed, **options)
