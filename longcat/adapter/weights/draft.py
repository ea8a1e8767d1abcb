"""The description of weights in a manifest, and their publication."""

import tempfile
from pathlib import Path
from typing import Any

from longcat.adapter.manifest import BaseIdentity, Draft, Manifest
from longcat.adapter.publishing import publish
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.adapter.weights.usage import usage_header
from longcat.model.flavour import Flavour
from longcat.storage.interface import Storage


def draft_of(weights: LoraWeights, base: Flavour, *, origin: str, **fields: Any) -> Draft:
    """Describe weights on their base model for a manifest. ``fields``: further fields of ``Draft``."""
    identity = BaseIdentity(flavour=base.name, revision=base.revision, hash=base.hash)
    return Draft(base=identity, origin=origin, **describe_lora(weights), **fields)


def describe_lora(weights: LoraWeights) -> dict[str, Any]:
    """Return the fields of a manifest that follow from the weights."""
    return {
        "rank": weights.rank,
        "alpha": weights.alpha,
        "kind": weights.kind,
        "use_dora": weights.uses_dora,
        "target_modules": tuple(sorted(weights.layers.keys() | weights.vectors.keys())),
        "tensors": sum(len(layer.tensors()) for layer in weights.layers.values())
        + len(weights.vectors)
        + len(weights.column_magnitudes),
    }


def publish_lora(storage: Storage, name: str, draft: Draft, weights: LoraWeights) -> Manifest:
    """Publish weights as a new version (``longcat.adapter.publishing.publish``)."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "adapter.safetensors")
        save_lora(weights, file, usage_header(sampling=draft.sampling, trigger_words=draft.trigger_words))
        return publish(storage, name, draft, file)
